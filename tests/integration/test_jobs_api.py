"""A phase trained by a real Ray cluster through its Jobs API: what it leaves, and what faults leave of it."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.common.jobs_api import cancel_on_cluster
from components.common.spec import Spec
from tests.integration import ray_head as rays

pytestmark = [pytest.mark.proof, pytest.mark.timeout(400)]


@pytest.fixture
def new_work(head: Any, tmp_path: Path) -> Callable[..., Any]:
    """Makes a run of one long phase, of which settings may be others; its data is split, its store its own."""
    return lambda **sft: rays.prepared(head, tmp_path, curriculum={"sft": {**rays.LONG, **sft}})


@pytest.fixture(scope="module")
def calm(head: Any, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of the long phase, trained on this machine and left alone."""
    work = rays.prepared(head, tmp_path_factory.mktemp("calm"), curriculum={"sft": rays.LONG})
    work = work.with_compute(ray="local")
    rays.ended(work.train(), 0)
    return bytes(work.weights())


def jobs_of(head: Any, work: Any) -> list[tuple[str, str]]:
    """Number and status of the jobs that make the phase of a run, in order; each test has another phase or cluster."""
    key = json.loads((work.folder / "key").read_text())
    found = [job for job in head.jobs() if job["submission_id"].startswith(f"phases-{key[:24]}")]
    return sorted((job["submission_id"].rpartition("-")[2], job["status"]) for job in found)


def noted_key(out: str, work: Any) -> None:
    """Remember the phase's key, which a step printed last."""
    (work.folder / "key").write_text(json.dumps(json.loads(out.strip().splitlines()[-1])["key"]))


def test_a_phase_is_trained_in_the_cluster_and_then_found(head, new_work, calm):
    """What it leaves is what it leaves on this machine, bit by bit; found again, nothing is sent."""
    work = new_work()
    out = rays.ended(work.train(), 0)
    noted_key(out, work)
    assert work.weights() == calm
    assert [status for _, status in jobs_of(head, work)] == ["SUCCEEDED"]
    assert "train main 1 (tier-1)" in out  # the driver's log
    rays.ended(work.train("run-2", RAY_AUTH_TOKEN="no longer the right one"), 0)
    assert work.names("waiting") == work.names("checkpoints") == []


def test_a_killed_driver_is_followed_by_another_attempt(head, new_work, calm):
    work = new_work()
    before = {job["submission_id"] for job in head.jobs()}
    waiting = work.train()
    step = rays.until(lambda: work.newest() >= 10 and work.newest(), "the checkpoint of step 10")
    [driver] = head.drivers()
    driver.kill()
    noted_key(rays.ended(waiting, 0), work)
    assert work.weights() == calm
    assert work.manifest()["info"]["resumed_at"] >= step
    new = sorted(job["status"] for job in head.jobs() if job["submission_id"] not in before)
    assert new == ["FAILED", "SUCCEEDED"]


@pytest.mark.soak
def test_a_waiting_step_that_is_killed_finds_its_job_again(head, new_work, calm):
    work = new_work()
    before = {job["submission_id"] for job in head.jobs()}
    waiting = work.train()
    rays.until(lambda: work.newest() >= 5, "a checkpoint")
    waiting.kill()
    waiting.communicate()
    [driver] = head.drivers()
    rays.ended(work.train(), 0)
    assert not driver.is_running()
    assert [job["status"] for job in head.jobs() if job["submission_id"] not in before] == ["SUCCEEDED"]
    assert work.manifest()["info"]["resumed_at"] == 0
    assert work.weights() == calm


