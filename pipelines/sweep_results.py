"""What a sweep came to: its table, its counts and its verdict, as sweep.json holds them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.sweep_run import SweepRun, Trial
from pipelines.sweep_spec import Sweep
from pipelines.sweep_verdict import CONFIDENCE, Judged, judge

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
    return Results(sweep, run, trials, repeats, judge(sweep, run, trials, repeats))


def as_json(results: Results) -> dict[str, Any]:
    """What sweep.json holds; the table's best trial first, those without a result last."""
    run, objective = results.run, results.sweep.spec.objective
    distinct = [trial for trial in results.trials if trial.same is None]
    sign = 1 if objective.mode == "max" else -1
    rows = [_row(results, trial) for trial in distinct]
    rows.sort(
        key=lambda row: (
            row["metrics"].get(objective.name) is None,
            -sign * (row["metrics"].get(objective.name) or 0.0),
        )
    )
    nodes = [node for node in run.planner.nodes() if node.work.counted]
    chains = [trial.chain for trial in [*distinct, *results.repeats] if trial.chain is not None]
    return {
        "name": results.sweep.spec.name,
        "objective": objective.model_dump(mode="json"),
        "trials": len(distinct),
        "merged_trials": len(results.trials) - len(distinct),
        "phases_requested": sum(sum(task.work.counted for task in chain.tasks) for chain in chains),
        "phases_distinct": len(nodes),
        "phases_trained": len(run.trained),
        "phases_reused": sum(node.found for node in nodes),
        "seconds": time.monotonic() - STARTED,
        "slot_seconds": run.slot_seconds,
        "verdict": results.judged.text,
        "contest": _contest(results.judged),
        "table": rows,
    }


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
    values = {seed: run.metrics(one).get(name) for seed, one in {trial.seed: trial, **again}.items()}
    return {
        "trial": trial.number,
        "params": trial.params,
        "same_as": [one.params for one in trial.merged],
        "state": run.state(trial),
        "reason": run.reason(trial),
        "metrics": run.metrics(trial),
        "by_seed": {str(seed): value for seed, value in values.items() if value is not None},
        "tokens": sum(trial.chain.tokens) if trial.chain is not None else None,
        "keys": list(trial.chain.phases) if trial.chain is not None else [],
    }


def write_results(results: Results, folder: Path) -> dict[str, Any]:
    """Write sweep.json whole, and return what it holds."""
    written = as_json(results)
    partial = folder / f".{RESULTS_FILE}.{os.getpid()}"
    partial.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / RESULTS_FILE)
    return written
