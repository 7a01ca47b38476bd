"""Writes a plausible finished run whose results are known: records, and per-example results of every evaluation.

Of each tier's 100 held-out examples exactly `round(100 * accuracy)` are right, so accuracies are literals.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.common.curriculum import MAIN, Curriculum, PhasePlan, expand, find_plan
from components.common.digests import digest
from components.common.examples import write_rows
from components.common.phase_data import preparing_places
from components.common.records import BASE, RunInfo, RunRecords, StepRecord, step_name
from components.common.spec import Spec
from components.common.spec_phases import GrpoSettings
from components.common.statistics import accuracy_interval, ratio_interval

PER_TIER = 100
TIERS = (1, 2, 3)
SLICE = "unseen_wording"
LEDGER = {
    "rows_in": 3200,
    "expanded": 40,
    "examples": 3000,
    "duplicates": 150,
    "rejected": 20,
    "unsampled": 70,
    "held_out": 340,
}

OWN_LEDGER = {
    "rows_in": 500,
    "expanded": 0,
    "examples": 450,
    "duplicates": 30,
    "rejected": 20,
    "unsampled": 0,
    "held_out": 41,
}


def spec_of(name: str = "night", **changes: Any) -> Spec:
    """A spec of 3 ascending phases; `changes` replace top-level keys."""
    fields: dict[str, Any] = {
        "name": name,
        "data": {"train": [{"path": "lab://instructions?count=3000"}]},
        "controls": ["one_off", "random_tiers"],
        "evaluation": {"resamples": 500},
    }
    return Spec.model_validate(fields | changes)


def examples_table(accuracy: float, noise: int, verifiable: bool = True, loss: float | None = None) -> pa.Table:
    """Per-example results: tiers 15 points around the accuracy, and 40 examples of a slice 10 points below it."""
    common = np.random.default_rng(7)
    own = np.random.default_rng(noise)
    rows: list[dict[str, Any]] = []
    for part, tier, count, offset in [*((None, t, PER_TIER, 0.3 - 0.15 * t) for t in TIERS), (SLICE, 2, 40, -0.1)]:
        ease = common.uniform(size=count) + 0.15 * own.uniform(size=count)
        right = set(np.argsort(ease)[: round(count * min(1.0, max(0.0, accuracy + offset)))].tolist())
        lengths = common.integers(2, 9, size=count)
        level = (loss if loss is not None else 2.2 - 2 * accuracy) * (0.7 + 0.15 * tier)
        nats = lengths * (level + 0.2 * common.uniform(-1, 1, size=count) + 0.02 * own.uniform(-1, 1, size=count))
        for row in range(count):
            answer = f"{row * 7 + tier}"
            rows.append(
                {
                    "id": f"{part or 'held'}-{tier}-{row:03d}",
                    "cluster": f"group-{part}-{tier}-{row // 2}",
                    "tier": tier,
                    "slice": part,
                    "nll": float(nats[row]),
                    "tokens": int(lengths[row]),
                    "correct": row in right if verifiable else None,
                    "response": (answer if row in right else "I think it is 3") if verifiable else None,
                    "expected": answer if verifiable else None,
                    "prompt": f"Mira has {row} stones and finds {tier} more. How many are in 7 such piles, roughly?",
                }
            )
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("cluster", pa.string()),
            ("tier", pa.int32()),
            ("slice", pa.string()),
            ("nll", pa.float64()),
            ("tokens", pa.int32()),
            ("correct", pa.bool_()),
            ("response", pa.string()),
            ("expected", pa.string()),
            ("prompt", pa.string()),
        ]
    )
    return pa.Table.from_pylist(rows, schema=schema)


def metrics_of(table: pa.Table, verifiable: bool) -> dict[str, float]:
    """The metrics that an evaluation of these examples reports."""
    rows = table.to_pylist()
    metrics: dict[str, float] = {}
    parts = {"": lambda row: row["slice"] is None, f"{SLICE}.": lambda row: row["slice"] == SLICE}
    parts |= {f"tier_{t}.": lambda row, t=t: row["slice"] is None and row["tier"] == t for t in TIERS}
    for part, belongs in parts.items():
        members = [row for row in rows if belongs(row)]
        clusters = [row["cluster"] for row in members]
        nats, tokens = [row["nll"] for row in members], [row["tokens"] for row in members]
        found = {f"loss.{part}nats_per_token": ratio_interval(nats, tokens, clusters, 0.95, 500, 1)}
        if verifiable:
            marks = [float(row["correct"]) for row in members]
            found[f"verifiable.{part}accuracy"] = accuracy_interval(marks, clusters, 0.95, 500, 1)
        for name, interval in found.items():
            metrics |= {name: interval.value, f"{name}.low": interval.low, f"{name}.high": interval.high}
    return metrics


class _Writer:
    def __init__(self, folder: Path, run: str, missing: set[str], verifiable: bool) -> None:
        self.store, self.missing, self.verifiable = folder / "store", missing, verifiable
        self.records = RunRecords(self.store, run)

    def write(self, step: str, kind: str, key: str, seconds: float, info: dict[str, Any], reused: bool = False) -> None:
        uri = str(self.store / kind / key)
        if step not in self.missing:
            self.records.write(StepRecord(step, kind, key, uri, reused, seconds, min(seconds, 0.8), info))

    def evaluate(
        self, curriculum: str, index: int, seed: int, accuracy: float, model_key: str, loss: float | None
    ) -> None:
        step = step_name("evaluate", curriculum, index, seed)
        key = digest(["evaluation", step])
        table = examples_table(accuracy, int(key[:6], 16), self.verifiable, loss)
        folder = self.store / "evaluations" / key
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / "examples.parquet")
        info = {"curriculum": curriculum, "index": index, "seed": seed, "model_key": model_key, "examples": 340}
        self.write(step, "evaluations", key, 3.4, info | {"metrics": metrics_of(table, self.verifiable)})

    def prepare(self, spec: Spec, source: str) -> None:
        """What comes before training: the data from this source, their scores, splits, and the phases' own data."""
        told = {"format": "messages", "why": "rows have `messages` with roles"}
        read = {"path": source, **told, "rows": 3200, "examples": 3000, "rejected": 20}
        info = {"ledger": LEDGER, "sources": [read], "rejected_file": "runs/night/rejected.jsonl"}
        self.write("prepare", "prepared", "p1", 4.2, info)
        scored = {"method": "ifd", "model": "lab", "settings": {}, "examples": 3000, "truncated": 0}
        self.write("score", "scores", "s1", 17.5, scored | {"spearman_length": 0.31, "spearman_given": 0.64})
        for seed in spec.all_seeds:
            self.write(step_name("split", seed=seed), "splits", f"t{seed}", 0.9, _split_info())
        self.evaluate(BASE, 0, spec.seed, 0.16, "basekey", 2.0)
        for place in dict.fromkeys(preparing_places(spec).values()):
            plan = find_plan(spec, *place)
            about = {"name": plan.name, "method": plan.method, "curriculum": place[0], "ledger": OWN_LEDGER}
            own = [{"path": s.path, "format": "hh", "why": "auto", "rows": 500, "examples": 450} for s in plan.data]
            self.write(step_name("prepare", *place), "prepared", f"o{place}", 0.7, about | {"sources": own})

    def train(self, curriculum: Curriculum, seed: int, final: float, loss: float | None) -> None:
        """A curriculum's phases, on an even way to the accuracy (and the loss, where one is told) of the last one."""
        parent, reached = "basekey", 0.0
        for plan in curriculum.phases:
            key = digest([plan.curriculum, plan.index, seed])
            share = plan.index / len(curriculum.phases)
            step = step_name("train", plan.curriculum, plan.index, seed)
            self.write(step, "phases", key, 12.5, _train_info(plan, seed, parent, reached), plan.index == 2)
            _show(self.store / "phases" / key, plan.method)
            accuracy = 0.16 + (final - 0.16) * share
            self.evaluate(plan.curriculum, plan.index, seed, accuracy, key, loss if share == 1 else None)
            parent, reached = key, final