def test_two_runs_share_a_job_and_the_last_to_go_stops_it(head, new_work):
    work = new_work(epochs=40)
    before = {job["submission_id"] for job in head.jobs()}

    def new() -> list[str]:
        return [job["status"] for job in head.jobs() if job["submission_id"] not in before]

    first = work.train("run-1")
    rays.until(lambda: len(work.names("waiting")) == 1, "the first")
    second = work.train("run-2")
    rays.until(lambda: len(work.names("waiting")) == 2, "the second")
    step = rays.until(work.newest, "a checkpoint")
    assert new() == ["RUNNING"]
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=rays.LONGEST)
    assert new() == ["RUNNING"]
    later = rays.until(lambda: work.newest() > step and work.newest(), "another checkpoint")
    second.send_signal(signal.SIGINT)
    second.communicate(timeout=rays.LONGEST)
    assert new() == ["STOPPED"]
    assert head.drivers() == []
    assert work.names("waiting") == []
    assert work.newest() > later  # it saved its state first
    leases = [json.loads(work.read(name)) for name in work.names("leases/phases")]
    assert [lease["holder"] for lease in leases] == [None]


@pytest.mark.soak
def test_cancel_stops_the_job_of_a_run_whose_steps_were_ended(head, new_work, monkeypatch):
    """Kubeflow ends the pods first, at once; what they waited for goes on until `phasetune cancel` comes to it."""
    work = new_work(epochs=40)
    for name, value in work.variables.items():
        monkeypatch.setenv(name, value)
    before = {job["submission_id"] for job in head.jobs()}
    waiting = work.train()
    rays.until(work.newest, "a checkpoint")
    waiting.kill()
    waiting.communicate()
    assert len(cancel_on_cluster(Spec.model_validate(work.spec), "run-1")) == 1
    [job] = rays.until(lambda: [job for job in head.jobs_beside(before) if job["status"] != "RUNNING"], "the job's end")
    assert job["status"] == "STOPPED"
    assert head.drivers() == []
    assert work.names("waiting") == []
    leases = [json.loads(work.read(name)) for name in work.names("leases/phases")]
    assert [lease["holder"] for lease in leases] == [None]


def test_an_evicted_step_leaves_its_job_and_one_of_an_ended_run_stops_it(head, new_work, kubernetes_api):
    """Kubernetes tells the two apart, by the Workflow: either way the pod is asked to end."""
    kubernetes_api.put("workflows", "wf", labels={"pipeline/runid": "r1"}, spec={})
    work = new_work(epochs=40)
    before = {job["submission_id"] for job in head.jobs()}
    evicted = work.train(PHASETUNE_WORKFLOW="wf")
    step = rays.until(work.newest, "a checkpoint")
    evicted.terminate()
    rays.ended(evicted, 143)
    again = work.train(PHASETUNE_WORKFLOW="wf")
    assert any(
        "] train.main.1.s5: making" in line for line in again.stdout
    )  # it reads the job's log, from its beginning
    rays.until(lambda: work.newest() > step, "another checkpoint")
    assert [job["status"] for job in head.jobs_beside(before)] == ["RUNNING"]
    kubernetes_api.change("workflows", "wf", {"spec": {"activeDeadlineSeconds": 0}})
    again.terminate()
    rays.ended(again, 143)
    rays.until(lambda: [job["status"] for job in head.jobs_beside(before)] == ["STOPPED"], "the job's end")
    assert head.drivers() == []
    assert work.names("waiting") == []
    assert {json.loads(work.read(name))["holder"] for name in work.names("leases/phases")} == {None}


def test_a_wrong_token_is_one_clear_error(new_work):
    work = new_work(epochs=1)
    out = rays.ended(work.train(RAY_AUTH_TOKEN="wrong"), 1)
    assert "does not let us in" in out
    assert "RAY_AUTH_TOKEN" in out.partition("remedy:")[2]


@pytest.mark.soak
def test_what_the_driver_says_arrives_and_is_not_tried_again(head, new_work):
    """The rate ruins the model at its second step: the user must mend it, and another attempt would not."""
    work = new_work(learning_rate=1e30, warmup_ratio=0.0)
    before = {job["submission_id"] for job in head.jobs()}
    out = rays.ended(work.train(), 1)
    assert "components.common.errors.DataError" in out
    assert "lower the phase's `learning_rate`" in out.partition("remedy:")[2]
    assert [job["status"] for job in head.jobs() if job["submission_id"] not in before] == ["FAILED"]
