"""A step that has its work done by a RayJob, against an API server that behaves as the real one does."""

from pathlib import Path

import pytest

from components.common import rayjob_wait
from components.common.errand import failure_line, run_errand
from components.common.errors import DataError, UserError
from components.common.launcher import StepFailed
from tests.kubernetes_api import kuberay as rayjobs
from tests.kubernetes_api.kuberay import FIRST, SECOND

pytestmark = pytest.mark.timeout(90)


def test_a_rayjob_is_made_followed_and_done(kuberay, spec, capfd) -> None:
    done = kuberay.send(spec)
    kuberay.made(FIRST)
    pod = kuberay.start(FIRST, "step 1 of 2", "progress: train: 1 of 2 steps")
    kuberay.server.print(pod, "step 2 of 2")
    kuberay.succeed(FIRST)
    assert done.result(30).ours
    out = capfd.readouterr().out
    assert out.count(f"[{FIRST}] step 1 of 2\n") == out.count(f"[{FIRST}] step 2 of 2\n") == 1
    assert f"made the RayJob {FIRST} in phasetune" in out
    assert kuberay.server.names("rayjobs") == []  # a laptop's run leaves nothing behind


def test_the_launcher_comes_here(kuberay, spec) -> None:
    kuberay.server.on_create = lambda job: kuberay.succeed(job["metadata"]["name"])
    assert run_errand(rayjobs.errand_of(), spec).ours


