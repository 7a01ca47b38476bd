"""What docs/operations.md says of back-up, restore and alerts, on a real PostgreSQL with the tables of MLflow."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.services.servers import Postgres

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.proof


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> Postgres:
    """PostgreSQL with MLflow's tables, three runs in them: finished, failed, and finished two days ago."""
    environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": postgres.uri}
    migrate = [sys.executable, "-m", "components.common.tracking_schema"]
    subprocess.run(migrate, env=environment, check=True, capture_output=True, timeout=280)
    postgres.query("INSERT INTO experiments (name, lifecycle_stage) VALUES ('kept', 'active')")
    now = int(time.time() * 1000)
    for name, status, ended in (("a", "FINISHED", now), ("b", "FAILED", now), ("c", "FINISHED", now - 172_800_000)):
        postgres.query(
            "INSERT INTO runs (run_uuid, name, status, end_time, lifecycle_stage, experiment_id) SELECT "  # noqa: S608  # literals
            f"'{name}', '{name}', '{status}', {ended}, 'active', experiment_id FROM experiments WHERE name = 'kept'"
        )
    return postgres


def page() -> str:
    return (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def script(program: str) -> str:
    """What the page runs inside the database's pod."""
    (found,) = re.findall(rf"sh -c '({program} .*?)'", page())
    return found


def test_a_restore_brings_back_what_the_back_up_held(database, tmp_path):
    uri = re.match(r".*@([\d.]+):(\d+)/", database.uri)
    environment = {
        **os.environ, "PATH": f"{database.programs}:{os.environ['PATH']}", "POSTGRES_USER": database.user,
        "POSTGRES_DB": database.database, "PGHOST": uri[1], "PGPORT": uri[2], "PGPASSWORD": database.password,
    }  # fmt: skip

    def run(program: str, **files: Any) -> None:
        command = ["sh", "-c", script(program)]
        subprocess.run(command, env=environment, check=True, timeout=120, stderr=subprocess.PIPE, **files)

    tables = "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'"
    names = "SELECT name FROM experiments ORDER BY name"
    before = (database.query(tables), database.query(names), database.query("SELECT * FROM runs ORDER BY name"))
    with (tmp_path / "mlflow.dump").open("wb") as file:
        run("pg_dump", stdout=file)
    database.query("CREATE TABLE of_a_later_version (a int)")
    database.query("INSERT INTO experiments (name, lifecycle_stage) VALUES ('later', 'active')")
    assert database.query(names) != before[1]
    run("dropdb")
    with (tmp_path / "mlflow.dump").open("rb") as file:
        run("pg_restore", stdin=file)
    assert (database.query(tables), database.query(names), database.query("SELECT * FROM runs ORDER BY name")) == before


def test_the_questions_of_the_alerts_have_answers(database):
    late, failed = re.findall(r"`(SELECT .*?)`", page())
    assert database.query(late) == [(False,)]
    assert database.query(failed) == [(1,)]
    database.query("DELETE FROM runs WHERE name IN ('a', 'b')")
    assert database.query(late) == [(True,)]
    assert database.query(failed) == [(0,)]
