"""Schedules: a spec run again and again by Kubeflow, one schedule for each name.

Kubeflow cannot change a schedule, so a changed one is replaced: the new one is made paused, the others are deleted, the
new one is started. Never do two fire, and never is there none, also when several calls do so at once:

- The newest of a name wins, for every call, so nobody deletes it. Each has a number, as the server's clock shows whole
  seconds.
- A call starts one only after it has deleted all others that it saw. Of two calls at least one saw the other's, and
  what is deleted cannot be started any more.

A call that dies in between would leave a paused schedule that looks as if it were paused on purpose. So first it makes
a mark: a further schedule of the name, which is never started, says what shall be, and goes last.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, NamedTuple

from components.common.errors import UserError
from components.common.spec import Spec
from pipelines.cron import checked, fires
from pipelines.cron import window as window_of
from pipelines.kubeflow import Absent, Kubeflow, client, equals
from pipelines.submitting import Version, experiment

_DESCRIPTION = re.compile(
    "phasetune schedule(?: (?P<number>[0-9]+))?(?P<mark>, being made, to (?P<state>start|pause))?"
)
"""How the description of ours begins."""
_MEANWHILE = "the schedule {} was replaced meanwhile, or deleted, by another call"
_MEANWHILE_REMEDY = "`phasetune schedule ls` shows what it is now; give the command again if it shall be as you said"
Applied = Literal["made", "replaced", "unchanged"]


@dataclass(frozen=True, slots=True)
class Timing:
    """When a schedule fires.

    Attributes:
        cron: Six fields, checked.
        begins: Nothing fires before; None: at once.
        ends: Nothing fires after; None: never.
        catch_up: Whether runs that were missed (in a pause) are made up for.
    """

    cron: str
    begins: datetime | None = None
    ends: datetime | None = None
    catch_up: bool = False


def timing(cron: str, window: str | None, catch_up: bool) -> Timing:
    """When a schedule fires, from what the user gives.

    Raises:
        UserError: If Kubeflow would never fire by it.
    """
    begins, ends = (None, None) if window is None else window_of(window)
    cron, now = checked(cron), datetime.now(UTC)
    # What is past counts only where it is made up for.
    since = now if begins is None or (begins < now and not catch_up) else begins
    if ends is not None and not fires(cron, since, ends):
        raise UserError(
            f"the schedule {cron!r} fires on no day of the window {window!r}", "give another --window or another --cron"
        )
    return Timing(cron, begins, ends, catch_up)


class Content(NamedTuple):
    """What makes two schedules of a name the same: a version, when it runs, as which service account, shown where."""

    version: str
    timing: Timing
    service_account: str
    experiment: str


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule in Kubeflow.

    Attributes:
        id: Kubeflow's.
        name: The user's.
        content: What it runs, and when.
        started: Whether it fires.
        becomes: Of a mark, whether the schedule of its name shall fire; None: it is no mark.
        age: Orders those of a name: their number, when they were created, and, as that may all be the same, the id.
    """

    id: str
    name: str
    content: Content
    started: bool
    becomes: bool | None
    age: tuple[int, datetime, str]


def schedules(kubeflow: Kubeflow, name: str | None = None) -> list[Schedule]:
    """Our schedules, the newest first; of one name where it is given.

    Raises:
        UserError: If somebody else's schedule has that name.
    """
    return [one for one in _and_marks(kubeflow, name) if one.becomes is None]


def _and_marks(kubeflow: Kubeflow, name: str | None) -> list[Schedule]:
    found = []
    for one in _listed(kubeflow, name):
        ours = _DESCRIPTION.match(one.description or "")
        if ours is not None:
            found.append(_read(one, ours))
        elif name is not None:
            raise UserError(f"there is a schedule {name} in Kubeflow that is not of phasetune", "choose another --name")
    return sorted(found, key=lambda one: one.age, reverse=True)


def _listed(kubeflow: Kubeflow, name: str | None) -> list[Any]:
    """Everybody's schedules, as Kubeflow shows them; of one name where it is given."""
    where: dict[str, Any] = {"namespace": kubeflow.namespace} if kubeflow.namespace else {}
    if name is not None:
        where["filter"] = equals("display_name", name)
    every = kubeflow.every("schedules", "recurring_run_service_list_recurring_runs", "recurring_runs", **where)
    return [one for one in every if name is None or one.display_name == name]


def _read(one: Any, description: re.Match[str]) -> Schedule:
    cron = one.trigger.cron_schedule if one.trigger is not None else None
    timing = Timing(cron.cron if cron is not None else "", *_window(cron), catch_up=not one.no_catchup)
    version = one.pipeline_version_reference
    content = Content(
        version=version.pipeline_version_id if version is not None else one.pipeline_version_id or "",
        timing=timing,
        service_account=one.service_account or "",
        experiment=one.experiment_id or "",
    )
    created = one.created_at or datetime.min.replace(tzinfo=UTC)
    return Schedule(
        id=one.recurring_run_id,
        name=one.display_name,
        content=content,
        started=_word(one.mode) == "ENABLE" or _word(one.status) == "ENABLED",
        becomes=description["state"] == "start" if description["mark"] else None,
        age=(int(description["number"] or 0), created, one.recurring_run_id),
    )


def _word(value: Any) -> str:
    """An enumeration's value, which the client gives as text."""
    return str(value or "")


def _window(cron: Any) -> tuple[datetime | None, datetime | None]:
    """The window of a schedule; the API says the year 1 or 1970 where there is none."""
    moments = (None, None) if cron is None else (cron.start_time, cron.end_time)
    begins, ends = (one if one is not None and one.year > 1970 else None for one in moments)
    return begins, ends


