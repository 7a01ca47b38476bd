"""An API that is away, fails, cuts its streams and forgets: the wait goes on, and nothing is made or printed twice."""

import threading

import pytest

from components.common import kubernetes_api
from components.common.errors import UserError
from components.common.kubernetes_api import connect
from components.common.kubernetes_errors import Expired
from tests.kubernetes_api import kuberay as rayjobs
from tests.kubernetes_api.kuberay import FIRST

pytestmark = pytest.mark.timeout(90)


def watching(server) -> int:
    """Watches that were begun."""
    return sum("watch" in query for _, _, query in list(server.requests))


def test_an_api_that_is_away_is_waited_for(kuberay, spec, capfd) -> None:
    done = kuberay.send(spec)
    kuberay.made(FIRST)
    pod = kuberay.start(FIRST, "one")
    rayjobs.until(lambda: watching(kuberay.server))
    kuberay.server.go_away()
    tried = len(kuberay.server.requests)
    kuberay.server.print(pod, "two")
    rayjobs.until(lambda: len(kuberay.server.requests) > tried + 20)
    assert not done.done()
    kuberay.succeed(FIRST)
    kuberay.server.come_back()
    assert done.result(30).ours
    assert len(kuberay.server.asked("POST")) == 1
    out = capfd.readouterr().out
    assert (out.count("] one\n"), out.count("] two\n")) == (1, 1)


def test_it_is_waited_for_as_long_as_it_takes(monkeypatch) -> None:
    """Two minutes away, and two hours, by a clock of ours."""
    now = [0.0]
    failures = iter(range(10_000))

    def ask() -> str:
        if next(failures) < 1000:
            raise ConnectionError("refused")
        return "here"

    monkeypatch.setattr(kubernetes_api, "say", lambda **event: told.append(event))
    told: list[dict] = []
    cluster = kubernetes_api.Cluster(
        None, "phasetune", float("inf"), lambda: now[0], lambda seconds: now.__setitem__(0, now[0] + seconds)
    )
    assert cluster._ask("list pods", ask) == "here"
    assert now[0] > 7200
    assert len(told) == 1
    failures, cluster.patience, began = iter(range(10_000)), 300.0, now[0]
    with pytest.raises(UserError, match="has not answered for"):
        cluster._ask("list pods", ask)
    assert 300 <= now[0] - began < 330


def test_a_watch_that_is_cut_is_begun_again(kuberay, spec) -> None:
    done = kuberay.send(spec)
    kuberay.made(FIRST)
    kuberay.start(FIRST)
    for _ in range(5):
        seen = watching(kuberay.server)
        kuberay.server.cut()
        rayjobs.until(lambda seen=seen: watching(kuberay.server) > seen)
    kuberay.succeed(FIRST)
    assert done.result(30).ours


def test_a_watch_that_times_out_goes_on_where_it_was(kuberay, spec) -> None:
    kuberay.server.watch_seconds = 0.02
    done = kuberay.send(spec)
    kuberay.made(FIRST)
    rayjobs.until(lambda: watching(kuberay.server) > 10)
    kuberay.server.put("pods", "other")  # the cluster's version moves on; a bookmark tells it
    versions = lambda: {query["resourceVersion"] for _, _, query in list(kuberay.server.requests) if "watch" in query}  # noqa: E731  # a name for one line
    rayjobs.until(lambda: len(versions()) > 1)
    kuberay.start(FIRST)
    kuberay.succeed(FIRST)
    assert done.result(30).ours
    reads = [path for path in kuberay.server.asked("GET") if path.endswith(FIRST)]
    assert len(reads) <= 3  # once at first, and when it is left: not for every watch


def test_a_version_that_is_forgotten_is_read_again(kuberay, spec) -> None:
    done = kuberay.send(spec)
    kuberay.made(FIRST)
    kuberay.start(FIRST)
    rayjobs.until(lambda: watching(kuberay.server))
    kuberay.server.go_away()  # so that the end is not seen as it comes
    kuberay.succeed(FIRST)
    kuberay.server.forget()
    kuberay.server.come_back()
    assert done.result(30).ours


