"""Measure a model on the held-out part. Heavy: runs behind the launcher.

`loss`: mean negative log-likelihood of the replies, nats per token, over all tokens of the examples. `verifiable`:
share of verifiable examples whose greedy answer a verifier accepts. Both per tier and overall, with bootstrap
intervals over clusters of examples that share a group. Examples with a `slice` make a test of their own and stay
out of the tiers and of the overall number.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from components.common.digests import hash_order
from components.common.errors import DataError
from components.common.examples import Example, read_rows, write_rows
from components.common.models import context_length, load_model, load_tokenizer, model_folder, quiet
from components.common.progress import Progress
from components.common.rendering import encode, refuse_long_prompts
from components.common.selection import for_selection
from components.common.statistics import Interval, accuracy_interval, ratio_interval
from components.common.verifiers import verify

RESULTS = "examples.parquet"
SCHEMA = pa.schema(
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
Row = dict[str, Any]


def choose(
    held_out: Path, per_tier: int | None, seed: int, without_selection: bool = False
) -> list[tuple[Example, int]]:
    """The examples to measure with their tiers, in file order.

    Args:
        held_out: A split's `held_out.parquet`.
        per_tier: At most so many of each tier and slice, the first by a seeded hash; None: all.
        seed: Of the data.
        without_selection: Leave out the examples that checkpoints are selected on.

    Raises:
        DataError: If none is left but tests of their own.
    """
    rows = [(Example.from_row(row), int(row["tier"])) for row in read_rows(held_out)]
    if without_selection:
        selecting = sum(for_selection(example) for example, _ in rows)
        rows = [(example, tier) for example, tier in rows if not for_selection(example)]
        if selecting and all(example.slice is not None for example, _ in rows):
            raise DataError(
                f"all {selecting} held-out example(s) fall into the half that `select` compares checkpoints on, so "
                "nothing is left to evaluate",
                "raise `data.held_out.fraction`, or take `select: last` in every phase",
            )
    if per_tier is None:
        return rows
    kept: set[str] = set()
    for stratum in {(tier, example.slice) for example, tier in rows}:
        ids = [example.id for example, tier in rows if (tier, example.slice) == stratum]
        kept.update(hash_order(ids, seed, "evaluated")[:per_tier])
    return [(example, tier) for example, tier in rows if example.id in kept]


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Evaluate one model.

    Args:
        job: JSON values: `model` (folder), `model_spec`, `held_out` (file), `evaluation` (an EvaluationSpec's
            values), `without_selection`, `max_length`, `seed` (of the data), `bootstrap_seed`, `gpus`, `threads`,
            `label`, `out`.

    Returns:
        `metrics` ({name: value}), `examples` (number), `ordinary` (those without a slice), `verifiable` (of these, the
        ones that a verifier judged), `seconds` (of all this); `out/examples.parquet` holds every example's result.
    """
    from components.common.reproducible import set_reproducible
    from components.common.spec import ModelSpec

    began = time.monotonic()
    quiet()
    set_reproducible(job["threads"])
    folder, settings = model_folder(job["model"]), job["evaluation"]
    chosen = choose(Path(job["held_out"]), settings["max_examples"], job["seed"], job["without_selection"])
    examples = [example for example, _ in chosen]
    model = load_model(folder, ModelSpec.model_validate(job["model_spec"]), "cuda" if job["gpus"] else "cpu")
    tokenizer, context = load_tokenizer(folder), context_length(folder)
    asked = [e for e in examples if e.verifier is not None] if "verifiable" in settings["suites"] else []
    progress = Progress(job["label"], len(examples) + len(asked), "examples")
    rows = [_row(example, tier) for example, tier in chosen]
    if "loss" in settings["suites"]:
        _losses(model, tokenizer, examples, rows, min(job["max_length"], context), settings, progress.update)
    if asked:
        _answers(model, tokenizer, asked, rows, context, settings, lambda n: progress.update(len(examples) + n))
    write_rows(Path(job["out"]) / RESULTS, rows, SCHEMA)
    ordinary = [row for row in rows if row["slice"] is None]
    return {
        "metrics": summarize(rows, settings, job["bootstrap_seed"]),
        "examples": len(rows),
        "ordinary": len(ordinary),
        "verifiable": sum(row.get("correct") is not None for row in ordinary),
        "seconds": time.monotonic() - began,
    }