def test_a_retried_step_attaches_to_its_rayjob(kuberay, spec, monkeypatch) -> None:
    rayjobs.pipeline(monkeypatch, kuberay.server, "r1")
    first = kuberay.send(spec)  # its pod is killed: nothing ends it in order
    kuberay.made(FIRST)
    kuberay.start(FIRST)
    seen = len(kuberay.server.requests)
    second = kuberay.send(spec)
    rayjobs.until(
        lambda: (
            ("GET", f"/{FIRST}") in [(how, path[-len(FIRST) - 1 :]) for how, path, _ in kuberay.server.requests[seen:]]
        )
    )
    kuberay.succeed(FIRST)
    assert second.result(30).ours
    assert first.result(30).ours
    assert len(kuberay.server.asked("POST")) == 1
    [owner] = kuberay.server.get("rayjobs", FIRST)["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("Workflow", "wf-r1")


def test_two_runs_share_one_rayjob(kuberay, spec, monkeypatch) -> None:
    rayjobs.pipeline(monkeypatch, kuberay.server, "r1")
    first = kuberay.send(spec, rayjobs.errand_of("ours"))
    kuberay.made(FIRST)
    rayjobs.pipeline(monkeypatch, kuberay.server, "r2")
    second = kuberay.send(spec, rayjobs.errand_of("theirs"))
    owners = rayjobs.until(lambda: _two(kuberay.server.get("rayjobs", FIRST)["metadata"].get("ownerReferences")))
    assert [owner["name"] for owner in owners] == ["wf-r1", "wf-r2"]
    kuberay.start(FIRST)
    kuberay.succeed(FIRST)
    assert (first.result(30).ours, second.result(30).ours) == (True, False)
    assert len(kuberay.server.asked("POST")) == 1
    kuberay.server.remove("workflows", "wf-r1")
    assert kuberay.server.names("rayjobs") == [FIRST]
    kuberay.server.remove("workflows", "wf-r2")
    assert kuberay.server.names("rayjobs") == []


def _two(owners: list | None) -> list | None:
    return owners if owners and len(owners) == 2 else None


def test_runs_that_come_at_once_make_one_rayjob(kuberay, spec) -> None:
    waiting = [kuberay.send(spec, rayjobs.errand_of(f"run-{number}")) for number in range(6)]
    kuberay.made(FIRST)
    rayjobs.until(lambda: len(rayjobs.claims(kuberay.server.get("rayjobs", FIRST))) == 6)
    kuberay.start(FIRST)
    kuberay.succeed(FIRST)
    assert sorted(one.result(30).ours for one in waiting) == [False] * 5 + [True]
    assert kuberay.server.names("rayjobs") == []


def test_a_failed_attempt_is_followed_by_the_next(kuberay, spec) -> None:
    done = kuberay.send(spec)
    kuberay.made(FIRST)
    kuberay.start(FIRST)
    kuberay.fail(FIRST)
    kuberay.made(SECOND)
    kuberay.start(SECOND)
    kuberay.succeed(SECOND)
    assert done.result(30).ours
    assert kuberay.server.names("rayjobs") == []


def test_attempts_come_to_an_end(kuberay, tmp_path, monkeypatch) -> None:
    rayjobs.pipeline(monkeypatch, kuberay.server, "r1")
    spec = rayjobs.spec_of(tmp_path / "store", kubernetes={"attempts": 2})
    kuberay.server.on_create = lambda job: kuberay.fail(job["metadata"]["name"], "lost a worker\nMemoryError: no room")
    with pytest.raises(StepFailed, match=rf"2 RayJobs .* {SECOND}: failed, AppFailed: MemoryError: no room"):
        kuberay.send(spec).result(30)
    assert sorted(kuberay.server.names("rayjobs")) == [FIRST, SECOND]
    with pytest.raises(StepFailed, match="2 RayJobs"):  # the retried pod finds both of them
        kuberay.send(spec).result(30)
    assert len(kuberay.server.asked("POST")) == 2
    rayjobs.pipeline(monkeypatch, kuberay.server, "r2")  # attempts of another run do not count
    with pytest.raises(StepFailed, match=f"2 RayJobs .* {FIRST[:-1]}4"):
        kuberay.send(spec).result(30)


def test_what_the_user_can_mend_ends_it_at_once(kuberay, spec) -> None:
    done = kuberay.send(spec)
    kuberay.made(FIRST)
    pod = kuberay.start(FIRST, "reading")
    kuberay.server.print(pod, "Traceback ...", failure_line(DataError("row 3 is empty", "remove it")))
    kuberay.fail(FIRST)
    with pytest.raises(DataError, match="row 3 is empty"):
        done.result(30)
    assert len(kuberay.server.asked("POST")) == 1


def test_a_retry_of_kubeflows_is_told_the_same_and_one_of_the_users_tries_again(kuberay, spec, monkeypatch) -> None:
    rayjobs.pipeline(monkeypatch, kuberay.server, "r1")
    told = failure_line(UserError("the disk is full", "free some space"))
    kuberay.server.on_create = lambda job: kuberay.fail(job["metadata"]["name"], told)
    for words in ("the disk is full", rf"the disk is full \(said by the RayJob {FIRST}\)"):
        with pytest.raises(UserError, match=words):
            kuberay.send(spec).result(30)
    assert len(kuberay.server.asked("POST")) == 1
    kuberay.server.change("rayjobs", FIRST, {"status": {"endTime": "2026-01-01T00:00:00Z"}})
    kuberay.server.on_create = lambda job: kuberay.succeed(job["metadata"]["name"])
    assert kuberay.send(spec).result(30).ours
    assert kuberay.server.names("rayjobs") == [FIRST, SECOND]


def test_the_status_tells_it_where_the_log_is_gone(kuberay, spec) -> None:
    told = failure_line(UserError("the disk is full", "free some space"))
    kuberay.server.on_create = lambda job: kuberay.fail(job["metadata"]["name"], f"last logs:\n{told}\n")
    with pytest.raises(UserError, match="the disk is full"):
        kuberay.send(spec).result(30)


@pytest.mark.parametrize("driver", ["STOPPED", "FAILED"])
def test_a_driver_that_was_stopped_is_a_failed_attempt(kuberay, spec, driver) -> None:
    done = kuberay.send(spec)
    kuberay.made(FIRST)
    kuberay.start(FIRST)
    kuberay.server.end_log(next(pod for pod in kuberay.server.names("pods") if "-s" in pod))
    kuberay.server.status(FIRST, "Complete", driver)
    kuberay.made(SECOND)
    kuberay.succeed(SECOND)
    assert done.result(30).ours


def test_what_kuberay_refuses_is_not_tried_again(kuberay, spec) -> None:
    kuberay.server.on_create = lambda job: kuberay.server.status(
        job["metadata"]["name"], "ValidationFailed", message="authOptions.mode is 'token' but ..."
    )
    with pytest.raises(UserError, match=r"KubeRay does not take .*authOptions"):
        kuberay.send(spec).result(30)
    assert len(kuberay.server.asked("POST")) == 1


def test_a_result_that_was_collected_is_made_again(kuberay, spec, monkeypatch) -> None:
    rayjobs.pipeline(monkeypatch, kuberay.server, "r1")
    first = kuberay.send(spec)
    kuberay.made(FIRST)
    kuberay.start(FIRST)
    kuberay.succeed(FIRST)
    first.result(30)
    assert kuberay.server.names("rayjobs") == [FIRST]
    kuberay.store.entries.delete("phases", "0123456789abcdef0123456789abcdef")
    second = kuberay.send(spec)
    kuberay.made(SECOND)
    kuberay.succeed(SECOND)
    assert second.result(30).ours


def test_a_result_that_another_run_made_meanwhile_is_taken(kuberay, spec, monkeypatch) -> None:
    rayjobs.pipeline(monkeypatch, kuberay.server, "r1")
    kuberay.server.on_create = lambda job: kuberay.succeed(job["metadata"]["name"])
    kuberay.send(spec).result(30)
    other = kuberay.send(spec, rayjobs.errand_of("other"))  # it asked the store before the RayJob had ended
    assert not other.result(30).ours
    assert len(kuberay.server.asked("POST")) == 1


def test_a_driver_that_leaves_no_result_has_failed(kuberay, tmp_path) -> None:
    spec = rayjobs.spec_of(tmp_path / "store", kubernetes={"attempts": 1})
    kuberay.server.on_create = lambda job: kuberay.server.status(job["metadata"]["name"], "Complete", "SUCCEEDED")
    with pytest.raises(StepFailed, match="not in the store"):
        kuberay.send(spec).result(30)


def test_another_image_is_no_reason_to_share(kuberay, spec, tmp_path) -> None:
    done = kuberay.send(spec)
    kuberay.made(FIRST)
    other = rayjobs.spec_of(tmp_path / "store", kubernetes={"image": "registry/phasetune:2"})
    with pytest.raises(UserError, match=f"the RayJob {FIRST} makes phases/.* in another way") as told:
        kuberay.send(other, rayjobs.errand_of("other")).result(30)
    assert f"kubectl -n phasetune delete rayjob {FIRST}" in told.value.remedy
    kuberay.start(FIRST)
    kuberay.succeed(FIRST)
    done.result(30)


def test_somebody_elses_rayjob_under_our_name(kuberay, spec) -> None:
    kuberay.server.put("rayjobs", FIRST, spec={})
    with pytest.raises(UserError, match="makes something else"):
        kuberay.send(spec).result(30)


def test_a_deleted_rayjob_is_made_again(kuberay, spec) -> None:
    done = kuberay.send(spec)
    kuberay.made(FIRST)
    kuberay.start(FIRST)
    kuberay.server.change("rayjobs", FIRST, {"metadata": {"finalizers": ["ray.io/rayjob-finalizer"]}})
    kuberay.server.remove("rayjobs", FIRST)  # it is still there for a while, as it is being ended
    kuberay.made(SECOND)
    kuberay.server.change("rayjobs", FIRST, {"metadata": {"finalizers": None}})
    kuberay.server.remove("rayjobs", FIRST)
    kuberay.succeed(SECOND)
    assert done.result(30).ours


def test_a_rayjob_that_is_deleted_with_its_run_is_not_made_again(kuberay, spec, monkeypatch) -> None:
    rayjobs.pipeline(monkeypatch, kuberay.server, "r1")
    done = kuberay.send(spec)
    kuberay.made(FIRST)
    kuberay.start(FIRST)
    kuberay.server.change("workflows", "wf-r1", {"spec": {"activeDeadlineSeconds": 0}})
    kuberay.server.remove("rayjobs", FIRST)
    with pytest.raises(StepFailed, match="the run is being ended"):
        done.result(30)
    assert len(kuberay.server.asked("POST")) == 1


def test_the_loss_of_the_head_begins_a_new_attempt(kuberay, spec, monkeypatch) -> None:
    monkeypatch.setattr(rayjob_wait, "_LOOK", 0.01)
    monkeypatch.setattr(rayjob_wait, "_GRACE", 0.2)
    kuberay.server.watch_seconds = 0.05
    done = kuberay.send(spec)
    kuberay.made(FIRST)
    kuberay.start(FIRST)
    head = next(pod for pod in kuberay.server.names("pods") if pod.endswith("-head"))
    rayjobs.until(lambda: kuberay.server.asked("GET", "/pods"))
    rayjobs.until(lambda: any("ray.io/cluster" in q.get("labelSelector", "") for _, _, q in kuberay.server.requests))
    labels = kuberay.server.get("pods", head)["metadata"]["labels"]
    kuberay.server.remove("pods", head)
    kuberay.server.put("pods", f"{head}-again", labels=labels, status={"phase": "Running"})  # with nothing in it
    kuberay.made(SECOND)
    assert kuberay.server.names("rayjobs") == [SECOND]  # nobody else would have ended the first one
    kuberay.succeed(SECOND)
    assert done.result(30).ours


def test_a_queue_is_waited_in_and_shown(kuberay, spec, monkeypatch, capfd, tmp_path) -> None:
    monkeypatch.setenv("PHASETUNE_EVENTS", str(tmp_path / "events"))
    kuberay.server.watch_seconds = 0.05

    def queue(job: dict) -> None:
        pending = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": "insufficient quota"}
        kuberay.server.put(
            "workloads",
            "w",
            labels={"kueue.x-k8s.io/job-uid": job["metadata"]["uid"]},
            status={"conditions": [pending]},
        )
        kuberay.server.status(job["metadata"]["name"], "Suspended")

    kuberay.server.on_create = queue
    done = kuberay.send(spec)
    kuberay.made(FIRST)
    asked = len(kuberay.server.asked("GET", "/rayjobs"))
    rayjobs.until(lambda: len(kuberay.server.asked("GET", "/rayjobs")) > asked + 20)  # it goes on and on
    kuberay.start(FIRST)
    kuberay.server.status(FIRST, "Suspended")  # taken away again for something more urgent
    kuberay.server.change("rayjobs", FIRST, {"spec": {"suspend": True}})
    kuberay.start(FIRST)
    kuberay.succeed(FIRST)
    waited = done.result(30).waited
    assert waited > 0
    events = (tmp_path / "events").read_text()
    assert '"state": "waiting"' in events
    assert f"the RayJob {FIRST} in the queue (insufficient quota)" in events
    out = capfd.readouterr().out
    assert 1 <= out.count("in the queue") <= 3  # not at every watch


def test_a_cluster_without_kueue_needs_none(kuberay, tmp_path) -> None:
    spec = rayjobs.spec_of(tmp_path / "store", kubernetes={"queue": None})
    kuberay.server.on_create = lambda job: kuberay.succeed(job["metadata"]["name"])
    kuberay.send(spec).result(30)
    assert not kuberay.server.asked("GET", "/workloads")


def test_no_cluster_is_said(spec, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    with pytest.raises(UserError, match="no Kubernetes cluster"):
        run_errand(rayjobs.errand_of(), spec)
