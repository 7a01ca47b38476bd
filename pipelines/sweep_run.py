"""A sweep on its way: trials become pieces of work, pieces become results, until nothing is wanted any more.

This module knows neither Ray Tune nor the screen: who decides which trials there are drives it (`sweep.py`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from components.common.checkpoints import clear_finished, unfinished
from components.common.errors import UserError
from components.common.records import RunInfo
from components.common.spec import Spec
from components.common.store import Store
from pipelines.sweep_chains import Chain, Chains, Task
from pipelines.sweep_slots import Outcome, Slots, fatal
from pipelines.sweep_space import Params
from pipelines.sweep_tree import Planner

ATTEMPTS = 3
"""How often a piece of work whose process was lost is tried."""
_TICK = 0.2


@dataclass(slots=True)
class Trial:
    """One trial of a sweep, with one seed.

    Attributes:
        number: Its number among the distinct trials, from 1; repetitions with other seeds have their trial's.
        params: What it varies.
        seed: Of this repetition.
        spec: Its resolved spec.
        info: What its steps are told about their run.
        chain: What it asks for; None until its split is there.
        beginning: The number in the planner of what comes before its phases.
        place: The number in the planner of as much of its chain as was asked for last.
        asked: The tasks of that.
        whole: Whether that is all of it.
        stopped: Whether it was ended early; it has no result then, also where another trial's phases would give one.
        merged: Further trials that turned out to be this one.
        same: The trial that this one turned out to be.
    """

    number: int
    params: Params
    seed: int
    spec: Spec
    info: RunInfo
    chain: Chain | None = None
    beginning: int | None = None
    place: int | None = None
    asked: tuple[Task, ...] = ()
    whole: bool = False
    stopped: bool = False
    merged: list[Trial] = field(default_factory=list)
    same: Trial | None = None


class SweepRun:
    """Does the work that trials ask for, each piece once.

    Args:
        store: Where results are.
        slots: Where work is done.
        every: Whether every phase is evaluated.
        on_event: Told of every piece of work that ended, and of what was begun.
    """

    def __init__(
        self, store: Store, slots: Slots, every: bool, on_event: Callable[[str, Task, Trial, float], None]
    ) -> None:
        self.store = store
        self.chains = Chains(store, every)
        self.planner = Planner(Stored(store, self.chains.carried))
        self.trained: dict[str, float] = {}
        self.changes = 0
        """Grows whenever a trial may have come to something new."""
        self.on_chain: Callable[[Trial], None] = lambda trial: None
        """Told of every trial as its phases become known, before any of them is begun; may refuse it."""
        self.slot_seconds = 0.0
        self._slots = slots
        self._on_event = on_event
        self._tasks: dict[str, tuple[Task, Trial]] = {}
        self._pending: list[tuple[Trial, int | None]] = []
        self._attempts: dict[str, int] = {}
        self._training: set[str] = set()
        self._places: dict[int, Trial] = {}
        self._left = unfinished(store.objects)
        self._identities: dict[tuple[str, ...], Trial] = {}
        self._stop_at: float | None = None
        self._most_phases: int | None = None

    def limit(self, hours: float | None, phases: int | None) -> None:
        """Begin nothing more after so many hours, or so many trained phases; called before anything is asked for."""
        self._stop_at = None if hours is None else time.monotonic() + hours * 3600
        self._most_phases = phases
        self.planner.in_order = hours is not None or phases is not None

    @property
    def spent(self) -> bool:
        """Whether the budget is spent."""
        return self._late or (self._most_phases is not None and len(self.trained) >= self._most_phases)

    @property
    def _affordable(self) -> bool:
        """Whether one more phase is within the budget, those under way counted."""
        return self._most_phases is None or len(self.trained.keys() | self._training) < self._most_phases

    @property
    def _late(self) -> bool:
        return self._stop_at is not None and time.monotonic() > self._stop_at

    def ask(self, trial: Trial, phases: int | None = None) -> None:
        """Ask for a trial, or for its first so many phases; more of it can be asked for later.

        Nothing is begun here. What comes before its phases is done first; only then is it known what they are, and
        whether it is another trial than those before it.
        """
        if trial.same is not None or (trial.chain is None and trial.beginning is not None):
            return
        if trial.chain is not None:
            self._extend(trial, trial.chain, phases)
            return
        tasks = self.chains.beginning(trial.spec, trial.seed)
        trial.beginning = self._add(trial, tasks)
        self._pending.append((trial, phases))
        self._resolve()

    def step(self) -> bool:
        """Begin what can be begun and take what has ended, waiting a moment for it; False where nothing is under way.

        Raises:
            UserError: What every further trial would fail for as well.
        """
        while self._slots.free and not self._late and (work := self.planner.grant(self._affordable)) is not None:
            task, trial = self._tasks[work.key]
            self._training |= {work.key} if work.counted else set()
            self._on_event("begun", task, trial, 0.0)
            self._slots.start(task, self._arguments(task, trial))
        if self._slots.free == self._slots.count:
            return False
        for outcome in self._slots.wait(_TICK):
            self._take(outcome)
        self._resolve()
        return True

    def _resolve(self) -> None:
        """Add the phases of trials whose beginning is done."""
        left = []
        for trial, phases in self._pending:
            state = self.planner.trial_state(trial.beginning or 0)
            if state == "running":
                left.append((trial, phases))
            elif state == "done":
                trial.chain = self.chains.whole(trial.spec, trial.seed)
                self.on_chain(trial)
                same = self._identities.setdefault(trial.chain.identity, trial)
                if same is not trial:
                    trial.same = same
                    same.merged.append(trial)
                else:
                    self._extend(trial, trial.chain, phases)
        self._pending = left

    def _extend(self, trial: Trial, chain: Chain, phases: int | None) -> None:
        trial.asked = chain.upto(phases)
        trial.place, trial.whole = self._add(trial, trial.asked), len(trial.asked) == len(chain.tasks)

    def _add(self, trial: Trial, tasks: Sequence[Task]) -> int:
        for task in tasks:
            self._tasks.setdefault(task.work.key, (task, trial))
        number = self.planner.add([task.work for task in tasks])
        self._places[number] = trial
        for key in sorted(self._left & {task.work.key for task in tasks}):
            if self.planner.node(key).found:  # no step looks at it any more, and its maker may have been killed
                clear_finished(self.store.place, key, trial.info.run)
                self._left.discard(key)
        return number

    def stop(self, trial: Trial) -> None:
        """A trial is not wanted any more."""
        trial.stopped = True
        self.changes += 1
        if trial.place is not None:
            self.planner.stop(trial.place)

    def take_ended(self) -> list[Trial]:
        """The trials for which something that they asked for has ended since this was last called."""
        return [self._places[number] for number in self.planner.take_ended()]

    def state(self, trial: Trial) -> str:
        """`running`, `done`, `failed` or `stopped`; one that may still ask for more is running."""
        trial = trial.same or trial
        if trial.stopped:
            return "stopped"
        place = trial.beginning if trial.place is None else trial.place
        if place is None:
            return "running"
        state = self.planner.trial_state(place)
        return "running" if state == "done" and not trial.whole else state

    def reason(self, trial: Trial) -> str:
        """Why a trial failed."""
        trial = trial.same or trial
        place = trial.beginning if trial.place is None else trial.place
        return "" if place is None else self.planner.reason(place)

    def metrics(self, trial: Trial, phase: int = -1) -> dict[str, float]:
        """The metrics of a trial's phase, the last where none is named; empty where it has not been evaluated.

        Those of its last phase are the trial's only if it was asked for whole: another one may share them.
        """
        trial = trial.same or trial
        if trial.chain is None or not trial.chain.evaluations[phase]:
            return {}
        if phase == -1 and (trial.stopped or not trial.whole):
            return {}
        entry = self.store.find("evaluations", trial.chain.evaluations[phase])
        return {} if entry is None else dict(entry.info["metrics"])

    def tokens(self, trial: Trial) -> int | None:
        """Tokens that a trial's phases were trained on, as they noted themselves: of those it asked for that are done.

        None where there are none yet, or the store is away.
        """
        trial = trial.same or trial
        asked = [task.work.key for task in trial.asked]
        phases = () if trial.chain is None else trial.chain.phases
        done = [key for key in phases if key in asked and self.planner.node(key).state == "done"]
        found: list[int] = []
        with contextlib.suppress(UserError):  # a store that is away must not take the results with it
            entries = [self.store.find("phases", key) for key in done]
            found = [entry.info["tokens"] for entry in entries if entry is not None and "tokens" in entry.info]
        return sum(found) if found and len(found) == len(done) else None

    def _take(self, outcome: Outcome) -> None:
        key, planner = outcome.task.work.key, self.planner
        self.changes += 1
        trial = self._tasks[key][1]
        self.slot_seconds += outcome.seconds
        self._training.discard(key)
        if outcome.error is None:
            if self.store.find(outcome.task.kind, key) is None:
                raise AssertionError(f"{outcome.task.label} made another result than {outcome.task.kind}/{key}")
            if outcome.task.work.counted:
                self.trained[key] = outcome.seconds
            planner.finished(key)
            self._on_event("done", outcome.task, trial, outcome.seconds)
            return
        self._attempts[key] = self._attempts.get(key, 0) + 1
        if (error := fatal(outcome)) is not None:
            planner.lost(key)
            raise error
        if outcome.lost:
            self.store.clear_staging()  # what the process was at when it was killed
        if outcome.lost and self._attempts[key] < ATTEMPTS:
            planner.lost(key)
            self._on_event("lost", outcome.task, trial, outcome.seconds)
            return
        if not isinstance(outcome.error, Exception):  # a wish to stop
            planner.lost(key)
            raise outcome.error
        planner.failed(key, (str(outcome.error).splitlines() or [type(outcome.error).__name__])[0])
        self._on_event("failed", outcome.task, trial, outcome.seconds)

    def _arguments(self, task: Task, trial: Trial) -> dict[str, Any]:
        references = {name: self._reference(key) for name, key in task.needs.items()}
        return {"context": trial.info.to_json(), **task.arguments, **references}

    def _reference(self, key: str) -> str:
        return self.chains.reference(self._tasks[key][0].kind, key) if key else ""


class Stored:
    """The keys of results that the store holds, whatever their kind; of a carried phase with its optimizer."""

    _KINDS = ("phases", "evaluations", "splits", "scores", "prepared")

    def __init__(self, store: Store, carried: set[str]) -> None:
        self._store = store
        self._carried = carried

    def __contains__(self, key: object) -> bool:
        name = str(key)
        if name in self._carried and self._store.whole("optimizers", name) is None:
            return False
        return any(self._store.whole(kind, name) is not None for kind in self._KINDS)  # type: ignore[arg-type]  # each is a Kind
