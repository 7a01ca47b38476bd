"""What a RayJob's status means for whoever waits for it, decided on the object alone.

KubeRay says two things: `jobDeploymentStatus`, of the machines, and `jobStatus`, of Ray's job on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """Where a RayJob is on its way."""

    QUEUED = "queued"
    """Suspended: it waits for its quota, for as long as that takes."""
    STARTING = "starting"
    """Machines are being got, or the driver has not begun."""
    WORKING = "working"
    """The driver runs."""
    DONE = "done"
    """It ended well."""
    FAILED = "failed"
    """It ended otherwise; the next attempt may do better."""
    REFUSED = "refused"
    """KubeRay does not take it as it is, so no attempt would do better."""
    GONE = "gone"
    """Somebody deleted it."""
    LOST = "lost"
    """Its head is gone, and nobody says so."""


ENDED = frozenset({State.DONE, State.FAILED, State.REFUSED, State.GONE, State.LOST})
_STARTING = frozenset({"", "Initializing", "Retrying", "Waiting", "Scheduling", "Scheduled"})


def state_of(job: dict[str, Any] | None) -> State:
    """The state of a RayJob as the API gives it; None is one that is not there.

    A status that this version does not know is waited out: the job's own status and its deadline end it.
    """
    if job is None or job["metadata"].get("deletionTimestamp"):
        return State.GONE
    status = job.get("status") or {}
    machines, driver = status.get("jobDeploymentStatus") or "", status.get("jobStatus") or ""
    if machines == "ValidationFailed":
        return State.REFUSED
    if machines == "Failed":
        return State.FAILED
    if machines == "Complete":
        return State.DONE if driver == "SUCCEEDED" else State.FAILED
    if machines in ("Suspending", "Suspended"):
        return State.QUEUED
    if machines in _STARTING:
        return State.QUEUED if job["spec"].get("suspend") else State.STARTING
    return State.WORKING if driver == "RUNNING" else State.STARTING


@dataclass(frozen=True, slots=True)
class Ending:
    """How a RayJob ended for whoever waited.

    Attributes:
        name: Of the RayJob.
        state: One of `ENDED`.
        reason: KubeRay's word for it, or ours.
        message: What is told of it.
        log: The last lines of its log.
        waited: Seconds until its driver ran, the whole time where it never did.
    """

    name: str
    state: State
    reason: str = ""
    message: str = ""
    log: str = ""
    waited: float = 0.0

    def __str__(self) -> str:
        last = (self.message.strip().splitlines() or ["nothing is known of why"])[-1][:500]
        return f"{self.name}: {self.state}, {self.reason or 'no reason'}: {last}"


def ending_of(
    name: str, state: State, job: dict[str, Any] | None, waited: float = 0.0, log: str = "", reason: str = ""
) -> Ending:
    """How a RayJob ended, from its object.

    Args:
        name: Of the RayJob.
        state: Its state.
        job: The object as it was seen last; None where it never was.
        waited: See `Ending`.
        log: See `Ending`.
        reason: Where KubeRay gives none.
    """
    status = (job or {}).get("status") or {}
    driver = status.get("jobStatus") or ""
    told = str(status.get("reason") or reason or (driver if state is State.FAILED else ""))
    return Ending(name, state, told, str(status.get("message") or ""), log, waited)
