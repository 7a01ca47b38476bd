"""How many RayJobs a run may make for one result, however long each works and however often its step is started."""

import time
from datetime import UTC, datetime

import pytest

from components.common import leaving, rayjob_wait
from components.common.launcher import StepFailed
from components.common.records import RUNS
from tests.kubernetes_api import kuberay as rayjobs
from tests.kubernetes_api.kuberay import FIRST, SECOND

pytestmark = pytest.mark.timeout(90)
TWO_HOURS = 7200.0


class Clock:
    """The time as `leaving` reads it: that of this machine, and what a test adds."""

    def __init__(self) -> None:
        self.added = 0.0

    def time(self) -> float:
        return time.time() + self.added

    def __str__(self) -> str:
        return datetime.fromtimestamp(self.time(), UTC).isoformat()


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(leaving, "time", made)
    return made


@pytest.fixture
def long_attempts(kuberay, clock):
    """Every RayJob fails after two hours."""

    def work(job: dict) -> None:
        clock.added += TWO_HOURS
        kuberay.server.change("rayjobs", job["metadata"]["name"], {"status": {"endTime": str(clock)}})
        kuberay.fail(job["metadata"]["name"], "lost a node")

    kuberay.server.on_create = work
    return kuberay


def made(kuberay) -> int:
    return len(kuberay.server.asked("POST"))


def test_attempts_of_hours_are_limited_over_all_pods_of_a_step(long_attempts, spec, clock, monkeypatch) -> None:
    rayjobs.pipeline(monkeypatch, long_attempts.server, "r1")
    for _ in range(4):
        with pytest.raises(StepFailed, match="3 RayJobs of train"):
            long_attempts.send(spec).result(30)
        clock.added += 60
    assert made(long_attempts) == 3
    clock.added += 900  # the user has mended something, and starts the run again
    with pytest.raises(StepFailed, match=f"3 RayJobs .* {FIRST[:-1]}6"):
        long_attempts.send(spec).result(30)
    assert made(long_attempts) == 6


def test_a_pod_that_comes_while_an_attempt_works_counts_those_before_it(long_attempts, tmp_path, clock, monkeypatch):
    rayjobs.pipeline(monkeypatch, long_attempts.server, "r1")
    spec, fail = rayjobs.spec_of(tmp_path / "store", kubernetes={"attempts": 2}), long_attempts.server.on_create
    long_attempts.server.on_create = lambda job: fail(job) if job["metadata"]["name"] == FIRST else None
    evicted = long_attempts.send(spec)  # its pod is killed: nothing ends it in order
    long_attempts.made(SECOND)
    clock.added += TWO_HOURS
    asked = sum("watch" in query for _, _, query in long_attempts.server.requests)
    again = long_attempts.send(spec)
    rayjobs.until(lambda: sum("watch" in query for _, _, query in long_attempts.server.requests) > asked)
    fail(long_attempts.server.get("rayjobs", SECOND))
    for step in (evicted, again):
        with pytest.raises(StepFailed, match=f"2 RayJobs .* {SECOND}"):
            step.result(30)
    assert made(long_attempts) == 2


def test_a_run_that_shares_attempts_counts_them_as_its_own(long_attempts, tmp_path, monkeypatch) -> None:
    spec, fail = rayjobs.spec_of(tmp_path / "store", kubernetes={"attempts": 2}), long_attempts.server.on_create
    long_attempts.server.on_create = lambda job: None
    steps = []
    for run in ("r1", "r2"):
        rayjobs.pipeline(monkeypatch, long_attempts.server, run)
        steps.append(long_attempts.send(spec, rayjobs.errand_of(run)))
        rayjobs.until(lambda run=run: run in _waiting(long_attempts, FIRST))
    fail(long_attempts.server.get("rayjobs", FIRST))
    long_attempts.made(SECOND)
    rayjobs.until(lambda: _waiting(long_attempts, SECOND) >= {"r1", "r2"})
    fail(long_attempts.server.get("rayjobs", SECOND))
    for step in steps:
        with pytest.raises(StepFailed, match="2 RayJobs"):
            step.result(30)
    with pytest.raises(StepFailed, match="2 RayJobs"):  # Kubeflow starts the step of the second run again
        long_attempts.send(spec, rayjobs.errand_of("r2")).result(30)
    assert long_attempts.server.names("rayjobs") == [FIRST, SECOND]


def _waiting(kuberay, name: str) -> set[str]:
    """The runs that a RayJob names."""
    owners = kuberay.server.get("rayjobs", name) or {"metadata": {}}
    return {owner["name"].removeprefix("wf-") for owner in owners["metadata"].get("ownerReferences") or []}


def test_attempts_that_lost_their_head_count_though_they_are_deleted(kuberay, tmp_path, clock, monkeypatch) -> None:
    monkeypatch.setattr(rayjob_wait, "_LOOK", 0.01)
    monkeypatch.setattr(rayjob_wait, "_GRACE", 0.1)
    kuberay.server.watch_seconds = 0.05
    rayjobs.pipeline(monkeypatch, kuberay.server, "r1")
    spec = rayjobs.spec_of(tmp_path / "store", kubernetes={"attempts": 2})

    def lose(job: dict) -> None:
        kuberay.start(job["metadata"]["name"])
        [head] = [pod for pod in kuberay.server.names("pods") if pod.endswith("-head")]
        asked = _heads_asked(kuberay)
        rayjobs.until(lambda: _heads_asked(kuberay) > asked + 1)
        clock.added += TWO_HOURS
        kuberay.server.remove("pods", head)

    kuberay.server.on_create = lose
    for _ in range(4):
        with pytest.raises(StepFailed, match=f"2 RayJobs .* {SECOND}: lost, its head is gone"):
            kuberay.send(spec).result(30)
        clock.added += 60
    assert made(kuberay) == 2
    assert kuberay.server.names("rayjobs") == []
    assert len(list(kuberay.store.objects.list(RUNS))) == 1
    clock.added += 900
    with pytest.raises(StepFailed, match=f"2 RayJobs .* {SECOND}: lost"):
        kuberay.send(spec).result(30)
    assert made(kuberay) == 4


def _heads_asked(kuberay) -> int:
    return sum("node-type=head" in query.get("labelSelector", "") for _, _, query in kuberay.server.requests)