def _train_info(plan: PhasePlan, seed: int, parent: str, reached: float) -> dict[str, Any]:
    portions = plan.portions[plan.chunk :][:1] if plan.arrangement == "chunk" else plan.portions
    examples = 1000 * sum(len(portion.tiers) * portion.epochs for portion in portions)
    steps = plan.settings.steps or 8 if isinstance(plan.settings, GrpoSettings) else math.ceil(examples / 128)
    noise = np.random.default_rng(plan.index + 10 * seed + len(plan.curriculum))
    floor = 0.6 + 0.25 * max([*plan.tiers, 0])
    of_method = {"dpo": {"rewards/margins": 0.3, "rewards/accuracies": 0.8}, "grpo": {"reward": 0.5, "kl": 0.01}}
    learning = [
        {
            "step": step,
            "loss": floor + (1.2 - reached) * math.exp(-step / 6) + 0.06 * noise.standard_normal(),
            "learning_rate": 5e-6,
            "grad_norm": 1.0,
            "tokens": step * 128 * 40,
            "time": 0.3 * step,
            **of_method.get(plan.method, {}),
        }
        for step in range(1, steps + 1)
    ]
    return {
        "name": plan.name,
        "curriculum": plan.curriculum,
        "index": plan.index,
        "seed": seed,
        "method": plan.method,
        "parent_key": parent,
        "tiers": plan.tiers,
        "tier": plan.tiers[0] if len(plan.tiers) == 1 else None,
        "examples": examples,
        "tokens": examples * 40,
        "response_tokens": examples * 6,
        "steps": steps,
        "truncated": 0,
        "settings": plan.settings.model_dump(mode="json"),
        "learning": learning,
    }


