"""The MLflow server goes before a phase and comes back after it."""

from __future__ import annotations

import os
import signal

import pytest

from tests.chaos import disturbances
from tests.chaos.places import spec_of

pytestmark = [pytest.mark.proof, pytest.mark.soak]  # test_mlflow_service has the same on PostgreSQL
LONG = {"tiers": [2], "epochs": 32}
"""Live metrics are sent from the fifth second on: long enough for the server to be missed."""


@pytest.fixture
def server(tmp_path):
    server = disturbances.Mlflow(tmp_path)
    server.start()
    yield server
    server.kill()


def test_mlflow_is_away_for_a_whole_phase(ready, server):
    from mlflow import MlflowClient

    curriculum = {**spec_of()["curriculum"], "phases": [{"tiers": [1], "epochs": 1}, LONG]}
    place = ready(curriculum=curriculum, tracking={"uri": server.uri, "experiment": "chaos"})
    process = place.start()

    def said(state):
        return any(one.get("step") == "train.main.2.s5" and one.get("state") == state for one in place.events())

    place.until(process, lambda: said("started"), "the phase")
    server.kill()
    place.until(process, lambda: said("done"), "the end of the phase")
    # The run is held up for as long as the server takes to come back; then it goes on to its report.
    os.kill(process.pid, signal.SIGSTOP)
    server.start()
    os.kill(process.pid, signal.SIGCONT)
    out, _ = place.ended(process, 0)
    assert out.count("they are sent when the run ends") == 1
    client = MlflowClient(server.uri)
    runs = client.search_runs([client.get_experiment_by_name("chaos").experiment_id])
    phase = next(run for run in runs if run.info.run_name.startswith("main/2"))
    learning = place.record()["info"]["learning"]
    assert len(learning) > 100
    for metric, name in (("train/loss", "loss"), ("train/grad_norm", "grad_norm")):
        history = client.get_metric_history(phase.info.run_id, metric)
        assert {point.step: point.value for point in history} == {point["step"]: point[name] for point in learning}
        assert len(history) == len(learning)
    assert {run.info.status for run in runs} == {"FINISHED"}
