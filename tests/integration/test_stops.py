"""A run that is stopped: by Ctrl-C, by SIGTERM, by force. Nothing stays behind, and the same command goes on."""

from __future__ import annotations

import json
import os
import random
import signal
import time

import psutil
import pytest

CHANGES = {
    "splitting": {"tiers": 2},
    "curriculum": {
        "sft": {"epochs": 1, "learning_rate": 1.0e-3, "batch_size": 16, "max_length": 256},
        "phases": [{"tiers": [1]}, {"tiers": [2], "epochs": 25}],
    },
    "evaluation": {"max_new_tokens": 8, "resamples": 200},
}
"""The second phase takes long enough to be stopped in it."""


def until_training(place, process, label="train main 2"):
    """Wait until the phase has made a few steps; returns the processes that are now at work."""
    output = place.folder / "runs" / "small"
    until = time.monotonic() + 180
    while time.monotonic() < until and process.poll() is None:
        said = [json.loads(line) for file in output.glob(".events*") for line in file.read_text().splitlines()[:-1]]
        if any(str(event.get("label", "")).startswith(label) and event["done"] >= 3 for event in said):
            return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        time.sleep(0.1)
    raise AssertionError(f"the run did not come to {label}: {process.communicate()}")


def first_phase_is_kept(place):
    """What is in the store after the stop is whole, and the rerun takes it from there."""
    phases = [entry for entry in place.entries() if entry.startswith("phases/")]
    assert len(phases) == 1
    assert not (place.folder / "runs" / "small" / "report.html").exists()
    place.run("run", "small.yaml")
    assert [phase["reused"] for phase in place.summary()["phases"]] == [True, False]
    assert [f"phases/{place.summary()['phases'][0]['key']}"] == phases


def ends(process, working, gone, code):
    """The command ends soon, with this code and one message, and nothing that it started is left."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err == "error: stopped\nremedy: finished phases are in the store: the same command goes on from there\n"
    assert "Traceback" not in out
    assert gone(working, 5) == []


def test_ctrl_c(place, gone):
    """It reaches every process of the terminal's group."""
    process = place.start("run", place.spec(CHANGES))
    working = until_training(place, process)
    os.killpg(process.pid, signal.SIGINT)
    ends(process, working, gone, 130)
    assert not list((place.folder / "runs" / "store" / ".staging").iterdir())
    assert {path.name for path in (place.folder / "runs" / "small").iterdir()} <= {"run.json", "run.log", "ray-logs"}
    assert statuses(place)["small"] == "KILLED"
    assert set(statuses(place).values()) <= {"KILLED", "FINISHED"}
    first_phase_is_kept(place)


def statuses(place):
    """The status of every MLflow run, by name."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("phasetune")
    return {run.info.run_name: run.info.status for run in client.search_runs([experiment.experiment_id])}


def test_sigterm(place, gone):
    """A scheduler sends it to the command alone, which does not wait for the phase's end."""
    process = place.start("run", place.spec({**CHANGES, "tracking": {"enabled": False}}))
    working = until_training(place, process)
    process.terminate()
    ends(process, working, gone, 143)
    assert sum(entry.startswith("phases/") for entry in place.entries()) == 1


@pytest.mark.proof
@pytest.mark.soak
@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_by_force(place, gone, workers):
    """`kill -9` of the command: whatever it started ends by itself, also Ray."""
    compute = {"compute": {"workers": workers, "threads": workers}}
    process = place.start("run", place.spec({**CHANGES, **compute, "tracking": {"enabled": False}}))
    working = until_training(place, process)
    process.kill()
    process.communicate(timeout=60)
    assert gone(working, 15) == []
    first_phase_is_kept(place)


@pytest.mark.proof
@pytest.mark.soak
def test_three_stops_at_once(place, gone):
    """An impatient user presses Ctrl-C three times."""
    process = place.start("run", place.spec({**CHANGES, "tracking": {"enabled": False}}))
    working = until_training(place, process)
    for _ in range(3):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.15)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)
    assert "Traceback" not in err
    assert gone(working, 10) == []
    first_phase_is_kept(place)


@pytest.mark.proof
@pytest.mark.soak
def test_a_run_killed_again_and_again_ends_with_the_same_bits(place, new_place, gone):
    """Killed at ten random moments, a run comes to the same weights as one that was left alone."""
    changes = {"tracking": {"enabled": False}, "controls": ["one_off"]}
    calm = new_place("calm")
    calm.run("run", calm.spec(changes))
    moments = random.Random(11)
    for _ in range(10):
        process = place.start("run", place.spec(changes))
        time.sleep(moments.uniform(1, 12))
        working = []
        if process.poll() is None:
            working = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.kill()
        process.communicate(timeout=60)
        assert gone(working, 15) == []
    place.run("run", "small.yaml")
    assert place.weights() == calm.weights()
    assert place.entries() == calm.entries()


@pytest.mark.proof
@pytest.mark.soak
def test_two_runs_of_one_spec_at_once(place):
    """Both end well, and every result is there once and whole."""
    place.spec({"tracking": {"enabled": False}})
    processes = [place.start("run", "small.yaml", "--output-dir", f"out-{number}") for number in (1, 2)]
    ended = [(process.communicate(timeout=280), process.returncode) for process in processes]
    assert [code for _, code in ended] == [0, 0], ended
    summaries = [json.loads((place.folder / f"out-{number}" / "summary.json").read_text()) for number in (1, 2)]
    assert summaries[0]["verdict"] == summaries[1]["verdict"]
    assert len(place.weights()) == 3
