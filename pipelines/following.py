"""What a run on a cluster does: its steps as Kubeflow, the store and Kubernetes see them; its end; ending it.

Kubeflow knows its tasks by names that the compiler gives them. The version that a run is of says which step each is,
and holds what the run was told, so that nobody needs the spec again.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from components.common.errors import UserError
from components.common.objects import open_objects
from components.common.records import RUNS, RunInfo, RunRecords, StepRecord, step_name
from pipelines.kubeflow import LONGEST_PAUSE, Absent, Away, Kubeflow

ENDED = frozenset({"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"})
_ENDING_OR_ENDED = ENDED | {"CANCELING"}
PLACEHOLDER = "{{$.pipeline_job_uuid}}"
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LOOKING = 5.0
"""Seconds between two looks at a run that goes on."""
_ENDING = 2.0
"""Seconds between two looks at a run that was told to end."""
_ORDER = ("sweep", "prepare", "score", "split", "train", "evaluate", "report")
"""The first words of our steps' names, in the order of a run."""


@dataclass(frozen=True, slots=True)
class Known:
    """A run of Kubeflow, and what its version says of it.

    Attributes:
        id: Kubeflow's id.
        name: What it is called there.
        state: Kubeflow's word.
        error: Why it failed, if Kubeflow says so.
        info: What its tasks are told; None where it is no run of phasetune, or its version is gone.
        steps: Each step's state in words of Kubeflow, by the step's name that users see; `-` where it has none yet.
        ours: Whether it is a run of phasetune; one whose version is gone may be.
    """

    id: str
    name: str
    state: str
    error: str
    info: RunInfo | None
    steps: dict[str, str]
    ours: bool = True

    @property
    def ended(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.state in ENDED

    @property
    def rayjobs(self) -> bool:
        """Whether it may wait for RayJobs: its spec says so, or cannot be read any more."""
        if self.info is None:
            return self.ours
        try:
            return "rayjob" in self.info.parsed().compute.places
        except ValueError:  # another version of phasetune wrote it
            return True


def run_id(text: str) -> str:
    """Kubeflow's id of a run in what users paste: the id, the page's address, or our name of the run.

    Raises:
        UserError: If there is none in it.
    """
    found = _ID.findall(text.lower())
    if not found:
        raise UserError(f"{text!r} names no run", "give the id or the address that `phasetune submit` printed")
    return str(found[-1])


class Runs:
    """The runs of a server; what a version says is read once."""

    def __init__(self, kubeflow: Kubeflow) -> None:
        self._kubeflow = kubeflow
        self._versions: dict[str, dict[str, Any]] = {}

    def known(self, run: str) -> Known:
        """A run as it is now.

        Raises:
            UserError: If there is no such run.
        """
        missing = f"Kubeflow at {self._kubeflow.host} knows no run {run}"
        found = self._kubeflow.ask("runs", "run_service_get_run", run, missing=missing)
        pipeline = self._pipeline(found)
        info = None if pipeline is None else _info(context_of(pipeline), run)
        labels = {} if pipeline is None or info is None else labels_of(pipeline)
        seen: dict[str, str] = {}
        for task in (found.run_details.task_details or []) if found.run_details is not None else []:
            if task.display_name in labels:
                seen[labels[task.display_name]] = task.state or "-"
        return Known(
            id=run,
            name=found.display_name or run,
            state=found.state or "PENDING",
            error=(found.error.message or "") if found.error is not None else "",
            info=info,
            steps={label: seen.get(label, "-") for label in labels.values()},
            ours=pipeline is None or info is not None,
        )

    def _pipeline(self, run: Any) -> dict[str, Any] | None:
        """The compiled pipeline of a run; None where its version is gone."""
        version = run.pipeline_version_reference
        if version is None or not version.pipeline_version_id:
            return dict(run.pipeline_spec or {})
        if version.pipeline_version_id not in self._versions:
            try:
                found = self._kubeflow.ask(
                    "pipelines",
                    "pipeline_service_get_pipeline_version",
                    version.pipeline_id,
                    version.pipeline_version_id,
                )
            except Absent:
                return None
            whole = dict(found.pipeline_spec or {})
            self._versions[version.pipeline_version_id] = whole.get("pipeline_spec", whole)
        return self._versions[version.pipeline_version_id]


def _tasks(pipeline: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every task of a compiled pipeline, by its inner name; groups are none."""
    parts = [pipeline.get("root", {}), *pipeline.get("components", {}).values()]
    for tasks in (part.get("dag", {}).get("tasks", {}) for part in parts):
        for name, task in tasks.items():
            if not name.startswith("exit-handler"):
                yield name, task


def labels_of(pipeline: dict[str, Any]) -> dict[str, str]:
    """The names that users see of a compiled pipeline's tasks, by those of the compiler; in the order of the run.

    There are none where it is no pipeline of ours. Steps that only another version of phasetune has come last.
    """
    if context_of(pipeline) is None:
        return {}
    labels = {name: str(task.get("taskInfo", {}).get("name", name)) for name, task in _tasks(pipeline)}
    return dict(sorted(labels.items(), key=lambda one: (_place(one[1]), _natural(one[1]))))


def _place(label: str) -> int:
    first = label.partition(" ")[0]
    return _ORDER.index(first) if first in _ORDER else len(_ORDER)


def _natural(text: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", text)]


def context_of(pipeline: dict[str, Any]) -> str | None:
    """What the tasks of a compiled pipeline are told of their run, as JSON; None where they are told nothing."""
    for _, task in _tasks(pipeline):
        given = task.get("inputs", {}).get("parameters", {}).get("context", {}).get("runtimeValue", {}).get("constant")
        if given is not None:
            return str(given)
    return None


def _info(context: str | None, run: str) -> RunInfo | None:
    """What the tasks of a run are told, also by another version of phasetune; None where it is not from phasetune."""
    try:
        told = json.loads((context or "").replace(PLACEHOLDER, run))
        return RunInfo(**{one.name: told[one.name] for one in fields(RunInfo) if one.name in told})
    except (ValueError, TypeError):
        return None


def record_name(label: str) -> str:
    """The name of the record of a step, by the name that users see."""
    words = label.split()
    if len(words) == 1:
        return step_name(words[0])
    if words[0] == "split":
        return step_name("split", seed=int(words[-1]))
    if words[1] == "base":
        return step_name("evaluate", "base")
    return step_name(words[0], words[1], int(words[2]), int(words[-1]))


def records_of(known: Known, patience: float) -> dict[str, StepRecord]:
    """What the steps of a run left in the store, by the names that users see.

    Args:
        known: The run.
        patience: Seconds for which the store is asked.

    Raises:
        UserError: If the store cannot be reached from here.
    """
    if known.info is None:
        return {}
    see_store(known.info, patience)
    records = RunRecords(known.info.store, known.info.run)
    ours = [label for label in known.steps if _place(label) < len(_ORDER)]
    found = {label: records.read(record_name(label)) for label in ours}
    return {label: record for label, record in found.items() if record is not None}


def see_store(info: RunInfo, patience: float) -> None:
    """See that the store of a run can be reached from here, before anything waits for it with its usual patience.

    Args:
        info: The run.
        patience: Seconds for which the store is asked.

    Raises:
        UserError: If it cannot. Of a folder that is not here an empty answer would look as if nothing were left.
    """
    if "://" not in info.store and not Path(info.store).is_dir():
        raise UserError(f"the store {info.store} is not on this machine", "give the command where that folder is")
    open_objects(info.store).patient(patience).size(f"{RUNS}/{info.run}/run.json")


def rayjobs_of(known: Known, namespace: str | None, patience: float) -> list[tuple[str, str]]:
    """The RayJobs that a run waits for: (name, state).

    Args:
        known: The run.
        namespace: Of its pods; the kubeconfig's where absent.
        patience: Seconds for which Kubernetes is asked.

    Raises:
        UserError: If Kubernetes cannot be asked from here, or the run's Workflow is not in the namespace.
    """
    from components.common.kubernetes_api import connect
    from components.common.rayjob_claim import of_pipeline
    from components.common.rayjob_pods import COMPONENT, PART_OF
    from components.common.rayjob_state import state_of

    cluster = connect(namespace)
    cluster.patience = patience
    claim = of_pipeline(cluster, known.info.run if known.info is not None else "", known.id)
    if claim is None:
        raise no_workflow(known, cluster.namespace)
    [(part, name)] = PART_OF.items()
    jobs = cluster.jobs(f"{part}={name},{COMPONENT}=ray-job")
    return [(job["metadata"]["name"], str(state_of(job))) for job in jobs if claim.stands_in(job)]


def no_workflow(known: Known, namespace: str) -> UserError:
    """What to say where a namespace holds no Workflow of a run: RayJobs are looked for beside it.

    Kubernetes takes a Workflow away some time after the run's end, and its RayJobs with it.
    """
    gone = ", where it may have been until a while after the run's end" if known.ended else ""
    return UserError(
        f"no Workflow of the run is in the namespace {namespace}{gone}",
        "name the namespace of the run's pods with `--namespace NAME`: that of KFP where it is installed alone "
        "(`kubeflow`), else the user's",
    )


def follow(
    kubeflow: Kubeflow, run: str, say: Callable[[str], None], pause: Callable[[float], None] = time.sleep
) -> Known:
    """Watch a run until it has ended, however long Kubeflow is away meanwhile.

    Args:
        kubeflow: The server.
        run: Kubeflow's id of the run.
        say: Gets a line for each change.
        pause: Sleeps; another in tests.

    Raises:
        UserError: If there is no such run, or Kubeflow lets us in no more.
    """
    runs, shown, away = Runs(kubeflow), dict[str, str](), 0
    while True:
        try:
            known = runs.known(run)
        except Away as error:
            if not away:
                say(f"{error.message}; trying again")
            away += 1
            pause(min(LONGEST_PAUSE, _LOOKING * 2.0 ** min(away, 8)))
            continue
        away = 0
        now = {label: state for label, state in known.steps.items() if state != "-"}
        for label, state in {**now, "the run": known.state}.items():
            if shown.get(label) != state:
                say(f"{label}: {state.lower()}")
        shown = {**now, "the run": known.state}
        if known.ended:
            return known
        pause(_LOOKING)


def cancel(kubeflow: Kubeflow, run: str) -> bool:
    """Tell Kubeflow to end a run; False where it had ended or been told already.

    Raises:
        UserError: If there is no such run, or Kubeflow does not end it.
    """
    missing = f"Kubeflow at {kubeflow.host} knows no run {run}"

    def state() -> str | None:
        found: str | None = kubeflow.ask("runs", "run_service_get_run", run, missing=missing).state
        return found

    if state() in _ENDING_OR_ENDED:
        return False
    try:
        kubeflow.ask("runs", "run_service_terminate_run", run, missing=missing)
    except Away:
        raise
    except UserError:
        # It may have ended meanwhile, or been told by an attempt whose answer was lost: then the next one is refused.
        now = state()
        if now not in _ENDING_OR_ENDED:
            raise
        return now == "CANCELING"
    return True


def ended_within(kubeflow: Kubeflow, run: str, seconds: float, pause: Callable[[float], None] = time.sleep) -> bool:
    """Whether a run that was told to end has ended, waited for so many seconds."""
    for _ in range(max(1, round(seconds / _ENDING))):
        if kubeflow.ask("runs", "run_service_get_run", run).state in ENDED:
            return True
        pause(_ENDING)
    return False
