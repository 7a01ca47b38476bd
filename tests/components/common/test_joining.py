"""The steps of a compiled pipeline, whose context says nothing that is known only when a run starts."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from components.common.errors import UserError
from components.common.joining import begin, joined
from components.common.records import RunInfo, RunRecords
from components.common.spec import Spec
from components.common.step import Step
from components.common.tracking import TrackingWarning, end_parent, sync
from components.common.tracking_connect import connect
from components.preparing import step as preparing
from components.reporting import step as reporting
from pipelines.phased import cluster_info

SPEC = {
    "name": "study",
    "data": {"train": [{"path": "lab://instructions?count=40"}], "held_out": {"fraction": 0.2}},
    "splitting": {"tiers": 2},
    "controls": [],
}


@pytest.fixture
def uri(mlflow_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """MLflow's place, of this test alone; what tracking sets in the environment is taken back."""
    for name, value in dict(os.environ).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def context(store: str, uri: str, job: str = "job-1", **changes) -> str:
    """What a task is told, as Kubeflow hands it over: with the run's id filled in."""
    spec = Spec.model_validate({**SPEC, "store": store, "tracking": {"uri": uri, "experiment": "joining"}, **changes})
    return cluster_info(spec).to_json().replace("{{$.pipeline_job_uuid}}", job)


def info(*arguments, **changes) -> RunInfo:
    return RunInfo.from_json(context(*arguments, **changes))


def runs(uri: str) -> dict[str, list]:
    """MLflow's runs by their phasetune kind."""
    client, found = connect(uri), {}
    for run in client.search_runs([one.experiment_id for one in client.search_experiments()]):
        found.setdefault(run.data.tags.get("phasetune.kind", ""), []).append(run)
    return found


def test_a_compiled_context_knows_neither_its_start_nor_mlflow(uri):
    told = info("store", uri)
    assert (told.run, told.started, told.mlflow) == ("study-job-1", "", {"uri": "", "run_id": ""})
    assert told.on_cluster


def test_every_step_learns_what_the_first_one_found(place, uri):
    before = datetime.now(UTC).replace(microsecond=0)
    first = begin(info(place, uri))
    (parent,) = runs(uri)["run"]
    assert before <= datetime.fromisoformat(first.started) <= datetime.now(UTC)
    assert first.mlflow == {"uri": uri, "run_id": parent.info.run_id}
    assert first.versions["torch"]
    assert first.machine["cores"] == os.cpu_count()
    step = Step(context(place, uri), "score")
    assert step.info == joined(info(place, uri)) == first
    assert parent.info.start_time == round(datetime.fromisoformat(first.started).timestamp() * 1000)
    # the compiled context leaves defaults out, MLflow shows them
    assert parent.data.params["curriculum.order"] == "ascending"


def test_a_repeated_first_step_finds_the_same_run(place, uri):
    first = begin(info(place, uri))
    assert begin(info(place, uri)) == first
    assert len(runs(uri)["run"]) == 1


def test_a_first_step_killed_before_it_could_write_the_parent_down_finds_it(place, uri):
    first = begin(info(place, uri))
    lost = RunInfo.from_json(first.to_json())
    lost.mlflow = {"uri": "", "run_id": ""}
    RunRecords(place, first.run).open(lost)
    assert begin(info(place, uri)) == first
    assert len(runs(uri)["run"]) == 1


