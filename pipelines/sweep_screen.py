"""What the user sees of a sweep: a bar of phases, a line for each trial that ends, and the table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from pipelines.sweep_chains import Task
from pipelines.sweep_run import SweepRun, Trial
from pipelines.sweep_spec import ObjectiveSpec

_SHOWN = 20
"""Rows of the table on the screen; sweep.json and sweep.html have all."""


def described(params: dict[str, Any]) -> str:
    """A trial's parameters in few words: the last part of each key, and its value."""
    return ", ".join(f"{key.split('.')[-1]} {_short(value)}" for key, value in params.items())


def _short(value: Any) -> str:
    return "-".join(str(item) for item in value) if isinstance(value, list) else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


class SweepScreen:
    """Follows a sweep.

    Args:
        console: Where the user watches.
        objective: What decides.
    """

    def __init__(self, console: Console, objective: ObjectiveSpec) -> None:
        self._console = console
        self._objective = objective
        self._run: SweepRun | None = None
        self._told: set[int] = set()
        self._bars = Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._bar = self._bars.add_task("phases", total=None)
        self._since = time.monotonic()

    @contextmanager
    def following(self) -> Iterator[None]:
        """Show the bar until the block ends."""
        with self._bars:
            yield

    def begin(self, run: SweepRun) -> None:
        """Follow a sweep that begins."""
        self._run = run

    def event(self, what: str, task: Task, trial: Trial, seconds: float) -> None:
        """Something was begun, done, lost or has failed."""
        run = self._run
        if run is None:
            return
        if what in ("lost", "failed"):
            word = "was lost and is tried again" if what == "lost" else f"failed: {run.reason(trial)}"
            self._console.print(f"  trial {trial.number}: {task.label} {word}", highlight=False)
        total = run.planner.distinct() - run.planner.found
        self._bars.update(self._bar, completed=len(run.trained), total=total)
        for ended in run.take_ended():
            self._tell(run, ended)

    def _tell(self, run: SweepRun, trial: Trial) -> None:
        if trial.number not in self._told and run.state(trial) == "done":
            value = run.metrics(trial).get(self._objective.name)
            if value is not None:
                self._told.add(trial.number)
                line = f"  trial {trial.number} ({described(trial.params)}): {value:.3f}"
                self._console.print(line, highlight=False)

    def end(self, written: dict[str, Any]) -> None:
        """Show what is known."""
        self._bars.stop()
        table = Table(box=None, pad_edge=False)
        found = written["contest"] or {"seeds": [], "candidates": []}
        compared = {one["trial"]: one["value"] for one in found["candidates"]}
        several = len(found["seeds"]) > 1
        over = [f"mean of seeds {', '.join(map(str, found['seeds']))}"] if several else []
        for column in ("trial", "", *over, self._objective.name, "state"):
            table.add_column(column, overflow="fold")
        rows = written["table"]
        for row in rows[:_SHOWN]:
            mean = [_number(compared.get(row["trial"]))] if several else []
            own = _number(row["metrics"].get(self._objective.name))
            table.add_row(str(row["trial"]), described(row["params"]), *mean, own, row["state"])
        self._console.print()
        self._console.print(table)
        if len(rows) > _SHOWN:
            self._console.print(f"and {len(rows) - _SHOWN} more", highlight=False)
        counts = (
            f"{written['phases_requested']} phases asked for, {written['phases_distinct']} distinct, "
            f"{written['phases_trained']} trained, {written['phases_reused']} found in the store; "
            f"{time.monotonic() - self._since:.0f} s"
        )
        self._console.print(counts, highlight=False)
        self._console.print(f"\n{written['verdict']}\n", highlight=False)
