"""Bring MLflow's tables, and those of its users, in a PostgreSQL database up to date, before any server runs.

Run as `python -m components.common.tracking_schema`, with the database's URI in MLFLOW_BACKEND_STORE_URI: it holds the
password, which has no place among a process's arguments. Servers that start at the same time each run it; they come
in one after the other, as two migrations at once break each other. Where all is up to date nothing happens.
"""

from __future__ import annotations

import os
import sys

from components.common.errors import UserError, redact
from components.common.tracking_connect import quiet

URI = "MLFLOW_BACKEND_STORE_URI"
_LOCK = 0x70686173  # any number that nobody else locks in this database


def upgrade(uri: str) -> None:
    """Bring both schemas up to date; waits while another process does.

    Args:
        uri: `postgresql+psycopg2://USER:PASSWORD@HOST:PORT/DATABASE`, user and password percent-encoded.

    Raises:
        UserError: If the URI is of another kind, or the database is away or refuses.
    """
    if not uri.startswith("postgresql+psycopg2://"):
        raise UserError(
            f"{URI} is no PostgreSQL database that MLflow can open here: {redact(uri)!r}",
            "set it to postgresql+psycopg2://USER:PASSWORD@HOST:PORT/DATABASE, user and password percent-encoded",
        )
    quiet()
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import OperationalError

    engine = create_engine(uri)
    try:
        # The lock is the connection's: it goes with the process, however that ends.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("SELECT pg_advisory_lock(:number)"), {"number": _LOCK})
            _upgrade_both(uri)
    except OperationalError as error:
        raise UserError(
            f"MLflow's database at {redact(uri)} does not let us in: {str(error.orig).strip()}",
            f"check the host, the user and the password in {URI}",
        ) from error
    finally:
        engine.dispose()


def _upgrade_both(uri: str) -> None:
    # The functions behind `mlflow db upgrade` and `python -m mlflow.server.auth db upgrade`.
    from mlflow.db import upgrade as runs
    from mlflow.server.auth.db.cli import upgrade as users

    runs.callback(uri)
    users.callback(uri, "head")


def main() -> int:
    """Run it; returns the exit code."""
    try:
        upgrade(os.environ.get(URI, ""))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write("MLflow's database is up to date\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
