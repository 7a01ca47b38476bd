"""`phasetune cancel`: what one server does not do keeps none of the others from it, and is said at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from components.common import waiting
from components.common.objects import open_objects
from components.common.spec import Spec
from pipelines import cancelling, following, kubeflow
from pipelines.phased import cluster_info
from pipelines.submitting import start, upload
from tests.kfp_api import server as kfp_api
from tests.kubernetes_api import server as kubernetes_api
from tests.services.ray_jobs import TOKEN, Jobs

IMAGE = {"image": "registry.example/phasetune:1"}
JOB = "phases-abc-1"


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    """A Ray cluster that stands, with a job."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("PHASETUNE_RAY_PATIENCE", "0.2")
    started = Jobs(lambda: None)
    started.known(JOB, "RUNNING")
    yield started
    started.close()


@pytest.fixture
def places() -> dict[str, Any]:
    """Where the run's heavy steps go; a test that says otherwise overrides this."""
    return {"ray": "rayjob"}


@pytest.fixture
def spec(cluster_spec: Callable[..., Spec], tmp_path: Path) -> Callable[[dict[str, Any]], Spec]:
    """Makes the spec of a run, by where its heavy steps go."""
    (tmp_path / "store").mkdir()
    return lambda places, **more: cluster_spec(
        **{"store": str(tmp_path / "store"), "tracking": {"enabled": False}, **more},
        compute={**places, "kubernetes": IMAGE},
    )


