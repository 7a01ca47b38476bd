"""A sweep: Ray Tune over curricula, in which trials share every phase they have in common."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from components.common.errors import UserError, redact
from components.common.launcher import session
from components.common.machine import machine, versions
from components.common.records import RunInfo
from components.common.spec import Spec
from components.common.spec_file import spec_digest
from components.common.store import Store
from pipelines.compute_check import this_machine
from pipelines.planning import check_inputs
from pipelines.sweep_chains import Task
from pipelines.sweep_check import distinct
from pipelines.sweep_measured import Measured
from pipelines.sweep_results import Results, results_of, write_results
from pipelines.sweep_run import SweepRun, Trial
from pipelines.sweep_screen import SweepScreen
from pipelines.sweep_slots import SESSION, Slots, Where, devices_of
from pipelines.sweep_space import Params, tiers_of, trials_of
from pipelines.sweep_spec import Sweep
from pipelines.sweep_suggest import choices
from pipelines.sweep_tracking import SweepTracking
from pipelines.sweep_tune import OBJECTIVE, TOKENS, Tuning, suggested

LOG_FILE = "sweep.log"
PROPOSED_FILE = "proposed.jsonl"
"""The space, then what Optuna proposed in it, in order: an interrupted sweep is proposed the same again."""
_PAUSE = 0.1


def slots_of(spec: Spec, asked: int | None) -> int:
    """Phases that are trained at the same time: on this machine one for each core or GPU that a phase uses.

    Where phases are sent to a cluster, only the user knows how much room there is: one, unless asked for more.
    """
    there, compute = this_machine(), spec.compute
    if asked is not None or compute.ray != "local":
        return asked or 1
    if compute.gpus_per_worker:
        return max(1, len(there.gpus) // compute.most_workers)
    return max(1, there.cores // max(compute.most_workers, compute.threads or 1))


def with_threads(spec: Spec, slots: int, cores: int | None = None) -> Spec:
    """A trial's spec as its slot does it: on CPUs with the slot's share of the cores, unless it names its threads.

    Args:
        spec: Of the trial.
        slots: Pieces of work at a time.
        cores: Of which the slots have an equal share; this machine's where None.
    """
    if spec.compute.threads is not None or spec.compute.gpus_per_worker:
        return spec
    threads = max(1, (cores or os.cpu_count() or 1) // slots)
    return spec.model_copy(update={"compute": spec.compute.model_copy(update={"threads": threads})})


@dataclass(slots=True)
class Sweeping:
    """One run of a sweep.

    Args:
        sweep: The sweep.
        folder: Gets sweep.json, sweep.html and the log.
        base: The base spec, resolved.
        count: Slots.
        cores: Of all slots together; this machine's where None.
    """

    sweep: Sweep
    folder: Path
    base: Spec
    count: int
    cores: int | None = None
    run_id: str = ""
    trials: list[Trial] = field(default_factory=list)
    repeats: list[Trial] = field(default_factory=list)

    def trial(self, params: Params, seed: int, number: int) -> Trial:
        """A trial, with the run that its steps are told about."""
        spec = with_threads(self.sweep.resolved(params, seed), self.count, self.cores)
        values = spec.model_dump(mode="json")
        values["tracking"]["uri"] = redact(spec.tracking.uri)
        info = RunInfo(
            run=f"{self.run_id}-{number}-s{seed}",
            name=f"{self.sweep.spec.name} {number}",
            spec=values,
            spec_digest=spec_digest(spec),
            store=spec.store,
            output_dir=str(self.folder.absolute()),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=versions(),
            machine=machine(),
        )
        return Trial(number, params, seed, spec, info)

    def new_trial(self, params: Params) -> Trial:
        """A further trial with the base spec's seed."""
        trial = self.trial(params, self.base.seed, len(self.trials) + 1)
        self.trials.append(trial)
        return trial


