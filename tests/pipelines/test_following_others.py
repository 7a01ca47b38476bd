"""Runs that are not phasetune's, or whose spec another version of it wrote: what `status` and `cancel` make of them."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest

from components.common import waiting
from components.common.objects import open_objects
from components.common.records import RunInfo, RunRecords, StepRecord
from pipelines import cancelling, cluster_cli, following
from pipelines.following import PLACEHOLDER, Runs, context_of, labels_of, record_name
from pipelines.submitting import start, upload
from tests.services.ray_jobs import TOKEN, Jobs

IMAGE = {"image": "registry.example/phasetune:1"}
JOB = "phases-abc-1"
GREETING = {"hello": {"taskInfo": {"name": "say-hello"}}, "bye": {"taskInfo": {"name": "say bye"}}}


def pipeline(tasks: dict[str, Any]) -> dict[str, Any]:
    return {"pipelineInfo": {"name": "greeting"}, "root": {"dag": {"tasks": tasks}}}


def told(context: object) -> dict[str, Any]:
    return {"inputs": {"parameters": {"context": {"runtimeValue": {"constant": context}}}}}


def compiled(server: Any) -> dict[str, Any]:
    """The pipeline of the one version."""
    (version,) = server.versions.values()
    whole: dict[str, Any] = version["pipeline_spec"]
    return dict(whole.get("pipeline_spec", whole))


@pytest.fixture
def begun(cluster: Any, server: Any, cluster_spec: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Starts a run; `change` does something to the spec that its version holds."""
    (tmp_path / "store").mkdir()
    monkeypatch.setattr(following.ended_within, "__defaults__", (lambda _seconds: None,))

    def begin(change: Any = None, **more: Any) -> str:
        values = {"store": str(tmp_path / "store"), "tracking": {"enabled": False}, **more}
        made = cluster_spec(**{**values, "compute": {"ray": "rayjob", "kubernetes": IMAGE, **more.get("compute", {})}})
        run = start(cluster, made, upload(cluster, made, True), "phasetune")
        server.runs[run]["state"] = "RUNNING"
        if change is not None:
            for _, task in following._tasks(compiled(server)):
                given = task["inputs"]["parameters"]["context"]["runtimeValue"]
                values = json.loads(given["constant"])
                change(values)
                given["constant"] = json.dumps(values)
        return run

    return begin


@pytest.fixture
def run(begun: Any) -> str:
    """A run of a spec with a key that this version does not know."""
    return str(begun(lambda values: values["spec"]["compute"].update(hurry=True)))


def foreign(server: Any, run: str, spec: dict[str, Any]) -> None:
    """Make the run's version that of somebody else."""
    (version,) = server.versions.values()
    version["pipeline_spec"] = spec
    server.runs[run] |= {"state": "RUNNING", "display_name": "greeting"}


def test_a_pipeline_of_somebody_else_has_no_steps():
    assert labels_of(pipeline(GREETING)) == {}
    for context in ("hello", json.dumps({"greeting": "hello"}), "[1]", 5):
        tasks = pipeline({"a": {"taskInfo": {"name": "say-hello"}, **told(context)}})
        assert labels_of(tasks).keys() <= {"a"}
    assert context_of(pipeline({"a": {"inputs": {"parameters": {"context": {"runtimeValue": {}}}}}})) is None


def test_steps_that_only_another_version_has_come_last():
    tasks = {name: {"taskInfo": {"name": name}, **told("{}")} for name in ("merge main 1", "report", "", "prepare")}
    assert list(labels_of(pipeline(tasks))) == ["prepare", "report", "", "merge main 1"]


@pytest.mark.parametrize(
    "spec",
    [
        pipeline(GREETING),
        pipeline({"a": {"taskInfo": {"name": "a"}, **told("good morning")}}),
        {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "spec": {"entrypoint": "main"}},
    ],
    ids=["tasks", "a context of its own", "Argo"],
)
def test_a_run_of_somebody_else_is_shown_by_its_state_and_not_ended(server, begun, kubernetes, phasetune, spec):
    run = begun()
    foreign(server, run, spec)
    code, said = phasetune("status", run, "--host", server.url)
    assert code == 0
    assert said.splitlines() == [
        "greeting: running",
        f"{server.url}/#/runs/details/{run}",
        "it is no run of phasetune: what its steps do, its own page shows",
    ]
    code, said = phasetune("cancel", run, "--host", server.url)
    assert (code, f"the run greeting ({run}) is not one of phasetune" in said) == (1, True)
    assert (server.count("POST", ":terminate"), server.runs[run]["state"]) == (0, "RUNNING")
    assert kubernetes.requests == []


def test_a_run_whose_version_is_gone_may_be_ours_and_is_ended(server, begun, jobs_of_run, phasetune):
    run = begun()
    jobs = jobs_of_run(run)
    server.versions.clear()
    server.script = [{}, {}, {"state": "CANCELED"}]
    code, said = phasetune("cancel", run, "--host", server.url)
    assert (code, jobs.names("rayjobs")) == (0, []), said