def _show(folder: Path, method: str) -> None:
    """The tables that a phase leaves: rollouts, and pairs of its own making."""
    if method == "grpo":
        rows = [
            {"step": step, "prompt": f"<i>{step}</i> + 1?", "completion": str(step + row), "exact": float(row == 1)}
            for step in (1, 4, 8)
            for row in range(5)
        ]
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / "rollouts.parquet")
    elif method == "dpo":
        turns = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "two"}]
        folder.mkdir(parents=True)
        write_rows(folder / "pairs.parquet", [{"id": "a", "messages": turns, "rejected": "<script>"}])


def _split_info() -> dict[str, Any]:
    middles = np.linspace(0.2, 2.2, 41)
    counts = (200 * np.exp(-(((middles[:-1] - 1.0) / 0.4) ** 2))).astype(int).tolist()
    quartiles = {"min": 0.2, "q1": 0.5, "median": 0.61, "q3": 0.72, "max": 2.2}
    tiers = [
        {
            "tier": tier,
            "examples": 887,
            "tokens": 35480,
            "response_tokens": 5322,
            "difficulty": {name: value + 0.3 * (tier - 1) for name, value in quartiles.items()},
            "length": {"min": 1, "q1": 3, "median": 4 + tier, "q3": 9, "max": 31},
            "digest": digest(tier),
            "held_out": PER_TIER,
        }
        for tier in TIERS
    ]
    return {
        "cut": "quantiles",
        "cuts": [0.82, 1.17],
        "spearman_difficulty_length": 0.31,
        "spearman_difficulty_given": 0.64,
        "tiers": tiers,
        "histogram": {"edges": middles.tolist(), "counts": counts},
        "examples": 2661,
        "tokens": 106440,
    }


def build_run(
    folder: Path,
    *,
    spec: Spec | None = None,
    final: dict[str, float] | None = None,
    losses: dict[str, float] | None = None,
    by_seed: dict[int, float] | None = None,
    missing: set[str] | None = None,
    verifiable: bool = True,
    info: dict[str, Any] | None = None,
    source: str = "lab://instructions?count=3000",
) -> RunRecords:
    """Write a run.

    Args:
        folder: Where its store goes.
        spec: Its spec; `spec_of()` where absent.
        final: Accuracy after the last phase by curriculum.
        losses: Nats per token after the last phase by curriculum, where they should not follow the accuracy.
        by_seed: What a seed adds to every accuracy.
        missing: Steps without a record.
        verifiable: Whether the held-out examples have answers.
        info: Fields of `RunInfo` to replace.
        source: The path of the data's source.
    """
    spec = spec or spec_of()
    final = {MAIN: 0.62, "one_off": 0.61, "random_tiers": 0.52} | (final or {})
    run = f"{spec.name}-0001"
    writer = _Writer(folder, run, missing or set(), verifiable)
    fields: dict[str, Any] = {
        "run": run,
        "name": spec.name,
        "spec": spec.model_dump(mode="json"),
        "spec_digest": digest(spec.model_dump(mode="json")),
        "store": str(writer.store),
        "output_dir": str(folder / "out"),
        "started": "2026-01-31T12:00:00+00:00",
        "mlflow": {"uri": "sqlite:///mlflow.db", "run_id": "abc123"},
        "versions": {"torch": "2.9.0", "transformers": "5.0.0", "phasetune": "0.1.0"},
        "machine": {"platform": "Linux", "cpu": "x86-64", "cores": 2, "memory_gib": 8.0, "gpus": []},
    }
    writer.records.open(RunInfo(**(fields | (info or {}))))
    writer.prepare(spec, source)
    for seed in spec.all_seeds:
        for curriculum in expand(spec, seed):
            reached = final.get(curriculum.name, 0.6) + (by_seed or {}).get(seed, 0.0)
            writer.train(curriculum, seed, reached, (losses or {}).get(curriculum.name))
    return writer.records