def test_gone_is_told(kuberay) -> None:
    kuberay.server.put("rayjobs", "x", spec={})
    kuberay.server.forget()
    with pytest.raises(Expired):
        list(connect().watch("x", "1", 1))
    kuberay.server.faults = [410]
    with pytest.raises(Expired):
        list(connect().watch("x", "1", 1))


def test_errors_of_the_server_pass(kuberay, spec) -> None:
    kuberay.server.faults = [500, 503, "cut", 429, 500]
    done = kuberay.send(spec)
    kuberay.made(FIRST)
    kuberay.server.faults = [502, "cut", 500, 504] * 3
    kuberay.start(FIRST)
    rayjobs.until(lambda: not kuberay.server.faults)
    kuberay.succeed(FIRST)
    assert done.result(30).ours
    assert kuberay.server.names("rayjobs") == []


def test_an_answer_that_is_lost_makes_no_second_rayjob(kuberay, spec) -> None:
    kuberay.server.faults = ["", "lost"]  # the list is answered; of the creation we never hear
    done = kuberay.send(spec)
    kuberay.made(FIRST)
    kuberay.start(FIRST)
    kuberay.succeed(FIRST)
    assert done.result(30).ours
    assert len(kuberay.server.asked("POST")) == 2
    assert set(kuberay.server.names("rayjobs")) <= {FIRST}


def test_a_refusal_says_what_to_do(kuberay, spec) -> None:
    kuberay.server.faults = [403]
    with pytest.raises(UserError, match="refuses to list RayJobs in the namespace phasetune") as told:
        kuberay.send(spec).result(30)
    assert "k8s/base/access" in told.value.remedy
    kuberay.server.faults = ["", 404]
    with pytest.raises(UserError, match="cannot make the RayJob") as told:
        kuberay.send(spec).result(30)
    assert "install KubeRay" in told.value.remedy
    kuberay.server.check = lambda job: ['unknown field "spec.x"']
    with pytest.raises(UserError, match=r"does not accept .*unknown field"):
        kuberay.send(spec).result(30)


def test_a_token_that_is_renewed_late_is_waited_for(kuberay, spec) -> None:
    done = kuberay.send(spec)
    kuberay.made(FIRST)
    rayjobs.until(lambda: watching(kuberay.server))
    kuberay.server.faults = [401, 401, 403]
    kuberay.server.cut()
    rayjobs.until(lambda: not kuberay.server.faults)
    kuberay.start(FIRST)
    kuberay.succeed(FIRST)
    assert done.result(30).ours


def test_a_step_beside_it_writes_to_the_rayjob_meanwhile(kuberay, spec, monkeypatch) -> None:
    """A claim is added though KubeRay changes the RayJob all the time."""
    done = kuberay.send(spec)
    kuberay.made(FIRST)
    ended = threading.Event()

    def busy() -> None:
        pause = 0.005  # at first too often for anybody to come between, in the end seldom enough on any machine
        while not ended.wait(pause):
            pause *= 1.1
            kuberay.server.change(
                "rayjobs", FIRST, {"metadata": {"labels": {"beat": str(len(kuberay.server.requests))}}}
            )

    def waits() -> list[str]:
        return [one for one in kuberay.server.get("rayjobs", FIRST)["metadata"]["annotations"] if "waits" in one]

    threading.Thread(target=busy, daemon=True).start()
    try:
        other = kuberay.send(spec, rayjobs.errand_of("other"))
        rayjobs.until(lambda: len(waits()) == 2)
    finally:
        ended.set()
    kuberay.start(FIRST)
    kuberay.succeed(FIRST)
    assert (done.result(30).ours, other.result(30).ours) == (True, False)