@pytest.fixture
def jobs_of_run(kubernetes: Any) -> Any:
    """Puts a Workflow of a run, and a RayJob that it waits for."""

    def put(run: str) -> Any:
        made = kubernetes.put("workflows", "mine", labels={"pipeline/runid": run}, spec={})
        owner = {"kind": "Workflow", "name": "mine", "uid": made["metadata"]["uid"]}
        labels = {"app.kubernetes.io/part-of": "phasetune", "app.kubernetes.io/component": "ray-job"}
        kubernetes.put("rayjobs", "phases-a-1", labels=labels, spec={}, metadata={"ownerReferences": [owner]})
        kubernetes.status("phases-a-1", "Running", "RUNNING")
        return kubernetes

    return put


def test_a_spec_of_another_version_is_shown_and_ended_all_the_same(server, run, jobs_of_run, phasetune):
    jobs = jobs_of_run(run)
    code, said = phasetune("status", run, "--host", server.url)
    assert code == 0, said
    assert "train main 1 tier-1 seed 17" in said
    assert "RayJob phases-a-1: working" in said
    server.script = [{}, {}, {"state": "CANCELED"}]
    code, said = phasetune("cancel", run, "--host", server.url)
    assert (code, jobs.names("rayjobs")) == (0, []), said


def test_the_jobs_of_a_spec_of_another_version_are_stopped(server, begun, phasetune, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("PHASETUNE_RAY_PATIENCE", "0.2")
    ray = Jobs(lambda: None)
    try:
        ray.known(JOB, "RUNNING")

        def change(values: Any) -> None:
            values["spec"] |= {"hurry": True, "evaluation": "fast"}

        run = begun(change, compute={"scoring": {"ray": ray.address}})
        waiting.note(open_objects(tmp_path / "store"), JOB, f"cluster-{run}")
        server.script = [{}, {}, {"state": "CANCELED"}]
        assert f"stopped the job {JOB}" in phasetune("cancel", run, "--host", server.url)[1]
        assert ray.jobs[JOB]["status"] == "STOPPED"
    finally:
        ray.close()


@pytest.mark.parametrize("enabled", [True, False])
def test_mlflow_is_told_of_the_end_of_a_spec_of_another_version(server, begun, phasetune, tmp_path, enabled):
    def change(values: Any) -> None:
        values["spec"] |= {"hurry": True, "compute": {"ray": "local"}}

    run = begun(change, tracking={"uri": "http://127.0.0.1:1", "enabled": enabled})
    info = RunInfo.from_json(context_of(compiled(server)).replace(PLACEHOLDER, run))
    info.mlflow = {"uri": "http://127.0.0.1:1", "run_id": "abc"}
    RunRecords(info.store, info.run).open(info)
    server.script = [{}, {}, {"state": "CANCELED"}]
    said = phasetune("cancel", run, "--host", server.url)[1]
    assert ("MLflow is not told of the end: MLflow does not answer at http://127.0.0.1:1" in said) is enabled


def test_what_the_context_of_another_version_holds_besides_is_left_out(cluster, begun):
    known = Runs(cluster).known(begun(lambda values: values.update(mood="good")))
    assert (known.info.run, known.info.name) == (f"cluster-{known.id}", "cluster")
    assert known.rayjobs


def test_records_of_steps_that_this_version_does_not_know_are_not_looked_for(cluster, server, begun, tmp_path):
    run = begun()
    whole = compiled(server)
    merging = {"taskInfo": {"name": "merge main"}, **told(context_of(whole))}
    whole["root"]["dag"]["tasks"]["merge"] = merging
    known = Runs(cluster).known(run)
    assert list(known.steps)[-1] == "merge main"
    record = StepRecord(record_name("report"), "reports", "abc", "uri", False, 2.0, 1.0, {})
    RunRecords(known.info.store, known.info.run).write(record)
    assert list(following.records_of(known, 1.0)) == ["report"]


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> None:
    """An S3 server that nobody listens for."""
    for name, value in (("ENDPOINT_URL", "http://127.0.0.1:1"), ("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("PHASETUNE_S3_PATIENCE", "60")
    monkeypatch.setattr(cluster_cli, "_PATIENCE", 0.3)
    monkeypatch.setattr(cancelling, "_STORE_PATIENCE", 0.3)


@pytest.mark.usefixtures("away")
def test_a_store_that_is_away_is_not_waited_for(server, begun, phasetune):
    run = begun(store="s3://bucket/store", compute={"ray": "local"}, tracking={"uri": "http://127.0.0.1:1"})
    began = time.monotonic()
    code, said = phasetune("status", run, "--host", server.url)
    assert code == 0
    assert "the store cannot be read from here: S3 at s3://bucket/store did not answer for 0 s" in said
    server.script = [{}, {}, {"state": "CANCELED"}]
    code, said = phasetune("cancel", run, "--host", server.url)
    assert (code, "MLflow is not told of the end: S3 at s3://bucket/store did not answer" in said) == (1, True)
    assert time.monotonic() - began < 20.0
    assert os.environ["PHASETUNE_S3_PATIENCE"] == "60"
