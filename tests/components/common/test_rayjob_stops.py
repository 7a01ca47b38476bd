"""A step that is told to stop while its RayJob works: by the cluster, by the run's end, or at a laptop."""

import signal

import pytest

from components.common.errand import run_errand
from components.common.launcher import StepFailed
from tests.kubernetes_api import kuberay as rayjobs
from tests.kubernetes_api.kuberay import FIRST

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(autouse=True)
def _short_watches(kubernetes_api) -> None:
    kubernetes_api.watch_seconds = 0.5  # a signal just before a read is seen at its end


def waits(server):
    """Whether a step waits: it watches its RayJob."""
    return lambda: any(query.get("watch") for _, _, query in server.requests)


def test_an_evicted_pod_leaves_its_rayjob(kuberay, spec, monkeypatch, stop_when) -> None:
    rayjobs.pipeline(monkeypatch, kuberay.server, "r1")
    stop_when(waits(kuberay.server), signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        run_errand(rayjobs.errand_of(), spec)
    assert stop.value.code == 143
    assert kuberay.server.names("rayjobs") == [FIRST]
    again = kuberay.send(spec)
    kuberay.start(FIRST)
    kuberay.succeed(FIRST)
    assert again.result(30).ours
    assert len(kuberay.server.asked("POST")) == 1


@pytest.mark.parametrize("ending", [{"shutdown": "Terminate"}, {"activeDeadlineSeconds": 0}])
def test_a_run_that_is_being_ended_takes_its_rayjob_along(kuberay, spec, monkeypatch, ending, stop_when) -> None:
    rayjobs.pipeline(monkeypatch, kuberay.server, "r1")
    kuberay.server.change("workflows", "wf-r1", {"spec": ending})
    stop_when(waits(kuberay.server), signal.SIGTERM)
    with pytest.raises(SystemExit):
        run_errand(rayjobs.errand_of(), spec)
    assert kuberay.server.names("rayjobs") == []


def test_a_run_that_has_failed_takes_its_rayjob_along(kuberay, spec, monkeypatch, stop_when) -> None:
    rayjobs.pipeline(monkeypatch, kuberay.server, "r1")

    def fails() -> bool:
        there = waits(kuberay.server)()
        if there:
            kuberay.server.change("workflows", "wf-r1", {"status": {"phase": "Failed"}})
        return there

    stop_when(fails, signal.SIGTERM)
    with pytest.raises(SystemExit):
        run_errand(rayjobs.errand_of(), spec)
    assert kuberay.server.names("rayjobs") == []


def test_a_pod_whose_workflow_is_gone_makes_no_rayjob(kuberay, spec, monkeypatch) -> None:
    monkeypatch.setenv("PHASETUNE_WORKFLOW", "wf-gone")
    monkeypatch.setenv("KFP_RUN_ID", "r9")
    with pytest.raises(StepFailed, match="the run is being ended"):
        run_errand(rayjobs.errand_of(), spec)
    assert not kuberay.server.asked("POST")


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_laptop_that_stops_leaves_nothing(kuberay, spec, number, error, stop_when) -> None:
    stop_when(waits(kuberay.server), number)
    with pytest.raises(error):
        run_errand(rayjobs.errand_of(), spec)
    assert kuberay.server.names("rayjobs") == []


def test_a_laptop_that_stops_leaves_what_others_wait_for(kuberay, spec, stop_when) -> None:
    other = kuberay.send(spec, rayjobs.errand_of("other"))
    kuberay.made(FIRST)
    rayjobs.until(waits(kuberay.server))
    seen = len(kuberay.server.requests)
    stop_when(lambda: any(query.get("watch") for _, _, query in kuberay.server.requests[seen:]), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_errand(rayjobs.errand_of("ours"), spec)
    assert len(rayjobs.claims(kuberay.server.get("rayjobs", FIRST))) == 1
    kuberay.start(FIRST)
    kuberay.succeed(FIRST)
    assert other.result(30).ours
