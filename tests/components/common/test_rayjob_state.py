import pytest

from components.common.rayjob_state import ENDED, State, ending_of, state_of


def job(machines: str | None, driver: str = "", suspend: bool = False, **metadata: object) -> dict:
    status = {} if machines is None else {"status": {"jobDeploymentStatus": machines, "jobStatus": driver}}
    return {"metadata": {"name": "x", **metadata}, "spec": {"suspend": suspend}, **status}


@pytest.mark.parametrize(
    ("machines", "driver", "suspend", "state"),
    [
        (None, "", True, State.QUEUED),  # just made, KubeRay has not looked at it
        (None, "", False, State.STARTING),
        ("", "", True, State.QUEUED),
        ("Suspended", "", True, State.QUEUED),
        ("Suspending", "RUNNING", True, State.QUEUED),  # preempted
        ("Suspended", "", False, State.QUEUED),  # admitted, KubeRay has not seen it
        ("Initializing", "", False, State.STARTING),
        ("Initializing", "", True, State.QUEUED),
        ("Waiting", "", False, State.STARTING),
        ("Retrying", "FAILED", False, State.STARTING),
        ("Scheduling", "", False, State.STARTING),
        ("Running", "", False, State.STARTING),
        ("Running", "PENDING", False, State.STARTING),
        ("Running", "RUNNING", False, State.WORKING),
        ("Running", "SUCCEEDED", False, State.STARTING),  # the submitter is still printing the log
        ("Complete", "SUCCEEDED", False, State.DONE),
        ("Complete", "STOPPED", False, State.FAILED),
        ("Complete", "FAILED", False, State.FAILED),
        ("Failed", "FAILED", False, State.FAILED),
        ("Failed", "RUNNING", False, State.FAILED),  # its deadline
        ("Failed", "", False, State.FAILED),
        ("ValidationFailed", "", False, State.REFUSED),
        ("SomethingNew", "RUNNING", False, State.WORKING),
        ("SomethingNew", "", False, State.STARTING),
    ],
)
def test_what_a_status_means(machines: str | None, driver: str, suspend: bool, state: State) -> None:
    assert state_of(job(machines, driver, suspend)) is state


def test_what_is_deleted_is_gone() -> None:
    assert state_of(None) is State.GONE
    assert state_of(job("Running", "RUNNING", deletionTimestamp="2026-01-01T00:00:00Z")) is State.GONE


def test_a_queue_is_no_end() -> None:
    assert {State.QUEUED, State.STARTING, State.WORKING} == set(State) - ENDED


def test_an_ending_names_job_reason_and_the_last_line() -> None:
    failed = job("Failed", "FAILED")
    failed["status"] |= {"reason": "AppFailed", "message": "Job failed, last logs:\nMemoryError: no room\n"}
    assert str(ending_of("x-1", State.FAILED, failed)) == "x-1: failed, AppFailed: MemoryError: no room"
    assert str(ending_of("x-1", State.GONE, None, reason="it was deleted")) == (
        "x-1: gone, it was deleted: nothing is known of why"
    )