def apply(
    kubeflow: Kubeflow,
    name: str,
    spec: Spec,
    version: Version,
    timing: Timing,
    experiment_name: str,
    runs: bool | None = None,
) -> tuple[Applied, bool]:
    """Make a schedule be as wanted; where it is, nothing happens. Returns what was done, and whether it fires now.

    A paused schedule that is replaced stays paused.

    Args:
        kubeflow: The server.
        name: Of the schedule.
        spec: What it runs, and as which service account.
        version: The compiled spec.
        timing: When it fires.
        experiment_name: Where its runs are shown.
        runs: Whether it shall fire; as it does now, or from now on where it is new, if None.

    Raises:
        UserError: If another call made it something else, or deleted it, at the same time.
    """
    account = spec.compute.kubernetes.service_account
    wanted = Content(version.id, timing, account, experiment(kubeflow, experiment_name))
    known = _and_marks(kubeflow, name)
    marks, there = [one for one in known if one.becomes is not None], [one for one in known if one.becomes is None]
    shall_run = _as_it_is(marks, there) if runs is None else runs
    fits = bool(there) and there[0].content == wanted
    if len(known) == 1 and fits and _set(kubeflow, there[0], shall_run):
        return "unchanged", shall_run
    make = partial(_create, kubeflow, name, version, wanted, 1 + max((one.age[0] for one in known), default=0))
    mark = make(f", being made, to {'start' if shall_run else 'pause'}")
    made = there[0].id if fits else make("")
    kept = _leave_one(kubeflow, name, wanted, made, shall_run)
    if kept is None:
        for one in (*(() if fits else (made,)), mark):
            _ask(kubeflow, "delete", one)
        raise UserError(_MEANWHILE.format(name), _MEANWHILE_REMEDY)
    # Of other marks only those of calls that died, seen before this one began: a call that began since needs its own.
    for one in (*(one.id for one in marks), mark):
        _ask(kubeflow, "delete", one)
    return "replaced" if any(one.id != kept for one in there) else "made", shall_run


def _as_it_is(marks: list[Schedule], there: list[Schedule]) -> bool:
    """Whether a schedule shall fire if the user does not say: as a call that died wanted it, else as it does."""
    if marks:
        return bool(marks[0].becomes)
    return not there or any(one.started for one in there)


def _leave_one(kubeflow: Kubeflow, name: str, wanted: Content, made: str, shall_run: bool) -> str | None:
    """Leave the newest of a name, started or not; returns its id, None where it is neither `made` nor the same."""
    gone = ""
    while there := schedules(kubeflow, name):
        newest, *others = there
        if newest.id == gone or (newest.id != made and newest.content != wanted):
            return None
        for one in others:
            _ask(kubeflow, "delete", one.id)
        if _set(kubeflow, newest, shall_run):
            return newest.id
        gone = newest.id  # for a newer one of another call, which may be just the same
    return None


def _create(kubeflow: Kubeflow, name: str, version: Version, content: Content, number: int, state: str) -> str:
    """Make a paused schedule; returns its id."""
    models, timing = client(), content.timing
    # Its own, so that one whose answer was lost is found again, and not that of another call.
    description = f"phasetune schedule {number}{state} ({secrets.token_hex(6)})"
    cron = models.V2beta1CronSchedule(cron=timing.cron, start_time=timing.begins, end_time=timing.ends)
    body = models.V2beta1RecurringRun(
        experiment_id=content.experiment,
        display_name=name,
        description=description,
        pipeline_version_reference=version.reference(),
        runtime_config=models.V2beta1RuntimeConfig(parameters={}),
        service_account=content.service_account,
        trigger=models.V2beta1Trigger(cron_schedule=cron),
        max_concurrency="1",
        no_catchup=not timing.catch_up,
        mode="DISABLE",
        namespace=kubeflow.namespace,
    )

    def there() -> Any | None:
        return next((one for one in _listed(kubeflow, name) if one.description == description), None)

    made = kubeflow.create("schedules", "recurring_run_service_create_recurring_run", body, there)
    return str(made.recurring_run_id)


def set_running(kubeflow: Kubeflow, name: str, runs: bool) -> None:
    """Pause or resume a schedule.

    Raises:
        UserError: If there is none of that name, or another call replaces it.
    """
    known = _and_marks(kubeflow, name)
    there = [one for one in known if one.becomes is None]
    if not there:
        raise UserError(f"there is no schedule {name}", "`phasetune schedule ls` lists them")
    for one in there[1:]:
        _ask(kubeflow, "delete", one.id)
    if not _set(kubeflow, there[0], runs):
        raise UserError(_MEANWHILE.format(name), _MEANWHILE_REMEDY)
    for one in known:
        if one.becomes is not None:
            _ask(kubeflow, "delete", one.id)


def delete(kubeflow: Kubeflow, name: str) -> int:
    """Delete a schedule; runs that it started go on. Returns how many there were, 0 where it is gone already."""
    known = _and_marks(kubeflow, name)
    for one in known:
        _ask(kubeflow, "delete", one.id)
    return sum(one.becomes is None for one in known)


def _set(kubeflow: Kubeflow, one: Schedule, runs: bool) -> bool:
    """Start or pause one; whether it is there."""
    return one.started == runs or _ask(kubeflow, "enable" if runs else "disable", one.id)


def _ask(kubeflow: Kubeflow, verb: Literal["enable", "disable", "delete"], known_as: str) -> bool:
    """Do something to a schedule; whether it was there."""
    try:
        kubeflow.ask("schedules", f"recurring_run_service_{verb}_recurring_run", known_as)
    except Absent:
        return False
    return True
