"""The tree of a sweep's phases as sweep.json and sweep.html show it: what trials share, and what became of it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.common.curriculum import PhasePlan, expand
from components.common.errors import UserError
from pipelines.sweep_chains import Task
from pipelines.sweep_run import SweepRun, Trial

MOST_SHOWN = 300
"""Nodes of the page's tree; of a larger one those that trials share are shown."""


def tree_of(run: SweepRun, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Every split and every phase that trials have asked for, parents before children.

    Each has `key`, `parent` (the key of what it comes after; null for a split), `label`, `about`, `state` (`trained`
    by this sweep, `stored` before it, `failed`, or `open`), `trials` (the numbers of those that share it), and, of
    phases that are done, `tokens` and `seconds` of training.
    """
    rows: dict[str, dict[str, Any]] = {}
    for trial in trials:
        if trial.chain is None:
            continue
        plans = {(one.name, plan.index): plan for one in expand(trial.spec, trial.seed) for plan in one.phases}
        for task in trial.asked:
            if task.kind == "splits" and task.work.key not in rows:
                rows[task.work.key] = _split(trial, task)
            elif task.work.counted and task.work.key not in rows:
                place = task.arguments
                rows[task.work.key] = _phase(run, task, plans[place["curriculum"], place["index"]])
            if task.work.key in rows and trial.number not in rows[task.work.key]["trials"][-1:]:
                rows[task.work.key]["trials"].append(trial.number)
    for row in rows.values():
        row["trials"] = sorted(set(row["trials"]))
    return list(rows.values())


def _split(trial: Trial, task: Task) -> dict[str, Any]:
    tiers = trial.spec.splitting.tiers
    return {
        "key": task.work.key,
        "parent": None,
        "label": f"{tiers} tier{'s' * (tiers != 1)}",
        "about": f"{trial.spec.scoring.method}, {trial.spec.splitting.cut}, seed {trial.seed}",
        "state": "",
        "trials": [],
        "tokens": None,
        "seconds": None,
    }


def _phase(run: SweepRun, task: Task, plan: PhasePlan) -> dict[str, Any]:
    key, info = task.work.key, {}
    node = run.planner.node(key)
    if node.state == "done":
        with contextlib.suppress(UserError):  # a store that is away must not take the results with it
            entry = run.store.find("phases", key)
            info = {} if entry is None else entry.info
    ended = "trained" if key in run.trained else "stored"
    seconds = info.get("train_seconds")
    return {
        "key": key,
        "parent": task.work.parent,
        "label": plan.name,
        "about": plan.method if plan.curriculum == "main" else f"{plan.method}, {plan.curriculum}",
        "state": {"done": ended, "failed": "failed"}.get(node.state, "open"),
        "trials": [],
        "tokens": info.get("tokens"),
        "seconds": None if seconds is None else round(float(seconds), 3),
    }


@dataclass(frozen=True, slots=True)
class Branch:
    """A line of the page's tree.

    Attributes:
        row: The split or phase, as in sweep.json.
        depth: How far below its split; 0 for the split.
        share: The trials that share it, of all of its split.
    """

    row: Mapping[str, Any]
    depth: int
    share: float


def branches(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Branch], int]:
    """The tree line by line, each phase below what it comes after; and how many unshared phases are left out."""
    shown = list(rows)
    if len(rows) > MOST_SHOWN:
        shown = [row for row in rows if row["parent"] is None or len(row["trials"]) > 1][:MOST_SHOWN]
    below: dict[str | None, list[Mapping[str, Any]]] = {}
    for row in shown:
        below.setdefault(row["parent"], []).append(row)
    lines: list[Branch] = []
    waiting = [(row, 0, max(1, len(row["trials"]))) for row in reversed(below.get(None, []))]
    while waiting:
        row, depth, whole = waiting.pop()
        lines.append(Branch(row, depth, len(row["trials"]) / whole))
        children = sorted(below.get(row["key"], []), key=lambda child: -len(child["trials"]))
        waiting += [(child, depth + 1, whole) for child in reversed(children)]
    return lines, len(rows) - len(lines)
