"""Ending a run on a cluster: in Kubeflow, its RayJobs, its jobs in standing Ray clusters, and in MLflow.

Each of these may be out of reach from here. What one of them does not do keeps none of the others from it, only what
the run's spec uses is asked for, and all that was not done is said together at the end.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from components.common.errors import UserError
from components.common.records import RunInfo, RunRecords
from pipelines import following
from pipelines.following import Known
from pipelines.kubeflow import Kubeflow

_ENDING = 60.0
"""Seconds for which a run's end is waited for: its pods have 30 to leave."""
_PATIENCE = 30.0
"""Seconds for which Kubernetes is asked, which a laptop may not reach."""
_STORE_PATIENCE = 10.0
"""Seconds for which the store is asked, likewise; once it has answered, it has its usual ones."""


def cancel_wholly(kubeflow: Kubeflow, run: str, namespace: str | None, say: Callable[[str], None]) -> None:
    """End a run with all that it alone waits for.

    Args:
        kubeflow: The server.
        run: Kubeflow's id of the run.
        namespace: Of its pods; the kubeconfig's where absent.
        say: Gets a line for each thing done.

    Raises:
        UserError: If there is no such run, or it is not one of phasetune; or, when all else is done, naming everything
            that could not be done.
    """
    known = following.Runs(kubeflow).known(run)
    if not known.ours:
        raise UserError(
            f"the run {known.name} ({run}) is not one of phasetune: nothing of it was ended",
            f"end it on its page: {kubeflow.url(run)}",
        )
    left = _Left()
    told = left.unless("Kubeflow does not end it", lambda: _tell(kubeflow, known, say))
    rayjobs, jobs = _RayJobs(known, namespace, say), _Jobs(known, say)
    left.unless("its RayJobs are not looked for", rayjobs.end)
    left.unless("its jobs in Ray's cluster are not stopped", jobs.end)
    if told:
        left.unless("Kubeflow is not asked whether it has ended", lambda: _wait(kubeflow, run))
    # A step that was still at work may have made another one meanwhile.
    left.unless("its RayJobs are not looked for", rayjobs.end)
    left.unless("its jobs in Ray's cluster are not stopped", jobs.end)
    if told:
        left.unless("MLflow is not told of the end", lambda: _end_tracking(known))
    if left.said:
        raise UserError(
            "the run is not wholly ended:\n" + "\n".join(f"  {what}: {why}" for what, why in left.said.items()),
            f"mend that, then `phasetune cancel {run}` again ends what is left",
        )


class _Left:
    """What could not be done, each thing once, with the reason."""

    def __init__(self) -> None:
        self.said: dict[str, str] = {}

    def unless(self, what: str, act: Callable[[], None]) -> bool:
        """Do something; returns whether it was done. What cannot be done is remembered, and not tried again."""
        if what in self.said:
            return False
        try:
            act()
            return True
        except UserError as error:
            self.said[what] = f"{error.message} ({error.remedy})"
        except Exception as error:  # what boto3, Ray and MLflow raise of their own for what is out of reach
            self.said[what] = (str(error).splitlines() or [type(error).__name__])[0]
        return False


class _RayJobs:
    """The RayJobs of a run; nothing is asked where its spec uses none."""

    def __init__(self, known: Known, namespace: str | None, say: Callable[[str], None]) -> None:
        self._known, self._namespace, self._say = known, namespace, say
        self._looked = False

    def end(self) -> None:
        """Delete those that no other run waits for.

        Raises:
            UserError: If Kubernetes does not answer, or its namespace is not that of the run.
        """
        from components.common.kubernetes_api import connect
        from components.common.rayjob_claim import cancel_run, of_pipeline

        known = self._known
        if not known.rayjobs:
            return
        cluster = connect(self._namespace)
        cluster.patience = _PATIENCE
        ours = known.info.run if known.info is not None else ""
        there = of_pipeline(cluster, ours, known.id) is not None
        for name in cancel_run(cluster, ours, known.id):
            self._say(f"deleted the RayJob {name}")
        first, self._looked = not self._looked, True
        if there or not first:
            return
        missing = following.no_workflow(known, cluster.namespace)
        if not known.ended:
            raise missing
        self._say(f"{missing.message}; if it is elsewhere, {missing.remedy}")


class _Jobs:
    """A run's jobs in Ray clusters that stand; nothing is asked where its spec uses none."""

    def __init__(self, known: Known, say: Callable[[str], None]) -> None:
        self._info, self._say = None if known.info is None else _readable(known.info), say
        self._stopped: set[str] = set()

    def end(self) -> None:
        """Stop those that no other run waits for.

        Raises:
            UserError: If the store, which knows them, or a Ray cluster does not answer.
        """
        from components.common.jobs_api import addresses_of, cancel_on_cluster

        if self._info is None:
            return
        spec = self._info.parsed()
        if not addresses_of(spec):
            return
        following.see_store(self._info, _STORE_PATIENCE)
        for name in cancel_on_cluster(spec, self._info.run):
            if name not in self._stopped:
                self._say(f"stopped the job {name}")
            self._stopped.add(name)


def _tell(kubeflow: Kubeflow, known: Known, say: Callable[[str], None]) -> None:
    told = following.cancel(kubeflow, known.id)
    say(f"{known.name}: {'told to end' if told else 'has ended or was told before'}")


def _wait(kubeflow: Kubeflow, run: str) -> None:
    if not following.ended_within(kubeflow, run, _ENDING):
        raise UserError(f"it goes on after {_ENDING:.0f} s", f"see {kubeflow.url(run)}")


def _end_tracking(known: Known) -> None:
    """Tell MLflow that the run has ended: a run that is cancelled writes no report, which would say so."""
    from components.common.tracking import TrackingWarning, end_parent

    info = None if known.info is None else _readable(known.info)
    if info is None or not info.parsed().tracking.enabled:
        return
    following.see_store(info, _STORE_PATIENCE)
    try:
        begun = RunRecords(info.store, info.run).info()
    except FileNotFoundError:  # its first step never began it, so MLflow knows nothing of it
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        end_parent(_readable(begun), "KILLED")
    for one in caught:
        if issubclass(one.category, TrackingWarning):
            raise UserError(str(one.message), "end it in MLflow's page")


def _readable(info: RunInfo) -> RunInfo:
    """The run; of a spec that another version of phasetune wrote only what ending it needs: Ray clusters, tracking."""
    try:
        info.parsed()
        return info
    except ValueError:
        pass
    stages = {stage: _ray(_at(info.spec, "compute", stage, "ray")) for stage in ("scoring", "evaluation")}
    tracking = {
        "enabled": _at(info.spec, "tracking", "enabled"),
        "experiment": _at(info.spec, "tracking", "experiment"),
    }
    needed = {
        "compute": {**_ray(_at(info.spec, "compute", "ray")), **stages},
        "tracking": {name: value for name, value in tracking.items() if value is not None},
        "store": info.store,
    }
    # The name and the data are only there because a spec has them.
    return replace(info, spec={"name": "unread", "data": {"train": [{"path": "lab://instructions"}]}, **needed})


def _ray(place: Any) -> dict[str, str]:
    return {"ray": place} if isinstance(place, str) and place.startswith("http") else {}


def _at(values: Any, *keys: str) -> Any:
    """A value within JSON values; None where it is not there."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values
