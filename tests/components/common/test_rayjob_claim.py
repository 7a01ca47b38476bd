"""Who waits for a RayJob, and what becomes of it when nobody does."""

import pytest
import requests

from components.common import leaving
from components.common.errors import UserError
from components.common.kubernetes_api import connect
from components.common.launcher import StepFailed
from components.common.leaving import run_is_ending
from components.common.rayjob_claim import Claim, cancel_run, find_claim, is_ending, release, take

JOB = {"app.kubernetes.io/part-of": "phasetune", "app.kubernetes.io/component": "ray-job"}


@pytest.fixture
def server(kubernetes_api):
    kubernetes_api.put("rayjobs", "x", labels=JOB, spec={})
    return kubernetes_api


def workflow(server, run: str, **spec) -> Claim:
    made = server.put("workflows", f"wf-{run}", labels={"pipeline/runid": run}, spec=spec)
    return Claim(f"ours-{run}", f"wf-{run}", made["metadata"]["uid"])


def names(server) -> list[str]:
    return [one["name"] for one in server.get("rayjobs", "x")["metadata"].get("ownerReferences") or []]


def test_a_pod_finds_its_workflow(server, monkeypatch) -> None:
    claim = workflow(server, "r1")
    assert find_claim(connect(), "ours-r1") == Claim("ours-r1")  # a laptop
    monkeypatch.setenv("KFP_RUN_ID", "r1")
    assert find_claim(connect(), "ours-r1") == claim
    monkeypatch.setenv("PHASETUNE_WORKFLOW", "wf-r1")
    assert find_claim(connect(), "ours-r1") == claim
    asked = len(server.requests)
    monkeypatch.setenv("PHASETUNE_WORKFLOW_UID", claim.uid)
    assert find_claim(connect(), "ours-r1") == claim
    assert len(server.requests) == asked  # it was told all of it


def test_a_pod_whose_workflow_is_gone_claims_nothing(server, monkeypatch) -> None:
    monkeypatch.setenv("PHASETUNE_WORKFLOW", "wf-gone")
    monkeypatch.setenv("KFP_RUN_ID", "r9")
    with pytest.raises(StepFailed, match="the run is being ended: its Workflow wf-gone is gone"):
        find_claim(connect(), "ours-r9")
    assert run_is_ending("ours-r9")
    server.faults = [403]
    with pytest.raises(UserError, match="refuses to read the Workflow"):
        find_claim(connect(), "ours-r9")
    server.faults = [403]
    assert not run_is_ending("ours-r9")


def test_the_last_one_that_leaves_deletes_it(server) -> None:
    cluster, one, two, laptop = connect(), workflow(server, "r1"), workflow(server, "r2"), Claim("on a laptop")
    for claim in (one, two, laptop, one):
        take(cluster, cluster.job("x"), claim)
    assert names(server) == ["wf-r1", "wf-r2"]
    assert not release(cluster, "x", one)
    assert not release(cluster, "x", one)  # it has none any more
    assert names(server) == ["wf-r2"]
    assert not release(cluster, "x", two)
    assert not release(cluster, "x", Claim("a stranger"))
    assert release(cluster, "x", laptop)
    assert server.names("rayjobs") == []
    assert not release(cluster, "x", laptop)


def test_somebody_who_comes_as_the_last_one_leaves_keeps_it(server, monkeypatch) -> None:
    cluster, one, two = connect(), workflow(server, "r1"), workflow(server, "r2")
    take(cluster, cluster.job("x"), one)
    delete = cluster.delete

    def late(job: dict) -> bool:
        take(connect(), connect().job("x"), two)
        return delete(job)

    monkeypatch.setattr(cluster, "delete", late)
    assert not release(cluster, "x", one)
    assert names(server) == ["wf-r2"]


def test_what_is_being_deleted_is_not_taken(server) -> None:
    cluster, found = connect(), connect().job("x")
    server.change("rayjobs", "x", {"metadata": {"finalizers": ["ray.io/rayjob-finalizer"]}})
    server.remove("rayjobs", "x")
    assert take(cluster, found, Claim("late")) is None


