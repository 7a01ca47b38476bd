"""The report of a pipeline's run, which comes when no step waits any more, lets go of RayJobs that still work."""

import pytest

from components.common.kubernetes_api import connect
from components.common.rayjob_claim import find_claim, take
from components.common.records import RunInfo, RunRecords
from components.reporting import step
from tests.components.reporting import build_run
from tests.kubernetes_api import kuberay as rayjobs

JOB = {"app.kubernetes.io/part-of": "phasetune", "app.kubernetes.io/component": "ray-job"}


@pytest.fixture
def context(tmp_path, kubernetes_api, monkeypatch) -> str:
    """A run that did nothing but leave a RayJob at work."""
    rayjobs.pipeline(monkeypatch, kubernetes_api, "r1")
    kubernetes_api.put("rayjobs", "x", labels=JOB, spec={})
    take(connect(), connect().job("x"), find_claim(connect(), "run-1"))
    compute = {"ray": "rayjob", "kubernetes": {"image": "registry/phasetune:1"}}
    spec = build_run.spec_of(compute=compute, store=str(tmp_path / "store"))
    info = RunInfo("run-1", "night", spec.model_dump(mode="json"), "0" * 64, str(tmp_path / "store"), "", "")
    info.started = "2026-01-01T00:00:00+00:00"
    RunRecords(info.store, info.run).open(info)
    return info.to_json()


def test_the_report_lets_go_of_a_rayjob_that_still_works(context, kubernetes_api) -> None:
    assert step.run(context).endswith("summary.json")
    assert kubernetes_api.names("rayjobs") == []


def test_a_cluster_that_refuses_does_not_fail_the_report(context, kubernetes_api) -> None:
    kubernetes_api.faults = [403]
    assert step.run(context).endswith("summary.json")
    assert kubernetes_api.names("rayjobs") == ["x"]
