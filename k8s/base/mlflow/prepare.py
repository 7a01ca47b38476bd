"""Brings MLflow's database to the version of this image and its accounts to what the secrets say, before the server starts.

One process at a time does so, however many replicas start: the others wait for a lock in the database. The address and
the account of PostgreSQL come from the environment, as libpq reads it (PGHOST, PGUSER, PGPASSWORD, ...), and the
accounts from MLFLOW_AUTH_ADMIN_USERNAME, MLFLOW_TRACKING_USERNAME and their passwords.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

URI = "postgresql+psycopg2://"
LOCK = 4850272
"""The number of the lock; any that nobody else uses in this database."""


def account(store: Any, username: str, password: str, is_admin: bool) -> str:
    """Make one account, or give it the password and the rank that it should have; returns what was done."""
    if not store.has_user(username):
        store.create_user(username, password, is_admin=is_admin)
        return "made"
    same = store.authenticate_user(username, password) and store.get_user(username).is_admin == is_admin
    if same:
        return "as it was"
    store.update_user(username, password=password, is_admin=is_admin)
    return "changed"


def main() -> None:
    """Upgrade both schemas, then see to the two accounts."""
    import psycopg2
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

    connection = psycopg2.connect("")
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", (LOCK,))  # given back when this process ends, however it ends
        subprocess.run([sys.executable, "-m", "mlflow", "db", "upgrade", URI], check=True)
        store = SqlAlchemyStore()
        store.init_db(URI)
        for prefix, is_admin in (("MLFLOW_AUTH_ADMIN", True), ("MLFLOW_TRACKING", False)):
            username = os.environ[f"{prefix}_USERNAME"]
            done = account(store, username, os.environ[f"{prefix}_PASSWORD"], is_admin)
            print(f"account {username}: {done}", flush=True)
    connection.close()


if __name__ == "__main__":
    main()
