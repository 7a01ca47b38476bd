"""summary.json: the run's results under fixed names."""

from __future__ import annotations

import math
from typing import Any

from components.common.errors import redact
from components.common.records import StepRecord
from components.reporting.changes import Change
from components.reporting.comparisons import Against, Comparisons
from components.reporting.results import CurriculumResult, PhaseResult, Results

_LEDGER = ("rows_in", "expanded", "examples", "duplicates", "rejected", "unsampled", "held_out")


def build_summary(results: Results, found: Comparisons, verdict: str, report: StepRecord) -> dict[str, Any]:
    """The summary as JSON values; what is not known is null, never a made-up number.

    Args:
        results: The run.
        found: Its comparisons.
        verdict: Its verdict.
        report: The step that writes the report, for the timing.

    Of several seeds, `phases` lists every seed's phases with their `seed`, and a control's `metrics` are means.
    """
    info = results.info
    ledger = results.prepare.info["ledger"] if results.prepare else {}
    summary = {
        "run": info.run,
        "name": info.name,
        "spec_digest": info.spec_digest,
        "verdict": verdict,
        "complete": not results.missing and not found.lost,
        "missing": [*results.missing, *(f"{step}/examples.parquet" for step in found.lost)],
        "seeds": results.seeds,
        "confidence": results.spec.evaluation.confidence,
        "metric": found.measure.metric(),
        "phases": _phases(results, results.main),
        "metrics": _last_metrics(results, found, results.main),
        "against_base": _comparison(found),
        "changes": [_change(found, change) for change in found.changes],
        "controls": [_control(results, found, against) for against in found.controls],
        "base": {"metrics": results.base_metrics},
        "data": {name: ledger.get(name) for name in _LEDGER},
        "timing": [_timing(record) for record in [*results.records, report]],
        "mlflow": {"uri": redact(info.mlflow.get("uri", "")), "run_id": info.mlflow.get("run_id", "")},
    }
    return _finite(summary)  # type: ignore[no-any-return]  # a dictionary stays one


def _finite(value: Any) -> Any:
    """The same value with null for NaN and infinities, which JSON cannot hold."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _phase(results: Results, phase: PhaseResult, train: StepRecord) -> dict[str, Any]:
    info = train.info
    return {
        "name": info["name"],
        "curriculum": phase.plan.curriculum,
        "index": phase.plan.index,
        "method": info["method"],
        "key": train.key,
        "parent_key": info["parent_key"],
        "tier": info["tier"],
        "tiers": info["tiers"],
        "seed": phase.seed,
        "examples": info["examples"],
        "tokens": info["tokens"],
        "response_tokens": info["response_tokens"],
        "truncated": info["truncated"],
        "steps": info["steps"],
        "data": _own_data(results, phase),
        "seconds": round(train.seconds, 3),
        "train_seconds": info.get("train_seconds"),
        "reused": train.reused,
        "metrics": phase.metrics,
    }


def _own_data(results: Results, phase: PhaseResult) -> dict[str, int] | None:
    """The ledger of the phase's own data; null where it trains on tiers."""
    record = results.own_data(phase)
    return None if record is None else dict(record.info["ledger"])


def _phases(results: Results, curriculum: CurriculumResult) -> list[dict[str, Any]]:
    return [_phase(results, phase, phase.train) for phase in curriculum.all_phases() if phase.train]


def _last_metrics(results: Results, found: Comparisons, curriculum: CurriculumResult) -> dict[str, float | None]:
    """Metrics after the last phase. Of several seeds: the means, with intervals that hold the seeds' spread."""
    ends = [phase.metrics for seed in results.seeds if (phase := curriculum.last(seed)).evaluation]
    if len(ends) < 2:
        return ends[0] if ends else {}
    metrics: dict[str, float | None] = {}
    for name in sorted(set.union(*(set(end) for end in ends))):
        values = [value for end in ends if (value := end.get(name)) is not None]
        if values and not name.endswith((".low", ".high")):
            metrics[name] = sum(values) / len(values)
    for (owner, name), level in found.levels.items():
        if owner == curriculum.name:
            metrics |= {name: level.value, f"{name}.low": level.low, f"{name}.high": level.high}
            metrics[f"{name}.seed_sd"] = level.spread
    return metrics


def _comparison(found: Comparisons) -> dict[str, Any]:
    gap = found.over_base
    return {
        "metric": found.measure.metric(),
        "difference": gap.difference if gap else None,
        "low": gap.low if gap else None,
        "high": gap.high if gap else None,
        "p": gap.p if gap else None,
    }


def _change(found: Comparisons, change: Change) -> dict[str, Any]:
    gap = change.comparison
    return {
        "phase": change.plan.name,
        "index": change.plan.index,
        "method": change.plan.method,
        "metric": found.measure.metric(change.part),
        "before": change.before.value if change.before else None,
        "after": change.after.value if change.after else None,
        "difference": gap.difference if gap else None,
        "low": gap.low if gap else None,
        "high": gap.high if gap else None,
        "p": gap.p if gap and not change.part else None,
        "n": change.n,
        "seeds": change.seeds,
    }


def _control(results: Results, found: Comparisons, against: Against) -> dict[str, Any]:
    gap = against.comparison
    return {
        "name": against.control.name,
        "phases": _phases(results, against.control),
        "metrics": _last_metrics(results, found, against.control),
        "against_main": {
            "metric": found.measure.metric(),
            "difference": gap.difference if gap else None,
            "low": gap.low if gap else None,
            "high": gap.high if gap else None,
            "p": gap.p if gap else None,
            "p_holm": against.p_holm,
            "outcome": against.outcome,
            "n": against.n,
            "seeds": against.seeds,
            "tokens_difference": against.tokens_difference,
            "steps_difference": against.steps_difference,
            "same_training": against.same_training,
        },
    }


def _timing(record: StepRecord) -> dict[str, Any]:
    return {
        "step": record.step,
        "seconds": round(record.seconds, 3),
        "overhead_seconds": round(record.overhead_seconds, 3),
        "reused": record.reused,
    }