def run_sweep(sweep: Sweep, folder: Path, console: Console, where: Where | None = None) -> dict[str, Any]:
    """Run a sweep to its end, or to the end of its budget.

    Args:
        sweep: The sweep.
        folder: Gets sweep.json, sweep.html and the log.
        console: Where the user watches.
        where: Work is done; in a session of its own on this machine where None.

    Returns:
        What sweep.json holds.

    Raises:
        UserError: If no trial can be run, or what must be mended stops them all.
    """
    base = sweep.resolved({})
    check_inputs(base)
    count = slots_of(base, sweep.spec.slots)
    sweeping = Sweeping(sweep, folder, base, count, None if where is None else where.cores(count))
    sweeping.run_id = f"{sweep.spec.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    _begin(sweeping)
    folder.mkdir(parents=True, exist_ok=True)
    store = Store(base.store)
    store.clear_staging()
    tracking = SweepTracking(sweeping, store, console)
    screen = SweepScreen(console, sweep.spec.objective)
    console.print(
        f"{sweep.spec.name}: {sweeping.run_id}, {sweeping.count} slots, log {folder / LOG_FILE}", highlight=False
    )
    here = session(folder / "ray-logs") if where is None else contextlib.nullcontext()
    devices = devices_of(base.compute, count, len(this_machine().gpus)) if where is None else []
    with tracking, here, Slots(count, folder / LOG_FILE, where or SESSION, devices) as slots, screen.following():
        measured = Measured(sweep.spec.objective)

        def on_event(what: str, task: Task, trial: Trial, seconds: float) -> None:
            screen.event(what, task, trial, seconds)
            tracking.event(what, task, trial, seconds)
            if what == "done" and task.kind == "evaluations":
                measured.check(store, task.work.key)

        run = SweepRun(store, slots, sweep.spec.stop.scheduler != "none", on_event)
        run.on_chain = lambda trial: measured.look(store, trial)
        run.limit(sweep.spec.budget.hours, sweep.spec.budget.phases)
        screen.begin(run)
        tracking.begin(run)
        results: Results | None = None
        try:
            _round(sweeping, run, sweeping.trials, proposes=sweep.spec.search.method == "optuna")
            measured.settle(run, sweeping.trials)
            _repeat(sweeping, run)
        finally:
            # Also of a sweep that was stopped: what is known is shown, and the same command goes on from there.
            results = results_of(sweep, run, sweeping.trials, sweeping.repeats)
            written = write_results(results, folder)
            tracking.results(written)
            screen.end(written)
    store.clear_staging()  # a trainer outlives its killed step by a moment, in which it may write there once more
    return written


def _begin(sweeping: Sweeping) -> None:
    """Make the trials that are known, and refuse what a trial's machine or data cannot do before anything starts."""
    sweep = sweeping.sweep
    if sweep.spec.search.method == "optuna":
        looked_at = [sweeping.trial(params, sweeping.base.seed, 0) for params in choices(sweep)]
    else:
        looked_at = [sweeping.new_trial(params) for params in trials_of(sweep)]
    for spec in distinct(trial.spec for trial in looked_at):
        check_inputs(spec)


def _round(sweeping: Sweeping, run: SweepRun, trials: list[Trial], proposes: bool = False) -> None:
    """Do what trials ask for, while Tune looks on, or proposes them."""
    sweep, known = sweeping.sweep, None if proposes else [tiers_of(sweeping.sweep, one.params) for one in trials]
    gradual = sweep.spec.stop.scheduler != "none"
    for trial in [] if proposes or gradual else trials:
        run.ask(trial)
    if trials and all(run.state(trial) == "done" for trial in trials):
        return  # all of it is in the store: there is nothing to watch
    tuning = Tuning(sweep, known, sweeping.count, _proposed(sweeping) if proposes else ())
    # Ray takes seconds to start, in which the slots can work.
    starting = threading.Thread(target=tuning.start, name="ray-start", daemon=True)
    starting.start()
    try:
        _follow(sweeping, run, trials, tuning, starting, gradual)
    finally:
        if not starting.is_alive():
            tuning.close()
            if tuning.said:
                with (sweeping.folder / LOG_FILE).open("a", encoding="utf-8") as log:
                    log.write(f"{tuning.said}\n")


