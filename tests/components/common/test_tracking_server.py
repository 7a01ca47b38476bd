"""Tracking on an MLflow server that is away, comes, and goes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from components.common.tracking import PhaseStream, TrackingWarning, end_parent, sync
from components.common.tracking_connect import connect
from tests.components.common.tracked_runs import (
    SUMMARY,
    by_name,
    check_whole,
    contents,
    learning,
    models,
    opened,
    report,
    run_info,
    write_records,
)

pytestmark = pytest.mark.usefixtures("mlflow_environment")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start_server(mlflow_template: Path, folder: Path, port: int) -> subprocess.Popen[bytes]:
    shutil.copy(mlflow_template, folder / "server.db")
    store = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/artifacts"]
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *store, *where], env=environment, stdout=log, stderr=log
        )
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return server
        except OSError:
            assert server.poll() is None, (folder / "server.log").read_text()
            time.sleep(0.2)
    raise AssertionError("the server did not start")


@pytest.mark.timeout(180)
def test_a_server_holds_the_same_and_catches_up(
    mlflow_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    port = free_port()
    info = run_info(f"http://me:hidden@127.0.0.1:{port}")
    with pytest.warns(TrackingWarning, match="does not answer") as warned:
        opened(info)
    assert (len(warned), info.mlflow) == (1, {"uri": f"http://127.0.0.1:{port}", "run_id": ""})
    absent = PhaseStream(info, "tier-1", "key-main-1-17", "main", 1, 17, patience=0.0)
    absent.log(learning(1)[0])
    absent.close()
    records = write_records(info, tmp_path)
    with pytest.warns(TrackingWarning, match="does not answer"):
        assert not sync(info, records, SUMMARY, report(tmp_path))

    server = start_server(mlflow_template, tmp_path, port)
    try:
        assert sync(info, records, SUMMARY, report(tmp_path))
        check_whole(info)
        parent = by_name(info)["study"]
        names = [file.path for file in connect(info.mlflow["uri"]).list_artifacts(parent.info.run_id)]
        assert sorted(names) == ["loss.png", "report.html"]
        before = contents(tmp_path, "server.db")
        assert sync(info, records, SUMMARY, report(tmp_path))
        assert contents(tmp_path, "server.db") == before
        assert len(models(info)) == 5
        assert opened(info).mlflow["run_id"] == parent.info.run_id
        assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "hidden"
        assert b"hidden" not in (tmp_path / "server.db").read_bytes()
    finally:
        server.terminate()
        server.wait(20)
    with pytest.warns(TrackingWarning, match="not recorded"):
        end_parent(info, "FAILED")
    lost = PhaseStream(info, "tier-1", "key-main-1-17", "main", 1, 17, patience=0.0)
    with pytest.warns(TrackingWarning, match="live metrics"):
        lost.log(learning(1)[0])
        lost.close()
    lost.log(learning(1)[0])


def test_a_server_that_never_replies_counts_as_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        info = run_info(f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.warns(TrackingWarning, match="does not answer"):
            assert opened(info).mlflow["run_id"] == ""