@pytest.fixture
def started(cluster: Any, server: Any, spec: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Starts a run, which ends when the command has looked at it twice after telling it to."""
    monkeypatch.setattr(following, "_ENDING", 20.0)
    monkeypatch.setattr(following.ended_within, "__defaults__", (lambda _seconds: None,))

    def begun(places: dict[str, Any], **more: Any) -> str:
        made = spec(places, **more)
        run = start(cluster, made, upload(cluster, made, True), "phasetune")
        server.runs[run]["state"] = "RUNNING"
        server.script = [{}, {}, {}, {"state": "CANCELED"}]
        waiting.note(open_objects(made.store), JOB, f"cluster-{run}")
        return run

    return begun


@pytest.fixture
def run(started: Callable[..., str], places: dict[str, Any]) -> str:
    """A run with RayJobs, under way."""
    return started(places)


def test_cancel_ends_the_run_and_its_rayjobs_and_may_be_said_twice(server, run, jobs, phasetune):
    code, said = phasetune("cancel", run, "--host", server.url)
    assert code == 0
    assert "told to end" in said
    assert "deleted the RayJob phases-a-1" in said
    assert sorted(jobs.names("rayjobs")) == ["phases-b-1", "phases-c-1"]
    left = json.dumps(jobs.get("rayjobs", "phases-c-1")["metadata"]["ownerReferences"])
    assert "theirs" in left and "mine" not in left
    code, said = phasetune("cancel", run, "--host", server.url)
    assert (code, "was told before" in said) == (0, True)
    assert server.count("POST", ":terminate") == 1


@pytest.mark.parametrize("status", [0, 503])
def test_where_the_answer_to_the_end_is_lost_it_counts_and_the_rayjobs_go(server, run, jobs, phasetune, status):
    server.faults.append(kfp_api.Fault("POST .*:terminate", 1, status, late=True))
    code, said = phasetune("cancel", run, "--host", server.url)
    assert (code, "told to end" in said) == (0, True), said
    assert sorted(jobs.names("rayjobs")) == ["phases-b-1", "phases-c-1"]


def test_a_run_that_ends_as_it_is_told_to_has_ended(server, run, jobs, phasetune):
    server.script = [{}, {"state": "RUNNING"}, {"state": "SUCCEEDED"}]
    server.faults.append(kfp_api.Fault("POST .*:terminate", 1, 400))
    code, said = phasetune("cancel", run, "--host", server.url)
    assert (code, "has ended or was told before" in said) == (0, True), said
    assert sorted(jobs.names("rayjobs")) == ["phases-b-1", "phases-c-1"]


@pytest.mark.parametrize(("status", "why"), [(403, "does not allow it"), (503, "cannot answer now")])
def test_where_kubeflow_does_not_end_it_the_rayjobs_go_all_the_same(
    server, run, jobs, phasetune, status, why, monkeypatch
):
    monkeypatch.setattr(kubeflow, "PAUSES", (0.0,))
    server.script = []
    server.faults.append(kfp_api.Fault("POST .*:terminate", 100, status))
    ended: list[str] = []
    monkeypatch.setattr(cancelling, "_end_tracking", lambda known: ended.append(known.id))
    code, said = phasetune("cancel", run, "--host", server.url)
    assert ended == []  # it goes on, also for MLflow
    assert (code, "Kubeflow does not end it: Kubeflow at" in said, why in said) == (1, True, True), said
    assert "told to end" not in said
    assert sorted(jobs.names("rayjobs")) == ["phases-b-1", "phases-c-1"]
    assert f"`phasetune cancel {run}` again" in said


def test_without_kubernetes_the_jobs_of_a_ray_cluster_are_stopped_all_the_same(server, ray, started, phasetune):
    run = started({"ray": ray.address, "scoring": {"ray": "rayjob"}})
    assert os.environ["KUBECONFIG"] == os.devnull
    code, said = phasetune("cancel", run, "--host", server.url)
    assert code == 1
    assert f"stopped the job {JOB}" in said
    assert ray.jobs[JOB]["status"] == "STOPPED"
    assert "its RayJobs are not looked for: there is no Kubernetes cluster to ask" in said
    assert f"`phasetune cancel {run}` again" in said


def test_a_spec_that_uses_no_rayjobs_asks_no_kubernetes(server, ray, started, phasetune):
    run = started({"ray": ray.address})
    code, said = phasetune("cancel", run, "--host", server.url)
    assert (code, said.splitlines()[1:]) == (0, [f"stopped the job {JOB}"])


def test_a_spec_that_uses_no_ray_asks_neither(server, started, phasetune):
    code, said = phasetune("cancel", started({"ray": "local"}), "--host", server.url)
    assert (code, len(said.splitlines())) == (0, 1)


def test_a_ray_cluster_that_is_away_is_an_error_and_the_rayjobs_go(server, started, kubernetes, ray, phasetune):
    run = started({"ray": "http://127.0.0.1:1", "scoring": {"ray": "rayjob"}})
    made = kubernetes.put("workflows", "mine", labels={"pipeline/runid": run}, spec={})
    owner = {"kind": "Workflow", "name": "mine", "uid": made["metadata"]["uid"]}
    labels = {"app.kubernetes.io/part-of": "phasetune", "app.kubernetes.io/component": "ray-job"}
    kubernetes.put("rayjobs", "scores-a-1", labels=labels, spec={}, metadata={"ownerReferences": [owner]})
    code, said = phasetune("cancel", run, "--host", server.url)
    assert (code, kubernetes.names("rayjobs")) == (1, [])
    assert "its jobs in Ray's cluster are not stopped: the Ray cluster at http://127.0.0.1:1 has not answered" in said


def test_a_store_that_is_not_here_may_know_of_jobs(server, started, ray, phasetune, tmp_path):
    run = started({"ray": ray.address})
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    code, said = phasetune("cancel", run, "--host", server.url)
    assert code == 1
    assert "its jobs in Ray's cluster are not stopped: the store" in said


def test_mlflow_that_is_away_is_an_error(server, started, phasetune, cluster_spec, tmp_path):
    from dataclasses import replace

    from components.common.records import RunRecords

    tracking = {"uri": "http://127.0.0.1:1"}
    run = started({"ray": "local"}, tracking=tracking)
    info = replace(cluster_info(cluster_spec(store=str(tmp_path / "store"), tracking=tracking)), run=f"cluster-{run}")
    assert phasetune("cancel", run, "--host", server.url)[0] == 0  # it never began, so MLflow does not know it
    begun = replace(info, started="2026-01-01T00:00:00", mlflow={"uri": "http://127.0.0.1:1", "run_id": "abc"})
    RunRecords(info.store, info.run).open(begun)
    code, said = phasetune("cancel", run, "--host", server.url)
    assert code == 1
    assert "MLflow is not told of the end: MLflow does not answer at http://127.0.0.1:1" in said


def test_a_run_that_goes_on_is_an_error(server, started, phasetune):
    run = started({"ray": "local"})
    server.script = []
    code, said = phasetune("cancel", run, "--host", server.url)
    assert (code, "it goes on after 60 s" in said) == (1, True)


def test_the_wrong_namespace_is_an_error_that_names_it(server, run, jobs, phasetune, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(jobs.kubeconfig(tmp_path / "elsewhere", kubernetes_api.EMPTY)))
    code, said = phasetune("cancel", run, "--host", server.url)
    assert code == 1
    assert "no Workflow of the run is in the namespace empty (name the namespace of the run's pods with `--name" in said
    assert "phases-a-1" in jobs.names("rayjobs")
    code, said = phasetune("cancel", run, "--host", server.url, "--namespace", "phasetune")
    assert (code, "deleted the RayJob phases-a-1" in said) == (0, True)


def test_the_workflow_of_a_run_that_has_ended_may_be_gone(server, run, kubernetes, phasetune):
    server.runs[run]["state"], server.script = "SUCCEEDED", []
    code, said = phasetune("cancel", run, "--host", server.url)
    assert code == 0
    assert "no Workflow of the run is in the namespace phasetune, where it may have been" in said
    assert "--namespace" in said