def _follow(
    sweeping: Sweeping, run: SweepRun, trials: list[Trial], tuning: Tuning, starting: threading.Thread, gradual: bool
) -> None:
    watchers: dict[str, tuple[Trial, int]] = {}
    ended: set[str] = set()
    told_at = -1
    while True:
        busy = run.step()
        if starting.is_alive():
            if not busy:
                time.sleep(_PAUSE)
            continue
        watching = tuning.running  # looked at first: what Tune says at its end is heard below
        for asked in tuning.asked():
            proposed = suggested(asked.config)
            if asked.watcher in ended:
                continue  # asked before its end, heard after it: no trial that Tune proposes anew
            if asked.watcher in watchers:
                trial = watchers[asked.watcher][0]
            elif proposed is None:
                trial = trials[asked.config["trial"]["number"]]
            else:
                trial = _propose(sweeping, proposed)
            watchers[asked.watcher], told_at = (trial, asked.seen), -1
            run.ask(trial, asked.seen + 1 if gradual else None)
        if told_at != run.changes:  # to look through the store again and again would take time from the training
            told_at = run.changes
            for watcher, (trial, seen) in watchers.items():
                tuning.tell(watcher, *_told(sweeping, run, trial, seen, gradual))
        for watcher in tuning.left():
            ended.add(watcher)
            trial, _ = watchers.pop(watcher)
            if trial.same is None and run.state(trial) == "running":
                run.stop(trial)
        if not busy and (run.spent or not watching):
            return
        if not busy:
            time.sleep(_PAUSE)  # Tune decides


def _told(
    sweeping: Sweeping, run: SweepRun, trial: Trial, seen: int, gradual: bool
) -> tuple[list[dict[str, float]], bool]:
    """What a watcher can be told: its trial's reports, no further than it may go, and whether these are all."""
    trial, name = trial.same or trial, sweeping.sweep.spec.objective.name
    state = run.state(trial)
    if state == "failed" or trial.chain is None:
        return [], state == "failed"
    reports: list[dict[str, float]] = []
    tokens, whole = 0, len([key for key in trial.chain.evaluations if key])
    for phase, key in enumerate(trial.chain.evaluations):
        tokens += trial.chain.tokens[phase] or 0  # None only where nobody counts: `Sweep.resolved` refuses ASHA there
        if not key:
            continue
        metrics = run.metrics(trial, phase) if not gradual or len(reports) <= seen else {}
        if name not in metrics:
            if metrics:
                return reports, True  # it measured other things only
            break
        reports.append({OBJECTIVE: metrics[name], TOKENS: float(tokens)})
    # A trial that turned out to be another one ends with that, at whatever phase.
    return reports, len(reports) == whole or (len(reports) <= seen and state in ("done", "stopped"))


def _propose(sweeping: Sweeping, params: Params) -> Trial:
    """A trial that Tune proposed, noted so that an interrupted sweep is proposed the same again."""
    import json

    trial = sweeping.new_trial(params)
    check_inputs(trial.spec)
    lines = [_space(sweeping), *(json.dumps(one.params, sort_keys=True) for one in sweeping.trials)]
    path = sweeping.folder / PROPOSED_FILE
    partial = path.with_suffix(".partial")
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    before = _lines(path)
    if before[:1] != lines[:1] or len(lines) >= len(before):
        partial.replace(path)
    return trial


def _proposed(sweeping: Sweeping) -> list[Params]:
    import json

    lines = _lines(sweeping.folder / PROPOSED_FILE)
    if lines[:1] != [_space(sweeping)]:  # another space has other proposals
        return []
    return [json.loads(line) for line in lines[1 : 1 + sweeping.sweep.spec.search.trials]]


def _space(sweeping: Sweeping) -> str:
    import json

    return json.dumps(sweeping.sweep.spec.model_dump(mode="json")["space"], sort_keys=True)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _repeat(sweeping: Sweeping, run: SweepRun) -> None:
    """Run the promising trials with the further seeds: the best of many is also the luckiest."""
    search = sweeping.sweep.spec.search
    if search.seeds == 1 or run.spent:
        return
    name, sign = sweeping.sweep.spec.objective.name, 1 if sweeping.sweep.spec.objective.mode == "max" else -1
    ended = [trial for trial in sweeping.trials if trial.same is None and name in run.metrics(trial)]
    best = sorted(ended, key=lambda trial: -sign * run.metrics(trial)[name])[: search.promising]
    for further in range(1, search.seeds):  # seed by seed: a budget that ends between two leaves what can be compared
        for trial in best:
            sweeping.repeats.append(sweeping.trial(trial.params, sweeping.base.seed + further, trial.number))
    for repeat in sweeping.repeats:
        run.ask(repeat)
    while run.step():
        pass


__all__ = ["LOG_FILE", "Sweeping", "UserError", "run_sweep", "slots_of", "with_threads"]
