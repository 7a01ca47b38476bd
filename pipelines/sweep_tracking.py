"""A sweep in MLflow: sent from a thread while it runs, and completed at its end.

MLflow holds a copy, and nothing waits for it. `tracking.json` beside sweep.json notes which phases this sweep trained,
and whether MLflow has all of it: what is missing, the next run of the same command sends.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console

from components.common.curriculum import find_plan
from components.common.errors import redact
from components.common.store import Store
from components.common.tracking import open_tracked
from components.common.tracking_connect import connect, reachable
from components.common.tracking_sweep import (
    PhaseMade,
    Status,
    SweepEnd,
    SweepRuns,
    TrialAbout,
    TrialEnd,
)
from pipelines.screen import tracking_warnings, warn
from pipelines.sweep_chains import Task
from pipelines.sweep_run import SweepRun, Trial
from pipelines.sweep_tracking_about import sweep_about, sweep_digest, sweep_end, trial_about

if TYPE_CHECKING:
    from pipelines.sweep import Sweeping

TRACKING_FILE = "tracking.json"
_PATIENCE = 5.0
"""Seconds that the start of a phase waits for its trial's run in MLflow."""
_PAUSE = 60.0
"""Seconds after a failure before MLflow is asked again."""
_LATER = "the sweep goes on; what is missing is sent at its end, or by the next run of the same command"
_STATUS: dict[str, Status] = {"done": "FINISHED", "failed": "FAILED", "stopped": "KILLED", "running": "KILLED"}
Job = Callable[[SweepRuns], Any]


