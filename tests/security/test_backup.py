"""What docs/operations.md says of back-up, restore and alerts, on a real PostgreSQL with the tables of MLflow."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.proof


def services() -> Any:
    found = importlib.util.spec_from_file_location("servers", ROOT / "tests" / "services" / "servers.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["servers"] = module  # its dataclasses look for their module there
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def postgres() -> Iterator[Any]:
    """A PostgreSQL server with MLflow's tables, three runs in them: finished, failed, and finished two days ago."""
    servers = services()
    programs = servers.postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    server = servers.Postgres(programs)
    try:
        server.start()
        environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": server.uri}
        migrate = [sys.executable, "-m", "components.common.tracking_schema"]
        subprocess.run(migrate, env=environment, check=True, capture_output=True, timeout=280)
        server.query("INSERT INTO experiments (name, lifecycle_stage) VALUES ('kept', 'active')")
        now = int(time.time() * 1000)
        for name, status, ended in (("a", "FINISHED", now), ("b", "FAILED", now), ("c", "FINISHED", now - 172_800_000)):
            server.query(
                "INSERT INTO runs (run_uuid, name, status, end_time, lifecycle_stage, experiment_id) SELECT "  # noqa: S608  # literals
                f"'{name}', '{name}', '{status}', {ended}, 'active', experiment_id FROM experiments WHERE name = 'kept'"
            )
        yield server, programs
    finally:
        server.stop()


def page() -> str:
    return (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def script(program: str) -> str:
    """What the page runs inside the database's pod."""
    (found,) = re.findall(rf"sh -c '({program} .*?)'", page())
    return found


def test_a_restore_brings_back_what_the_back_up_held(postgres, tmp_path):
    server, programs = postgres
    uri = re.match(r".*@([\d.]+):(\d+)/", server.uri)
    environment = {
        **os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "POSTGRES_USER": server.user,
        "POSTGRES_DB": server.database, "PGHOST": uri[1], "PGPORT": uri[2], "PGPASSWORD": server.password,
    }  # fmt: skip

    def run(program: str, **files: Any) -> None:
        command = ["sh", "-c", script(program)]
        subprocess.run(command, env=environment, check=True, timeout=120, stderr=subprocess.PIPE, **files)

    tables = "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'"
    names = "SELECT name FROM experiments ORDER BY name"
    before = (server.query(tables), server.query(names), server.query("SELECT * FROM runs ORDER BY name"))
    with (tmp_path / "mlflow.dump").open("wb") as file:
        run("pg_dump", stdout=file)
    server.query("CREATE TABLE of_a_later_version (a int)")
    server.query("INSERT INTO experiments (name, lifecycle_stage) VALUES ('later', 'active')")
    assert server.query(names) != before[1]
    run("dropdb")
    with (tmp_path / "mlflow.dump").open("rb") as file:
        run("pg_restore", stdin=file)
    assert (server.query(tables), server.query(names), server.query("SELECT * FROM runs ORDER BY name")) == before


def test_the_questions_of_the_alerts_have_answers(postgres):
    server, _ = postgres
    late, failed = re.findall(r"`(SELECT .*?)`", page())
    assert server.query(late) == [(False,)]
    assert server.query(failed) == [(1,)]
    server.query("DELETE FROM runs WHERE name IN ('a', 'b')")
    assert server.query(late) == [(True,)]
    assert server.query(failed) == [(0,)]
