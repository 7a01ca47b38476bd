"""Tracking on a real MLflow server, and without one."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

PHASES = {"small", "main/1 tier-1", "main/2 tier-2", "control: one_off", "one_off/1 all-tiers"}


def serve(folder: Path, port: int) -> Iterator[str]:
    """A server, until the generator ends; gives its URI."""
    places = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "files")]
    command = [sys.executable, "-m", "mlflow", "server", *places, "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--workers", "1"], stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        for one in [*children, psutil.Process(process.pid)]:
            one.kill()
        process.wait()
        psutil.wait_procs(children, timeout=10)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(uri: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=2) as answer:  # noqa: S310  # our own server
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the server does not answer")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server's URI."""
    yield from serve(tmp_path_factory.mktemp("server"), free_port())


def changes(uri: str) -> dict[str, object]:
    data = {"train": [{"path": "lab://instructions?count=120"}], "held_out": {"fraction": 0.25}}
    return {
        "data": data,
        "splitting": {"tiers": 2},
        "controls": ["one_off"],
        "tracking": {"uri": uri, "experiment": "on a server"},
    }


@pytest.fixture(scope="module")
def tracked(server, new_place):
    """The run's place, a REST client, and the runs by name."""
    from mlflow import MlflowClient

    place = new_place("tracked")
    place.run("run", place.spec(changes(server)))
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("on a server")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    return place, client, runs


def test_the_server_holds_the_run_and_its_children(tracked, server):
    place, _, runs = tracked
    assert set(runs) == PHASES
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert place.summary()["mlflow"] == {"uri": server, "run_id": runs["small"].info.run_id}
    assert not (place.folder / "mlflow.db").exists()


def test_the_server_holds_the_metrics_by_step(tracked):
    place, client, runs = tracked
    phase = place.summary()["phases"][0]
    history = client.get_metric_history(runs["main/1 tier-1"].info.run_id, "train/loss")
    assert sorted(point.step for point in history) == list(range(1, phase["steps"] + 1))
    assert runs["main/1 tier-1"].data.metrics["verifiable.accuracy"] == phase["metrics"]["verifiable.accuracy"]


def test_the_server_holds_the_artifacts(tracked):
    _, client, runs = tracked
    artifacts = {item.path for item in client.list_artifacts(runs["small"].info.run_id)}
    assert artifacts >= {"report.html", "summary.json", "learning.png"}


def test_the_server_knows_where_the_weights_are(tracked):
    place, client, runs = tracked
    models = client.search_logged_models([runs["small"].info.experiment_id])
    places = {str(value) for model in models for value in (model.tags | model.params).values()}
    for phase in place.summary()["phases"]:
        assert any(phase["key"] in place for place in places)


@pytest.fixture(scope="module")
def untracked(new_place):
    """A run whose server was away; its place, what it said, and the server's port."""
    place, port = new_place("untracked"), free_port()
    ended = place.run("run", place.spec(changes(f"http://127.0.0.1:{port}") | {"controls": []}))
    return place, ended.stdout + ended.stderr, port


def test_a_server_that_is_away_costs_a_warning_before_and_after(untracked):
    place, said, port = untracked
    away = f"warning: MLflow does not answer at http://127.0.0.1:{port}"
    assert said.count("warning:") == said.count(away) == 2
    assert said.index(away) < said.index("[ 1/") < said.rindex(away)
    assert place.summary()["mlflow"] == {"uri": f"http://127.0.0.1:{port}", "run_id": ""}
    assert (place.folder / "runs" / "small" / "report.html").exists()


@pytest.mark.proof
def test_a_report_later_sends_what_the_server_missed(untracked, tmp_path):
    from mlflow import MlflowClient

    place, _, port = untracked
    for uri in serve(tmp_path, port):
        said = place.run("report", "runs/small")
        assert "warning:" not in said.stdout + said.stderr
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name("on a server")
        runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
        assert set(runs) == {"small", "main/1 tier-1", "main/2 tier-2"}
        assert runs["small"].info.status == "FINISHED"
        assert "report.html" in {item.path for item in client.list_artifacts(runs["small"].info.run_id)}