class SweepTracking:
    """Copies a sweep to MLflow; a context manager, which is left when the sweep has ended.

    Args:
        sweeping: The sweep; where it goes on with an earlier run of it, it takes on that one's id.
        store: Its store.
        console: Where warnings go.

    Raises:
        UserError: If the tracking's URI is malformed, or MLflow is there and refuses.
    """

    def __init__(self, sweeping: Sweeping, store: Store, console: Console) -> None:
        self._sweeping = sweeping
        self._store = store
        self._console = console
        self._digest = sweep_digest(sweeping)
        self._on = sweeping.base.tracking.enabled
        self._uri = ""
        self._runs: SweepRuns | None = None
        self._again = 0.0
        self._warned = False
        self._run: SweepRun | None = None
        self._written: dict[str, Any] = {}
        self._told: set[str] = set()
        self._trained: dict[str, dict[str, Any]] = {}
        self._jobs: queue.PriorityQueue[tuple[int, int, Job | None, Future[Any]]] = queue.PriorityQueue()
        self._count = itertools.count()
        self._thread = threading.Thread(target=self._work, name="mlflow-sweep", daemon=True)
        if self._on:
            self._open()

    def _open(self) -> None:
        sweeping = self._sweeping
        known = _read(self._file)
        if known.get("digest") == self._digest and not known.get("complete"):
            sweeping.run_id, self._trained = known["run"], known["trained"]
        about = sweep_about(sweeping)
        with tracking_warnings(self._console):
            self._uri, self._runs = open_tracked(
                sweeping.base.tracking, _LATER, lambda client, uri: SweepRuns.open(client, uri, about)
            )
        if self._runs is None:
            self._warned = True
            self._away()
        else:
            sweeping.run_id = self._runs.run
        for trial in sweeping.trials:
            trial.info.run = f"{sweeping.run_id}-{trial.number}-s{trial.seed}"
        self._note(complete=False)

    @property
    def _file(self) -> Path:
        return self._sweeping.folder / TRACKING_FILE

    def _note(self, complete: bool) -> None:
        values = {
            "run": self._sweeping.run_id,
            "digest": self._digest,
            "complete": complete,
            "trained": self._trained,
        }
        partial = self._file.with_name(f".{TRACKING_FILE}.{os.getpid()}")
        with contextlib.suppress(OSError):  # a full disk ends the sweep elsewhere, and says so
            partial.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
            partial.replace(self._file)

    def __enter__(self) -> Self:
        if self._on:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._on:
            return
        self._put(None, urgent=True)
        self._thread.join()
        self._complete(error)

    def begin(self, run: SweepRun) -> None:
        """Follow the work of the sweep."""
        self._run = run

    def results(self, written: dict[str, Any]) -> None:
        """Note what sweep.json holds; it is sent when the sweep has ended."""
        self._written = written

    def event(self, what: str, task: Task, trial: Trial, seconds: float) -> None:
        """A piece of work was begun, done, lost or has failed."""
        if not self._on:
            return
        key = task.work.key if task.kind == "phases" else task.needs.get("phase", "")
        if task.kind == "phases" and what in ("begun", "done"):
            if what == "begun":
                self._begin(trial)
            # Noted as it begins: it may come to its end after the sweep was stopped.
            known = {**task.arguments, "trial": trial.info.run, "seconds": seconds if what == "done" else None}
            self._trained[key] = known
            self._note(complete=False)
        if what == "done" and key in self._trained:
            self._put(lambda runs: self._send_phase(runs, key))
        if what in ("done", "failed"):
            for one in self._trials():
                if one.info.run not in self._told and self._state(one) != "running":
                    self._told.add(one.info.run)
                    self._put(functools.partial(self._send_trial, trial=one, state=self._state(one)))

    def _begin(self, trial: Trial) -> None:
        """Give a trial's steps the run below which their live metrics belong."""
        if trial.info.mlflow.get("run_id"):
            return
        about = self._about(trial)
        begun = self._put(lambda runs: runs.begin_trial(about), urgent=True)
        # Where MLflow is away or slow, the phase's curve is sent when the phase has ended.
        with contextlib.suppress(_Away, TimeoutError):
            trial.info.mlflow = {"uri": self._uri, "run_id": begun.result(_PATIENCE)}

    def _trials(self) -> list[Trial]:
        return [one for one in [*self._sweeping.trials, *self._sweeping.repeats] if one.same is None]

    def _about(self, trial: Trial) -> TrialAbout:
        return trial_about(trial, self._sweeping.base.seed)

    def _state(self, trial: Trial) -> str:
        return "running" if self._run is None else self._run.state(trial)

    def _put(self, job: Job | None, urgent: bool = False) -> Future[Any]:
        answer: Future[Any] = Future()
        self._jobs.put((0 if urgent else 1, next(self._count), job, answer))
        return answer

    def _work(self) -> None:
        while True:
            _, _, job, answer = self._jobs.get()
            if job is None:
                return
            try:
                answer.set_result(self._do(job))
            except _Away as error:
                answer.set_exception(error)

    def _do(self, job: Job) -> Any:
        """Do something in MLflow.

        Raises:
            _Away: If it is away, or was a moment ago.
        """
        if self._runs is None and time.monotonic() < self._again:
            raise _Away
        try:
            if self._runs is None:
                if not reachable(self._uri):
                    raise ConnectionError("nothing listens there")
                self._runs = SweepRuns.open(connect(self._uri), self._uri, sweep_about(self._sweeping))
            return job(self._runs)
        except Exception as error:  # whatever MLflow, SQLAlchemy or the network raise: the sweep goes on
            self._away()
            if not self._warned:
                self._warned = True
                reason = redact((str(error).splitlines() or [""])[0])
                said = f"MLflow at {self._uri} does not take the sweep ({type(error).__name__}: {reason}): {_LATER}"
                warn(self._console, said)
            raise _Away from error

    def _away(self) -> None:
        self._runs, self._again = None, time.monotonic() + _PAUSE

    def _send_phase(self, runs: SweepRuns, key: str) -> None:
        """Send a phase that this sweep trained, with its evaluation where there is one."""
        known = self._trained[key]
        trial = next((one for one in self._trials() if one.info.run == known["trial"]), None)
        entry = self._store.find("phases", key)
        if trial is None or trial.chain is None or entry is None:
            return
        place = (known["curriculum"], known["index"], known["seed"])
        plan = find_plan(trial.spec, *place)
        measured = [task for task in trial.chain.tasks if task.kind == "evaluations" and task.needs["phase"] == key]
        result = self._store.find("evaluations", measured[0].work.key) if measured else None
        runs.phase(
            PhaseMade(
                trial=self._about(trial),
                place=place,
                name=plan.name,
                key=key,
                uri=entry.uri,
                about=entry.info,
                settings=plan.settings.model_dump(mode="json"),
                seconds=known["seconds"],
                metrics=None if result is None else result.info["metrics"],
            )
        )

    def _send_trial(self, runs: SweepRuns, trial: Trial, state: str) -> None:
        """Send what a trial came to."""
        chain, phases, name = trial.chain, {}, self._sweeping.sweep.spec.objective.name
        if chain is not None and state != "stopped":  # the phases of a stopped one may be another trial's
            entries = {
                index: self._store.find("evaluations", key) for index, key in enumerate(chain.evaluations, 1) if key
            }
            found = {index: entry.info["metrics"] for index, entry in entries.items() if entry is not None}
            phases = {index: dict(sorted(of.items(), key=lambda one: one[0] != name)) for index, of in found.items()}
        tokens = None if self._run is None else self._run.tokens(trial)
        totals = {} if chain is None else {"phases": len(chain.phases)}
        totals |= {} if tokens is None else {"tokens": tokens}
        tags = {}
        if state == "failed" and self._run is not None:
            tags["phasetune.reason"] = self._run.reason(trial)
        if trial.merged:
            tags["phasetune.merged"] = json.dumps([one.params for one in trial.merged])
        keys = () if chain is None else chain.phases
        runs.end_trial(self._about(trial), TrialEnd(_STATUS[state], state, phases, totals, keys, tags))

    def _complete(self, error: BaseException | None) -> None:
        """Send all that MLflow does not hold yet, the sweep's own end last."""
        self._again = 0.0
        try:
            for key in self._trained:
                self._do(functools.partial(self._send_phase, key=key))
            states = [self._state(one) for one in self._trials()]
            begun = {known["trial"] for known in self._trained.values()}
            for trial, state in zip(self._trials(), states, strict=True):
                if state != "running" or trial.info.mlflow.get("run_id") or trial.info.run in begun:
                    self._do(functools.partial(self._send_trial, trial=trial, state=state))
            end = self._do(lambda runs: self._send_end(runs, error, states))
        except _Away:
            said = f"MLflow at {self._uri} does not hold the whole sweep: the same command sends the rest"
            self._console.print(said, highlight=False)
            return
        self._note(complete=end.status == "FINISHED")

    def _send_end(self, runs: SweepRuns, error: BaseException | None, states: list[str]) -> SweepEnd:
        end = sweep_end(self._sweeping, self._written, states, error)
        runs.end(end)
        return end


class _Away(Exception):
    """MLflow is away."""


def _read(path: Path) -> dict[str, Any]:
    """What is noted; nothing where there is no note or it cannot be read."""
    try:
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if known.keys() >= {"run", "digest", "complete", "trained"} else {}
