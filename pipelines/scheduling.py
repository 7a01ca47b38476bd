"""Schedules: a spec run again and again by Kubeflow, one schedule for each name.

Kubeflow cannot change a schedule, so a changed one is replaced: the new one is made paused, the old one paused, the
new one started, the old one deleted. Never do both fire, and never is there none. Whatever call dies in between leaves
two of one name, which is how the next call knows, and it finishes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from components.common.errors import UserError
from components.common.spec import Spec
from pipelines.cron import checked
from pipelines.cron import window as window_of
from pipelines.kubeflow import Kubeflow, client, equals
from pipelines.submitting import Version, experiment

_OURS = "phasetune schedule"
_STARTED, _PAUSED = f"{_OURS}, started", f"{_OURS}, paused"
"""What the description says: whether the schedule shall run once it stands alone."""
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
    return Timing(checked(cron), begins, ends, catch_up)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule in Kubeflow."""

    id: str
    name: str
    timing: Timing
    version: str
    service_account: str
    experiment: str
    started: bool
    shall_run: bool
    created: datetime


def schedules(kubeflow: Kubeflow, name: str | None = None) -> list[Schedule]:
    """Our schedules, the newest first; of one name where it is given.

    Raises:
        UserError: If somebody else's schedule has that name.
    """
    where: dict[str, Any] = {"namespace": kubeflow.namespace} if kubeflow.namespace else {}
    if name is not None:
        where["filter"] = equals("display_name", name)
    found = []
    for one in kubeflow.every("schedules", "recurring_run_service_list_recurring_runs", "recurring_runs", **where):
        if name is not None and one.display_name != name:
            continue
        if not (one.description or "").startswith(_OURS):
            if name is not None:
                raise UserError(
                    f"there is a schedule {name} in Kubeflow that is not of phasetune", "choose another --name"
                )
            continue
        found.append(_read(one))
    return sorted(found, key=lambda one: (one.created, one.id), reverse=True)


def _read(one: Any) -> Schedule:
    cron = one.trigger.cron_schedule if one.trigger is not None else None
    timing = Timing(cron.cron if cron is not None else "", *_window(cron), catch_up=not one.no_catchup)
    version = one.pipeline_version_reference
    return Schedule(
        id=one.recurring_run_id,
        name=one.display_name,
        timing=timing,
        version=version.pipeline_version_id if version is not None else one.pipeline_version_id or "",
        service_account=one.service_account or "",
        experiment=one.experiment_id or "",
        started=_word(one.mode) == "ENABLE" or _word(one.status) == "ENABLED",
        shall_run=one.description == _STARTED,
        created=one.created_at or datetime.min.replace(tzinfo=UTC),
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
) -> Applied:
    """Make a schedule be as wanted; where it is, nothing happens.

    A paused schedule that is replaced stays paused.

    Args:
        kubeflow: The server.
        name: Of the schedule.
        spec: What it runs, and as which service account.
        version: The compiled spec.
        timing: When it fires.
        experiment_name: Where its runs are shown.
        runs: Whether it shall fire; as it does now, or from now on where it is new, if None.
    """
    there = schedules(kubeflow, name)
    wanted = (version.id, timing, spec.compute.kubernetes.service_account, experiment(kubeflow, experiment_name))
    fitting = [one.id for one in there if (one.version, one.timing, one.service_account, one.experiment) == wanted]
    # Of two, the newer one was made by a call that died: what it was to become is in its description.
    as_it_is = True if not there else there[0].shall_run if len(there) > 1 else there[0].started
    shall_run = as_it_is if runs is None else runs
    if len(there) == 1 and fitting:
        _settle(kubeflow, there[0], [], shall_run)
        return "unchanged"
    keep = fitting[0] if fitting else _create(kubeflow, name, spec, version, timing, wanted[3], shall_run)
    there = schedules(kubeflow, name)
    others = [one for one in there if one.id != keep]
    for one in there:
        if one.id == keep:
            _settle(kubeflow, one, others, shall_run)
            return "replaced" if others else "made"
    raise UserError(f"the schedule {name} was deleted while it was made", "give the command again")


def _settle(kubeflow: Kubeflow, keep: Schedule, others: list[Schedule], shall_run: bool) -> None:
    """Leave one schedule of a name: the others stop before it starts, and go when it has."""
    for one in others:
        _set(kubeflow, one, False)
    _set(kubeflow, keep, shall_run)
    for one in others:
        _delete(kubeflow, one)


def _create(
    kubeflow: Kubeflow,
    name: str,
    spec: Spec,
    version: Version,
    timing: Timing,
    experiment_id: str,
    shall_run: bool,
) -> str:
    """Make a paused schedule; returns its id."""
    models = client()
    before = {one.id for one in schedules(kubeflow, name)}
    cron = models.V2beta1CronSchedule(cron=timing.cron, start_time=timing.begins, end_time=timing.ends)
    body = models.V2beta1RecurringRun(
        experiment_id=experiment_id,
        display_name=name,
        description=_STARTED if shall_run else _PAUSED,
        pipeline_version_reference=version.reference(),
        runtime_config=models.V2beta1RuntimeConfig(parameters={}),
        service_account=spec.compute.kubernetes.service_account,
        trigger=models.V2beta1Trigger(cron_schedule=cron),
        max_concurrency="1",
        no_catchup=not timing.catch_up,
        mode="DISABLE",
        namespace=kubeflow.namespace,
    )

    def there() -> Any | None:
        return next((one for one in schedules(kubeflow, name) if one.id not in before), None)

    made = kubeflow.create("schedules", "recurring_run_service_create_recurring_run", body, there)
    # Of a lost answer `there` gives ours.
    return str(made.id if isinstance(made, Schedule) else made.recurring_run_id)


def set_running(kubeflow: Kubeflow, name: str, runs: bool) -> None:
    """Pause or resume a schedule.

    Raises:
        UserError: If there is none of that name.
    """
    keep, *others = _known(kubeflow, name)
    _settle(kubeflow, keep, others, runs)


def delete(kubeflow: Kubeflow, name: str) -> int:
    """Delete a schedule; runs that it started go on. Returns how many there were, 0 where it is gone already."""
    there = schedules(kubeflow, name)
    for one in there:
        _delete(kubeflow, one)
    return len(there)


def _known(kubeflow: Kubeflow, name: str) -> list[Schedule]:
    found = schedules(kubeflow, name)
    if not found:
        raise UserError(f"there is no schedule {name}", "`phasetune schedule ls` lists them")
    return found


def _set(kubeflow: Kubeflow, one: Schedule, runs: bool) -> None:
    if one.started != runs:
        verb = "enable" if runs else "disable"
        kubeflow.ask("schedules", f"recurring_run_service_{verb}_recurring_run", one.id)


def _delete(kubeflow: Kubeflow, one: Schedule) -> None:
    try:
        kubeflow.ask("schedules", "recurring_run_service_delete_recurring_run", one.id, missing=_GONE)
    except UserError as error:
        if error.message != _GONE:
            raise


_GONE = "the schedule is gone already"
