"""The store's URI, its credentials, its database, and MLflow's silence."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from components.common.errors import UserError
from components.common.spec import TrackingSpec
from components.common.tracking import redact
from components.common.tracking_connect import resolve
from components.common.tracking_runs import flat_parameters

FIRST_RUN = """
import sys
from components.common.records import RunInfo, RunRecords
from components.common.spec import Spec
from components.common.tracking import open_parent, sync
assert not {"mlflow", "sqlalchemy", "pandas"} & set(sys.modules)
data, tracking = {"train": [{"path": "lab://instructions"}]}, {"uri": "sqlite:///new/m.db"}
spec = Spec.model_validate({"name": "a", "data": data, "tracking": tracking})
info = RunInfo("a-1", "a", spec.model_dump(mode="json"), "d", "store", "out", "2030-01-02T03:04:05Z")
info.mlflow = open_parent(spec.tracking, info)
assert info.mlflow["run_id"]
assert sync(info, RunRecords("store", "a-1"), {"verdict": "none"}, [])
"""


def test_the_first_run_makes_its_database_in_silence(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[3])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    done = subprocess.run(
        [sys.executable, "-c", FIRST_RUN], cwd=tmp_path, env={**environment, "PYTHONPATH": root}, capture_output=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["m.db", "new"]
    with sqlite3.connect(tmp_path / "new" / "m.db") as database:
        assert database.execute("select name from runs").fetchall() == [("a",)]
        (place,) = database.execute("select artifact_location from experiments where name = 'phasetune'").fetchone()
        assert place == f"file://{tmp_path}/new/mlartifacts"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://user:secret@host:5000/x", "http://***@host:5000/x"),
        ("https://user:se@cr/et@host", "https://***@host"),
        ("https://token@host", "https://***@host"),
        ("http://host:5000", "http://host:5000"),
        ("sqlite:////data/a@b/mlflow.db", "sqlite:////data/a@b/mlflow.db"),
        ("s3://bucket/data@v1.jsonl", "s3://bucket/data@v1.jsonl"),
    ],
)
def test_credentials_are_not_shown(uri: str, shown: str) -> None:
    assert redact(uri) == shown


def test_credentials_go_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD", raising=False)
    assert resolve("http://me:a%40b@[::1]:5000/") == "http://[::1]:5000"
    assert os.environ.pop("MLFLOW_TRACKING_USERNAME") == "me"
    assert os.environ.pop("MLFLOW_TRACKING_PASSWORD") == "a@b"


@pytest.mark.parametrize(
    "uri",
    [
        "mlruns",
        "file:///x",
        "postgresql://u:secret@h/d",
        "sqlite:///",
        "sqlite:///:memory:",
        "http://",
        "http://u:secret@h:x",
    ],
)
def test_other_stores_are_refused(uri: str) -> None:
    with pytest.raises(UserError) as error:
        resolve(TrackingSpec(uri=uri).uri)
    assert "secret" not in str(error.value)


def test_parameters_are_flat_and_hold_no_credentials() -> None:
    values = {"a": {"b": [1, 2.5], "c": None, "d": True}, "e": [{"path": "https://me:secret@host/x"}], "f": []}
    assert flat_parameters(values) == {"a.b": "1, 2.5", "a.d": "true", "e": '[{"path": "https://***@host/x"}]'}