def test_a_first_step_killed_while_it_makes_the_parent_finds_it(place, uri, monkeypatch):
    def killed(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("components.common.tracking_runs.send", killed)
        with pytest.raises(KeyboardInterrupt):
            begin(info(place, uri))
    (made,) = runs(uri)["run"]
    assert begin(info(place, uri)).mlflow["run_id"] == made.info.run_id
    (found,) = runs(uri)["run"]
    assert found.data.params["name"] == "study"


def test_two_runs_of_one_pipeline_are_two_runs(place, uri):
    assert begin(info(place, uri)).mlflow != begin(info(place, uri, "job-2")).mlflow
    assert len(runs(uri)["run"]) == 2


def test_a_complete_context_costs_no_read(uri, tmp_path):
    complete = info(str(tmp_path / "nowhere"), uri)
    complete.started = "2030-01-02T03:04:05+00:00"
    assert joined(complete) is complete
    assert begin(complete) is complete
    assert not (tmp_path / "nowhere").exists()
    assert runs(uri) == {}


def test_without_tracking_the_run_begins_without_mlflow(place, uri):
    first = begin(info(place, uri, tracking={"enabled": False}))
    assert first.started
    assert first.mlflow == {"uri": "", "run_id": ""}
    assert runs(uri) == {}


def test_a_step_of_a_run_that_did_not_begin_says_so(place, uri):
    with pytest.raises(UserError, match=r"the run study-job-1 left no record .* prepare") as caught:
        Step(context(place, uri), "score")
    assert "the same store" in caught.value.remedy


def test_kubeflows_own_run_is_the_parent(place, uri, monkeypatch):
    client = connect(uri)
    experiment = client.create_experiment("kubeflow's")
    above = client.create_run(experiment, run_name="pipeline").info.run_id
    group = client.create_run(experiment, tags={"mlflow.parentRunId": above}).info.run_id
    for attempt in ("first", "second"):  # every attempt of a task may have a run of its own
        own = client.create_run(experiment, tags={"mlflow.parentRunId": group}, run_name=attempt).info.run_id
        monkeypatch.setenv("MLFLOW_RUN_ID", own)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert begin(info(place, "sqlite:///another.db")).mlflow == {"uri": uri, "run_id": above}
    (parent,) = runs(uri)["run"]
    assert (parent.info.run_id, parent.info.experiment_id) == (above, experiment)


def test_a_trials_own_run_stays_the_parent_of_a_local_run(uri, tmp_path, monkeypatch):
    from components.common.tracking import open_parent

    client = connect(uri)
    experiment = client.create_experiment("sweep")
    sweep = client.create_run(experiment).info.run_id
    trial = client.create_run(experiment, tags={"mlflow.parentRunId": sweep}).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", trial)
    here = info("store", uri)
    here.output_dir, here.started = str(tmp_path), "2030-01-02T03:04:05+00:00"
    assert open_parent(here.parsed().tracking, here)["run_id"] == trial


def test_a_parent_made_late_is_ended_too(place, uri, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("components.common.tracking.reachable", lambda _uri: False)
        with pytest.warns(TrackingWarning, match="does not answer"):
            run = begin(info(place, uri))
    assert run.mlflow == {"uri": uri, "run_id": ""}
    assert sync(run, RunRecords(place, run.run), None, [])
    end_parent(run, "FAILED")
    assert [one.info.status for one in runs(uri)["run"]] == ["FAILED"]


def test_what_is_left_of_a_redacted_uri_hides_no_password(monkeypatch):
    from components.common.tracking_connect import resolve

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    assert resolve("http://***@mlflow:5000") == "http://mlflow:5000"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "ann"


@pytest.fixture
def reported(place, uri) -> tuple[dict, dict[str, list]]:
    """The summary of a run whose later steps failed, and MLflow's runs."""
    told = context(place, uri)
    preparing.run(told)
    summary = Path(reporting.run(told))
    return json.loads(summary.read_text()), runs(uri)


def test_the_report_of_an_incomplete_run_ends_it_as_failed(reported):
    summary, found = reported
    assert summary["complete"] is False
    (parent,) = found["run"]
    assert parent.info.status == "FAILED"
    assert summary["mlflow"]["run_id"] == parent.info.run_id
    assert parent.data.metrics["data.rows_in"] == 40


def test_the_report_waits_for_an_mlflow_that_starts_anew(place, uri, monkeypatch):
    told = context(place, uri)
    preparing.run(told)
    answers = iter([False, False, True, True])
    monkeypatch.setattr("components.common.tracking_send.reachable", lambda _uri: next(answers))
    monkeypatch.setattr(reporting, "_PAUSES", (0.0, 0.0, 0.0))
    with pytest.warns(TrackingWarning, match="does not answer") as warned:
        reporting.run(told)
    assert (len(warned), list(answers)) == (2, [True])
    (parent,) = runs(uri)["run"]
    assert (parent.info.status, parent.data.metrics["data.rows_in"]) == ("FAILED", 40)


def test_a_report_on_this_machine_does_not_wait(place, uri, tmp_path, monkeypatch):
    told = context(place, uri)
    here = begin(RunInfo.from_json(told))
    here.output_dir = str(tmp_path / "out")
    RunRecords(place, here.run).open(here)
    preparing.run(here.to_json())
    monkeypatch.setattr("components.common.tracking_send.reachable", lambda _uri: False)
    monkeypatch.setattr(reporting, "_PAUSES", (1000.0,))
    with pytest.warns(TrackingWarning, match="does not answer"):
        reporting.run(here.to_json())
    assert [run.info.status for run in runs(uri)["run"]] == ["RUNNING"]  # its driver knows how it ended
