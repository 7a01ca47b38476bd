"""What a sweep came to: its table, its counts and its verdict, as sweep.json holds them."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.common.curriculum import MAIN, expand
from pipelines.sweep_page import PAGE_FILE, write_page
from pipelines.sweep_page_tree import tree_of
from pipelines.sweep_run import SweepRun, Trial
from pipelines.sweep_spec import Sweep
from pipelines.sweep_verdict import CONFIDENCE, Judged, judge
from pipelines.terminal import visible

RESULTS_FILE = "sweep.json"
STARTED = time.monotonic()


@dataclass(frozen=True, slots=True)
class Results:
    """A sweep's results.

    Attributes:
        sweep: The sweep.
        run: Its work.
        trials: The trials asked for, with the first seed.
        repeats: The promising ones' repetitions.
        judged: The verdict.
    """

    sweep: Sweep
    run: SweepRun
    trials: Sequence[Trial]
    repeats: Sequence[Trial]
    judged: Judged


def results_of(sweep: Sweep, run: SweepRun, trials: Sequence[Trial], repeats: Sequence[Trial]) -> Results:
    """The results so far."""
    try:
        judged = judge(sweep, run, trials, repeats)
    except Exception as error:  # a result that cannot be read must not take the table of all others with it
        judged = Judged([f"The trials could not be compared: {_reason(error)}."], None, [], [])
        print(f"warning: there is no verdict: {visible(_reason(error))}", file=sys.stderr)
    return Results(sweep, run, trials, repeats, judged)


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def as_json(results: Results) -> dict[str, Any]:
    """What sweep.json holds; in the table those that were compared come first, the best before the others.

    Then those that were not, by their first run, and last those without a result.
    """
    run, objective = results.run, results.sweep.spec.objective
    distinct = [trial for trial in results.trials if trial.same is None]
    sign = 1 if objective.mode == "max" else -1
    rows = [_row(results, trial) for trial in distinct]
    compared = _compared(results.judged)

    def rank(row: dict[str, Any]) -> tuple[bool, bool, float]:
        own = row["metrics"].get(objective.name)
        value = compared.get(row["trial"], own)
        return row["trial"] not in compared, value is None, -sign * (value or 0.0)

    rows.sort(key=rank)
    nodes = [node for node in run.planner.nodes() if node.work.counted]
    asked = [task for trial in [*distinct, *results.repeats] for task in trial.asked]
    return {
        "name": results.sweep.spec.name,
        "objective": objective.model_dump(mode="json"),
        "trials": len(distinct),
        "merged_trials": len(results.trials) - len(distinct),
        "phases_requested": sum(task.work.counted for task in asked),
        "phases_distinct": len(nodes),
        "phases_trained": len(run.trained),
        "phases_reused": sum(node.found for node in nodes),
        "seconds": time.monotonic() - STARTED,
        "slot_seconds": run.slot_seconds,
        "verdict": results.judged.text,
        "sentences": results.judged.sentences,
        "contest": _contest(results.judged),
        "table": rows,
        "tree": tree_of(run, [*distinct, *results.repeats]),
    }


def _compared(judged: Judged) -> dict[int, float]:
    """The value of every candidate over the seeds that count, by the trial's number."""
    if judged.contest is None:
        return {}
    return {trial.number: value for trial, value in zip(judged.candidates, judged.contest.values, strict=True)}


def _contest(judged: Judged) -> dict[str, Any] | None:
    found = judged.contest
    if found is None:
        return None
    rows = zip(judged.candidates, found.values, found.lows, found.highs, found.chances, strict=True)
    return {
        "confidence": CONFIDENCE,
        "seeds": judged.seeds,
        "won": found.won,
        "leader": judged.candidates[found.leader].number,
        "runner_up": None if found.runner_up is None else judged.candidates[found.runner_up].number,
        "difference": None if found.difference is None else found.difference.to_dict(),
        "candidates": [
            {"trial": trial.number, "value": value, "low": low, "high": high, "chance": chance}
            for trial, value, low, high, chance in rows
        ],
    }


def _row(results: Results, trial: Trial) -> dict[str, Any]:
    run, name = results.run, results.sweep.spec.objective.name
    again = {repeat.seed: repeat for repeat in results.repeats if repeat.number == trial.number}
    runs = {trial.seed: trial, **again}
    values = {seed: run.metrics(one).get(name) for seed, one in runs.items()}
    return {
        "trial": trial.number,
        "params": trial.params,
        "same_as": [one.params for one in trial.merged],
        "state": run.state(trial),
        "reason": run.reason(trial),
        "metrics": run.metrics(trial),
        "by_seed": {str(seed): value for seed, value in values.items() if value is not None},
        "tokens": run.tokens(trial),
        "keys": list(trial.chain.phases) if trial.chain is not None else [],
        "tiers": trial.spec.splitting.tiers,
        "order": _order(trial),
        "evaluations": {str(seed): uri for seed, one in runs.items() if (uri := _evaluation(run, one))},
    }


def _order(trial: Trial) -> list[int] | None:
    """The order of the tiers, each of which has one phase; None of a curriculum of another kind."""
    main = next(one for one in expand(trial.spec, trial.seed) if one.name == MAIN)
    tiers = [plan.tiers[0] for plan in main.phases if len(plan.tiers) == 1]
    count = trial.spec.splitting.tiers
    return tiers[:count] if sorted(tiers[:count]) == list(range(1, count + 1)) else None


def _evaluation(run: SweepRun, trial: Trial) -> str:
    """Where the per-example results of a trial's end are; empty where it has not been evaluated."""
    key = trial.chain.evaluations[-1] if trial.chain is not None and run.metrics(trial) else ""
    entry = run.store.find("evaluations", key) if key else None
    return "" if entry is None else entry.uri


def write_results(results: Results, folder: Path) -> dict[str, Any]:
    """Write sweep.json whole, then its page; returns what sweep.json holds."""
    written = as_json(results)
    partial = folder / f".{RESULTS_FILE}.{os.getpid()}"
    partial.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / RESULTS_FILE)
    try:
        write_page(written, folder)
    except Exception as error:  # the page is made of what is in sweep.json, and must not hide it
        print(f"warning: {PAGE_FILE} could not be written: {visible(_reason(error))}", file=sys.stderr)
    return written
