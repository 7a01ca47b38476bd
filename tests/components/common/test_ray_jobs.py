"""Jobs of a Ray cluster, against a small server that speaks the Jobs API and fails as it is told.

What a real Ray does is tested in tests/integration/test_jobs_api.py.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from components.common import jobs_api, leaving, waiting
from components.common.errand import ERRAND, Errand, failure_line
from components.common.errors import DataError, LeaseLost, UserError
from components.common.jobs_api import cancel_on_cluster, run_on_cluster
from components.common.launcher import StepFailed
from components.common.objects import open_objects
from components.common.spec import Spec
from components.common.store import Store
from tests.kubernetes_api import kuberay as rayjobs
from tests.services.ray_jobs import TOKEN, Jobs

KEY = "ab" * 16


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def cluster(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    def made() -> None:
        with store.make("phases", KEY, {}) as folder:
            (folder / "x").touch()

    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setattr(jobs_api, "_PAUSE", 0.01)
    monkeypatch.setattr(jobs_api, "_BETWEEN", 0.01)
    jobs = Jobs(made)
    yield jobs
    jobs.close()


@pytest.fixture
def spec(cluster: Jobs, store: Store) -> Spec:
    compute = {"ray": cluster.address, "kubernetes": {"environment": {"AWS_REGION": "here"}}}
    data = {"train": [{"path": "lab://instructions?count=9"}]}
    return Spec.model_validate({"name": "x", "data": data, "compute": compute, "store": str(store.root)})


def errand(run: str = "run-1") -> Errand:
    return Errand("train.main.1.s17", run, "phases", KEY, "components.training.step:run", {"context": "{}"})


def name(attempt: int) -> str:
    return f"phases-{KEY[:24]}-{attempt}"


def test_a_job_gets_the_errand_and_the_environment_and_nothing_else(cluster, spec, store):
    cluster.plans = [("SUCCEEDED", "all is well\n")]
    done = run_on_cluster(errand(), spec)
    assert done.ours
    asked = cluster.jobs[name(1)]["asked"]
    variables = asked["runtime_env"].pop("env_vars")
    assert asked["runtime_env"] == {}
    assert set(variables) == {ERRAND, "AWS_REGION", "RAY_JOB_STOP_WAIT_TIME_S"}
    assert Errand.decoded(variables[ERRAND]) == errand()
    assert list(open_objects(store.root).list(waiting.FOLDER)) == []


def test_a_log_is_printed_once_through_every_break(cluster, spec, capsys):
    lines = [f"line {number} of the log" for number in range(40)]
    cluster.plans = [("SUCCEEDED", "\n".join(lines) + "\nprogress: score: 3 of 4 rows\nno end")]
    cluster.faults = ["cut", "cut"]
    run_on_cluster(errand(), spec)
    printed = capsys.readouterr().out.splitlines()[1:]
    assert printed == [f"[{name(1)}] {line}" for line in [*lines, "progress: score: 3 of 4 rows", "no end"]]


def test_a_cluster_that_is_away_for_a_while_is_waited_for(cluster, spec, monkeypatch):
    monkeypatch.setattr("components.common.ray_jobs._FIRST_PAUSE", 0.01)
    cluster.plans = [("SUCCEEDED", "")]
    cluster.faults = [502, 503, 504, 502]
    assert run_on_cluster(errand(), spec).ours
    assert cluster.faults == []


def test_failed_and_lost_jobs_are_followed_by_others(cluster, spec):
    cluster.plans = [("FAILED", "Killed\n"), ("LOST", ""), ("SUCCEEDED", "")]
    run_on_cluster(errand(), spec)
    assert {job: about["status"] for job, about in cluster.jobs.items()} == {name(1): "FAILED", name(3): "SUCCEEDED"}


def test_the_attempts_come_to_an_end(cluster, spec):
    cluster.plans = [("FAILED", f"out of memory, {number}\n") for number in range(9)]
    with pytest.raises(StepFailed, match=f"{name(3)} ended as FAILED: out of memory, 2"):
        run_on_cluster(errand(), spec)
    assert len(cluster.jobs) == 3


def test_what_the_user_can_mend_is_raised_at_once(cluster, spec):
    told = failure_line(DataError("row 7 is no row", "mend it"))
    cluster.plans = [("FAILED", f"Traceback\n{told}\nand a line of Ray's\n")]
    with pytest.raises(DataError) as raised:
        run_on_cluster(errand(), spec)
    assert (raised.value.message, raised.value.remedy) == ("row 7 is no row", "mend it")
    assert len(cluster.jobs) == 1


def test_a_lost_lease_is_another_attempts_business(cluster, spec):
    cluster.plans = [("FAILED", failure_line(LeaseLost("another took over", "again")) + "\n"), ("SUCCEEDED", "")]
    run_on_cluster(errand(), spec)
    assert len(cluster.jobs) == 2


def test_jobs_that_ended_before_or_make_something_else_are_passed_over(cluster, spec):
    cluster.known(name(1), "STOPPED")
    cluster.known(name(2), "RUNNING", **{"phasetune-digest": "of another store", "phasetune-run": "run-1"})
    cluster.plans = [("SUCCEEDED", "")]
    assert run_on_cluster(errand(), spec).ours
    assert cluster.jobs[name(3)]["status"] == "SUCCEEDED"


def test_a_job_under_way_is_shared(cluster, spec):
    about = {"phasetune-digest": jobs_api.digest_of(errand(), spec), "phasetune-run": "run-0"}
    cluster.known(name(1), "RUNNING", **about)["then"] = "SUCCEEDED"
    assert not run_on_cluster(errand(), spec).ours
    assert not any(asked.startswith("POST") for asked in cluster.asked)


def test_a_result_that_came_meanwhile_starts_nothing(cluster, spec, store):
    with store.make("phases", KEY, {}) as folder:
        (folder / "x").touch()
    assert not run_on_cluster(errand(), spec).ours
    assert cluster.jobs == {}


def works(cluster: Jobs) -> Callable[[], bool]:
    """Whether a step waits for a job at work: it reads its log."""
    return lambda: f"GET /api/jobs/{name(1)}/logs/tail" in cluster.asked


def test_an_evicted_pod_leaves_its_job_and_finds_it_again(cluster, spec, store, kubernetes_api, monkeypatch, stop_when):
    rayjobs.pipeline(monkeypatch, kubernetes_api, "r1")
    cluster.plans = [("FOREVER", "")]
    stop_when(works(cluster), signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        run_on_cluster(errand(), spec)
    assert stop.value.code == 143
    assert cluster.jobs[name(1)]["status"] == "RUNNING"
    cluster.jobs[name(1)]["then"] = "SUCCEEDED"
    assert run_on_cluster(errand(), spec).ours
    assert len(cluster.jobs) == 1


@pytest.mark.parametrize("ending", [{"shutdown": "Terminate"}, {"activeDeadlineSeconds": 0}, None])
def test_a_run_that_is_being_ended_takes_its_job_along(
    cluster, spec, store, kubernetes_api, monkeypatch, stop_when, ending
):
    """None: its Workflow is gone."""
    rayjobs.pipeline(monkeypatch, kubernetes_api, "r1")
    if ending is None:
        kubernetes_api.remove("workflows", "wf-r1")
    else:
        kubernetes_api.change("workflows", "wf-r1", {"spec": ending})
    cluster.plans = [("FOREVER", "")]
    stop_when(works(cluster), signal.SIGTERM)
    with pytest.raises(SystemExit):
        run_on_cluster(errand(), spec)
    assert cluster.jobs[name(1)]["status"] == "STOPPED"
    assert list(open_objects(store.root).list(waiting.FOLDER)) == []


def test_a_run_that_is_being_ended_leaves_what_another_waits_for(
    cluster, spec, store, kubernetes_api, monkeypatch, stop_when
):
    rayjobs.pipeline(monkeypatch, kubernetes_api, "r1")
    kubernetes_api.change("workflows", "wf-r1", {"spec": {"activeDeadlineSeconds": 0}})
    waiting.note(open_objects(store.root), name(1), "run-2")
    cluster.plans = [("FOREVER", "")]
    stop_when(works(cluster), signal.SIGTERM)
    with pytest.raises(SystemExit):
        run_on_cluster(errand(), spec)
    assert cluster.jobs[name(1)]["status"] == "RUNNING"


def test_a_pod_that_cannot_ask_kubernetes_leaves_its_job(cluster, spec, store, monkeypatch, stop_when):
    monkeypatch.setenv("PHASETUNE_WORKFLOW", "wf-r1")
    cluster.plans = [("FOREVER", "")]
    stop_when(works(cluster), signal.SIGTERM)
    with pytest.raises(SystemExit):
        run_on_cluster(errand(), spec)
    assert cluster.jobs[name(1)]["status"] == "RUNNING"


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_laptop_that_stops_leaves_nothing(cluster, spec, store, stop_when, number, error):
    cluster.plans = [("FOREVER", "")]
    stop_when(works(cluster), number)
    with pytest.raises(error):
        run_on_cluster(errand(), spec)
    assert cluster.jobs[name(1)]["status"] == "STOPPED"
    assert list(open_objects(store.root).list(waiting.FOLDER)) == []


def test_a_job_that_is_stopped_with_its_run_is_not_made_again(cluster, spec, kubernetes_api, monkeypatch):
    rayjobs.pipeline(monkeypatch, kubernetes_api, "r1")
    kubernetes_api.change("workflows", "wf-r1", {"spec": {"activeDeadlineSeconds": 0}})
    cluster.plans = [("STOPPED", "")] * 3
    with pytest.raises(StepFailed, match="the run is being ended"):
        run_on_cluster(errand(), spec)
    assert len(cluster.jobs) == 1


def test_a_retried_pod_counts_the_attempts_that_were(cluster, spec, store):
    cluster.plans = [("FAILED", "out of memory\n"), ("FAILED", "out of memory\n")]
    about = {"phasetune-digest": jobs_api.digest_of(errand(), spec), "phasetune-run": "run-1"}
    cluster.known(name(1), "FAILED", **about)["end_time"] = int(time.time() * 1000)
    with pytest.raises(StepFailed, match=f"{name(3)} ended as FAILED"):
        run_on_cluster(errand(), spec)
    for _ in range(3):  # Kubeflow's retries
        with pytest.raises(StepFailed, match=f"{name(3)} ended as FAILED: out of memory"):
            run_on_cluster(errand(), spec)
    assert len(cluster.jobs) == 3


def test_what_failed_long_ago_or_for_another_run_or_was_stopped_does_not_count(cluster, spec):
    ours, now = {"phasetune-digest": jobs_api.digest_of(errand(), spec), "phasetune-run": "run-1"}, time.time() * 1000
    cluster.known(name(1), "FAILED", **ours)["end_time"] = int(now - 3_600_000)
    cluster.known(name(2), "FAILED", **{**ours, "phasetune-run": "run-0"})["end_time"] = int(now)
    cluster.known(name(3), "FAILED", **{**ours, "phasetune-digest": "of another store"})["end_time"] = int(now)
    cluster.known(name(4), "STOPPED", **ours)["end_time"] = int(now)
    cluster.plans = [("FAILED", ""), ("FAILED", ""), ("SUCCEEDED", "")]
    assert run_on_cluster(errand(), spec).ours
    assert len(cluster.jobs) == 7


def took(cluster: Jobs, seconds: float) -> None:
    """Let every job have taken so long; the newest ended a minute ago."""
    for age, job in enumerate(reversed(list(cluster.jobs.values()))):
        job["end_time"] = int(1000 * (time.time() - 60 - seconds * age))


def test_attempts_of_hours_are_limited_over_all_pods_of_a_step(cluster, spec):
    cluster.plans = [("FAILED", "out of memory\n") for _ in range(99)]
    for _ in range(4):
        with pytest.raises(StepFailed, match=f"{name(3)} ended as FAILED: out of memory"):
            run_on_cluster(errand(), spec)
        took(cluster, 7200)
    assert len(cluster.jobs) == 3
    cluster.jobs[name(3)]["end_time"] -= 3_600_000  # the user has mended something, and starts the run again
    with pytest.raises(StepFailed, match=f"{name(6)} ended"):
        run_on_cluster(errand(), spec)
    assert len(cluster.jobs) == 6


def test_a_pod_that_comes_while_a_job_works_counts_those_before_it(cluster, spec, monkeypatch, stop_when):
    monkeypatch.setenv("PHASETUNE_WORKFLOW", "wf-r1")
    monkeypatch.setenv("KUBECONFIG", "/nonexistent")
    cluster.plans = [("FAILED", ""), ("FAILED", ""), ("FOREVER", ""), ("FAILED", "")]
    stop_when(lambda: f"GET /api/jobs/{name(3)}/logs/tail" in cluster.asked, signal.SIGTERM)
    with pytest.raises(SystemExit):
        run_on_cluster(errand(), spec)
    took(cluster, 7200)
    cluster.jobs[name(3)]["then"] = "FAILED"
    with pytest.raises(StepFailed, match=f"{name(3)} ended as FAILED"):
        run_on_cluster(errand(), spec)
    assert len(cluster.jobs) == 3


def test_jobs_that_a_cluster_forgot_count_as_well(cluster, spec, monkeypatch):
    cluster.plans = [("LOST", "")] * 99
    for _ in range(4):
        with pytest.raises(StepFailed, match=f"{name(3)} ended as LOST"):
            run_on_cluster(errand(), spec)
    assert sum(asked == "POST /api/jobs/" for asked in cluster.asked) == 3
    monkeypatch.setattr(leaving, "_RETRIED", 0.0)  # the user starts it again long afterwards
    with pytest.raises(StepFailed, match=f"{name(3)} ended as LOST"):
        run_on_cluster(errand(), spec)
    assert sum(asked == "POST /api/jobs/" for asked in cluster.asked) == 6


def test_a_retried_pod_is_told_the_same_and_the_user_tries_again_later(cluster, spec):
    cluster.plans = [("FAILED", failure_line(DataError("row 7 is no row", "mend it")) + "\n"), ("SUCCEEDED", "")]
    for words in ("row 7 is no row", rf"row 7 is no row \(said by the job {name(1)}\)"):
        with pytest.raises(DataError, match=words) as raised:
            run_on_cluster(errand(), spec)
    assert raised.value.remedy == f"mend it; to try again at once: ray job delete {name(1)} --address {cluster.address}"
    assert len(cluster.jobs) == 1
    cluster.jobs[name(1)]["end_time"] -= 3_600_000
    assert run_on_cluster(errand(), spec).ours


def test_a_wrong_token_and_a_cluster_that_never_answers_are_said_plainly(cluster, spec, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "abracadabra")
    with pytest.raises(UserError, match="does not let us in"):
        run_on_cluster(errand(), spec)
    monkeypatch.setenv("PHASETUNE_RAY_PATIENCE", "0.2")
    compute = spec.compute.model_copy(update={"ray": "http://127.0.0.1:1"})
    with pytest.raises(UserError, match="has not answered"):
        run_on_cluster(errand(), spec.model_copy(update={"compute": compute}))


def test_ray_address_does_not_lead_elsewhere(cluster, spec, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    cluster.plans = [("SUCCEEDED", "")]
    assert run_on_cluster(errand(), spec).ours


def test_cancelling_stops_what_nobody_else_waits_for(cluster, spec, store):
    objects = open_objects(store.root)
    for number in (1, 2):
        cluster.known(name(number), "RUNNING")
        waiting.note(objects, name(number), "run-1")
    waiting.note(objects, name(2), "run-2")
    assert cancel_on_cluster(spec, "run-1") == [name(1)]
    assert [cluster.jobs[name(number)]["status"] for number in (1, 2)] == ["STOPPED", "RUNNING"]
    assert cancel_on_cluster(spec, "run-1") == []
    assert cancel_on_cluster(spec, "run-2") == [name(2)]


def test_a_job_that_cannot_be_stopped_is_found_again_by_the_next_cancel(cluster, spec, store, monkeypatch):
    monkeypatch.setenv("PHASETUNE_RAY_PATIENCE", "0.2")
    objects = open_objects(store.root)
    cluster.known(name(1), "RUNNING")
    waiting.note(objects, name(1), "run-1")
    away = spec.model_copy(update={"compute": spec.compute.model_copy(update={"ray": "http://127.0.0.1:1"})})
    with pytest.raises(UserError, match="has not answered"):
        cancel_on_cluster(away, "run-1")
    assert cancel_on_cluster(spec, "run-1") == [name(1)]


def test_a_job_of_a_stage_s_own_cluster_is_stopped_whatever_the_other_cluster_does(cluster, spec, store, monkeypatch):
    monkeypatch.setenv("PHASETUNE_RAY_PATIENCE", "0.2")
    cluster.known(name(1), "RUNNING")
    waiting.note(open_objects(store.root), name(1), "run-1")
    values = spec.model_dump(mode="json")
    values["compute"] |= {"ray": "http://127.0.0.1:1", "evaluation": {"ray": cluster.address}}
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1 has not answered"):
        cancel_on_cluster(Spec.model_validate(values), "run-1")
    assert cluster.jobs[name(1)]["status"] == "STOPPED"


def test_who_gave_no_sign_of_life_does_not_wait(store, monkeypatch):
    objects = open_objects(store.root)
    waiting.note(objects, "job", "killed")
    monkeypatch.setattr(waiting, "_GONE", 0.0)
    waiting.note(objects, "job", "run-1")
    assert waiting.leave(objects, "job", "run-1")
    assert list(objects.list(waiting.FOLDER)) == []