def _row(example: Example, tier: int) -> Row:
    return {
        "id": example.id,
        "cluster": example.group or example.id,
        "tier": tier,
        "slice": example.slice,
        "expected": example.answer,
        "prompt": "\n".join(content for _, content in example.prompt),
    }


def _losses(
    model: Any,
    tokenizer: Any,
    examples: list[Example],
    rows: list[Row],
    limit: int,
    settings: dict[str, Any],
    on_done: Callable[[int], None],
) -> None:
    from components.common.likelihood import response_nll

    encoded = encode(tokenizer, [example.messages for example in examples], limit)
    refuse_long_prompts([(e.id, item) for e, item in zip(examples, encoded, strict=True)], limit)
    nll = response_nll(model, encoded, settings["batch_tokens"], on_done)
    for row, item, value in zip(rows, encoded, nll, strict=True):
        row.update(nll=float(value), tokens=item.response_tokens)


def _answers(
    model: Any,
    tokenizer: Any,
    asked: list[Example],
    rows: list[Row],
    context: int,
    settings: dict[str, Any],
    on_done: Callable[[int], None],
) -> None:
    from components.common.generation import generate

    prompts = [example.prompt for example in asked]
    replies = generate(
        model, tokenizer, prompts, settings["max_new_tokens"], settings["batch_tokens"], context, on_done
    )
    place = {row["id"]: row for row in rows}
    for example, reply in zip(asked, replies, strict=True):
        accepted = verify(str(example.verifier), reply, example.answer or "")
        place[example.id].update(response=reply, correct=accepted)


def summarize(rows: list[Row], settings: dict[str, Any], seed: int) -> dict[str, float]:
    """The metrics of an evaluation with their intervals, by name."""
    parts: dict[str, list[Row]] = {"": [row for row in rows if row["slice"] is None]}
    for tier in sorted({row["tier"] for row in parts[""]}):
        parts[f"tier_{tier}."] = [row for row in parts[""] if row["tier"] == tier]
    for name in sorted({row["slice"] for row in rows if row["slice"] is not None}):
        parts[f"{name}."] = [row for row in rows if row["slice"] == name]
    metrics: dict[str, float] = {}
    for part, members in parts.items():
        if "loss" in settings["suites"] and members:
            _put(metrics, f"loss.{part}nats_per_token", _loss_interval(members, settings, seed))
        verifiable = [row for row in members if row.get("correct") is not None]
        if verifiable:
            clusters = [row["cluster"] for row in verifiable]
            correct = np.array([row["correct"] for row in verifiable], dtype=np.float64)
            found = accuracy_interval(correct, clusters, settings["confidence"], settings["resamples"], seed)
            _put(metrics, f"verifiable.{part}accuracy", found)
    return metrics


def _loss_interval(members: list[Row], settings: dict[str, Any], seed: int) -> Interval:
    nats = np.array([row["nll"] for row in members])
    tokens = np.array([row["tokens"] for row in members], dtype=np.float64)
    clusters = [row["cluster"] for row in members]
    return ratio_interval(nats, tokens, clusters, settings["confidence"], settings["resamples"], seed)


def _put(metrics: dict[str, float], name: str, found: Interval) -> None:
    values = found.to_dict()
    for suffix, key in (("", "value"), (".low", "low"), (".high", "high")):
        value = values[key]
        if value is not None:  # one cluster has no interval
            metrics[name + suffix] = float(value)