def test_a_run_is_ending_when_its_workflow_is(server) -> None:
    cluster, going = connect(), workflow(server, "r1", activeDeadlineSeconds=3600)
    assert not is_ending(cluster, going)
    assert not is_ending(cluster, Claim("on a laptop"))
    assert is_ending(cluster, workflow(server, "r2", activeDeadlineSeconds=0))
    assert is_ending(cluster, workflow(server, "r3", shutdown="Stop"))
    assert is_ending(cluster, Claim("r1", "wf-r1", "the uid of an older one"))
    server.remove("workflows", "wf-r1")
    assert is_ending(cluster, going)


@pytest.mark.parametrize(
    "status", [{"phase": "Failed"}, {"phase": "Error"}, {"phase": "Succeeded"}, {"finishedAt": "2026-01-01T00:00:00Z"}]
)
def test_a_run_that_has_ended_is_ending(server, status) -> None:
    cluster, claim = connect(), workflow(server, "r1")
    server.change("workflows", "wf-r1", {"status": {"phase": "Running", "finishedAt": None}})
    assert not is_ending(cluster, claim)
    server.change("workflows", "wf-r1", {"status": status})
    assert is_ending(cluster, claim)


def test_cancel_takes_what_nobody_else_waits_for(server) -> None:
    cluster, one, two = connect(), workflow(server, "r1"), workflow(server, "r2")
    for name in ("y", "z"):
        server.put("rayjobs", name, labels=JOB, spec={})
    server.put("rayjobs", "not-ours", spec={}, metadata={"ownerReferences": [one.owner]})
    for name, claims in {"x": [one], "y": [one, two], "z": [two]}.items():
        for claim in claims:
            take(cluster, cluster.job(name), claim)
    assert cancel_run(connect(), "ours-r1", kfp="r1") == ["x"]
    assert sorted(server.names("rayjobs")) == ["not-ours", "y", "z"]
    assert sorted(cancel_run(connect(), "", kfp="r2")) == ["y", "z"]
    assert cancel_run(connect(), "ours-r2", kfp="r2") == []


def test_cancel_finds_a_laptops_run(server) -> None:
    take(connect(), connect().job("x"), Claim("mine"))
    assert cancel_run(connect(), "yours") == []
    assert cancel_run(connect(), "mine") == ["x"]


def test_the_end_of_a_pipelines_run_releases_what_still_works(server, monkeypatch) -> None:
    cluster, one, two = connect(), workflow(server, "r1"), workflow(server, "r2")
    for name in ("shared", "ended", "laptop", "theirs"):
        server.put("rayjobs", name, labels=JOB, spec={})
    claims = {"x": [one], "shared": [one, two], "ended": [one], "laptop": [one, Claim("ours-r1")], "theirs": [two]}
    for name, waiting in claims.items():
        for claim in waiting:
            take(cluster, cluster.job(name), claim)
    server.status("ended", "Failed", "FAILED")
    leaving.release_unfinished()  # of no pipeline: nothing is asked
    assert len(server.names("rayjobs")) == 5
    monkeypatch.setenv("KFP_RUN_ID", "r1")
    monkeypatch.setenv("PHASETUNE_WORKFLOW", "wf-r1")
    leaving.release_unfinished()
    assert sorted(server.names("rayjobs")) == ["ended", "laptop", "shared", "theirs"]
    owners = {name: server.get("rayjobs", name)["metadata"]["ownerReferences"] for name in server.names("rayjobs")}
    assert owners == {"shared": [two.owner], "ended": [one.owner], "laptop": [], "theirs": [two.owner]}


def test_a_cluster_that_does_not_answer_holds_up_no_end(server, monkeypatch, capfd) -> None:
    monkeypatch.setenv("KFP_RUN_ID", "r1")
    server.faults = [403]
    leaving.release_unfinished()
    assert "RayJobs of this run may still work" in capfd.readouterr().out


def test_a_patch_says_what_kind_it_is(server) -> None:
    """What the client sends is a merge patch; another kind would take claims of others away, or none."""
    path = f"{server.address}/apis/ray.io/v1/namespaces/phasetune/rayjobs/x"
    for kind in ("application/json-patch+json", "application/json"):
        answer = requests.patch(path, data="{}", headers={"Content-Type": kind}, timeout=10)
        assert answer.status_code == 415
    assert take(connect(), connect().job("x"), Claim("mine")) is not None
