"""Brings MLflow's database and its accounts to what this image and the secrets say, before a server starts.

The address and the account of PostgreSQL come from the environment, as libpq reads it (PGHOST, PGUSER, PGPASSWORD and
the like), and the accounts from MLFLOW_AUTH_ADMIN_USERNAME, MLFLOW_TRACKING_USERNAME and their passwords. Several that
start at once do no harm: one migrates while the others wait, and an account is made once.
"""

from __future__ import annotations

import os
import sys
from typing import Any

URI = "postgresql+psycopg2://"


def account(store: Any, username: str, password: str, is_admin: bool) -> str:
    """Make one account, or give it the password and the rank that it should have; returns what was done."""
    from mlflow.exceptions import MlflowException

    try:
        store.create_user(username, password, is_admin=is_admin)
        return "made"
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    if store.authenticate_user(username, password) and store.get_user(username).is_admin == is_admin:
        return "as it was"
    store.update_user(username, password=password, is_admin=is_admin)
    return "changed"


def main() -> int:
    """Upgrade both schemas, then see to the two accounts; returns the exit code."""
    from components.common.errors import UserError
    from components.common.tracking_schema import upgrade

    try:
        upgrade(URI)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore()
    store.init_db(URI)
    for prefix, is_admin in (("MLFLOW_AUTH_ADMIN", True), ("MLFLOW_TRACKING", False)):
        username = os.environ[f"{prefix}_USERNAME"]
        done = account(store, username, os.environ[f"{prefix}_PASSWORD"], is_admin)
        sys.stdout.write(f"account {username}: {done}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
