"""A day of waiting keeps no more than an hour of it, by a clock that we turn."""

import itertools
from collections.abc import Iterator

import pytest

from components.common import rayjob_log
from components.common.kubernetes_api import Cluster
from components.common.kubernetes_errors import Expired
from components.common.rayjob_log import LogFollower
from components.common.rayjob_state import State
from components.common.rayjob_wait import Waiting
from tests.simulated_day import DAY, HOUR, Day, constant

EVENTS, LINES = 100_000, 50_000


class Simulated(Day, Cluster):
    """A cluster in which a day passes as fast as it is asked."""

    def __init__(self) -> None:
        Day.__init__(self)
        self.asked = 0
        Cluster.__init__(self, None, "phasetune", float("inf"), lambda: self.now, self.pass_)
        self._versions = itertools.count(1)
        self._written = 0

    def job(self, name: str) -> dict:
        queued = self.now < 6 * HOUR
        machines = "Suspended" if queued else "Running" if self.now < DAY else "Complete"
        driver = "" if queued else "RUNNING" if self.now < DAY else "SUCCEEDED"
        version = next(self._versions)
        about = {"name": name, "uid": "u", "resourceVersion": str(version)}
        status = {"jobDeploymentStatus": machines, "jobStatus": driver, "message": f"{version} " * 200}
        return {"metadata": about, "spec": {"suspend": queued}, "status": {**status, "rayClusterName": "c"}}

    def watch(self, name: str, version: str, seconds: int) -> Iterator[dict]:
        self.asked += 1
        if self.asked % 50 == 0:
            raise Expired(version)
        end = self.now + (seconds if self.asked % 7 else 3)  # now and then it is cut
        while self.now < end:
            self.pass_(DAY / EVENTS)
            yield {"type": "MODIFIED", "object": self.job(name)}
        yield {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(next(self._versions))}}}

    def pods(self, selector: str) -> list[dict]:
        return [{"metadata": {"name": "pod", "uid": "h", "creationTimestamp": "t"}, "status": {"phase": "Running"}}]

    def workloads(self, selector: str) -> list[dict]:
        pending = {"type": "QuotaReserved", "status": "False", "message": f"no quota at {self.now}"}
        return [{"status": {"conditions": [pending]}}]

    def log(self, pod: str, container: str, since: int | None, follow: bool) -> Iterator[bytes]:
        self.asked += 1
        self._written -= 0 if since is None else min(self._written, 40)  # what was printed comes again
        until = self._written + (5000 if self.asked % 5 else 90)
        while self._written < min(until, LINES):
            self._written += 1
            at = self._written * DAY / LINES
            if at > self.now:
                self.pass_(at - self.now)
            hours, micros = divmod(int(at * 1e6), 3600 * 10**6)
            seconds, micros = divmod(micros, 10**6)
            clock = f"{hours % 24:02}:{seconds // 60:02}:{seconds % 60:02}.{micros:06}"
            stamp = f"2026-01-0{1 + hours // 24}T{clock}Z"
            yield f"{stamp} step {self._written} of {LINES}: {'x' * 80}".encode()


@pytest.mark.proof
@pytest.mark.timeout(120)
def test_a_day_of_events(traced, capsys) -> None:
    cluster = Simulated()
    ended = Waiting(cluster, cluster.job("x"), "train", ("phases", "k" * 32)).until_end()
    assert ended.state is State.DONE
    assert ended.waited == pytest.approx(6 * HOUR, abs=60)
    assert len(cluster.memory) == 24
    assert constant(cluster.memory), cluster.memory
    assert cluster.asked > 2000  # watches
    told = capsys.readouterr().out.count("in the queue")
    assert 300 <= told <= 361  # once a minute, for six hours


@pytest.mark.proof
@pytest.mark.timeout(120)
@pytest.mark.soak
def test_a_day_of_lines(traced, monkeypatch) -> None:
    monkeypatch.setattr(rayjob_log, "_PAUSE", 0.0)
    cluster, printed = Simulated(), itertools.count()
    follower = LogFollower(cluster, "x", lambda line: next(printed) and None)
    while cluster.now < DAY - 1:
        follower.follow_once(follow=True)
    assert next(printed) == LINES
    assert len(cluster.memory) >= 23
    assert constant(cluster.memory), cluster.memory
    assert len(follower.tail.splitlines()) == 200


def test_the_check_bites() -> None:
    assert not constant([0, 100_000, *(100_000 + hour * 50_000 for hour in range(22))])
