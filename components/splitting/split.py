"""Splits scored examples into tiers and says what the tiers are made of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from components.common.digests import digest_lines, unit_hash
from components.common.examples import SCORED_SCHEMA, given_difficulty
from components.common.spec import SplittingSpec
from components.common.statistics import spearman
from components.splitting.cuts import assign, cut_points, require_finite
from components.splitting.distribution import five_numbers, histogram
from components.splitting.scatter import scatter

HELD_OUT_SCHEMA = SCORED_SCHEMA.append(pa.field("tier", pa.int32()))
REPORT = "split_report.json"

_BATCH = 16384


@dataclass(frozen=True, slots=True)
class _Columns:
    """What is needed of every training example at once; shapes [n]."""

    ids: pa.ChunkedArray
    difficulty: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.int64]
    response_tokens: npt.NDArray[np.int64]
    given: npt.NDArray[np.float64]
    """The data's own difficulty (`fields["difficulty"]`), NaN where it has none."""


def split(scores: Path, held_out_scores: Path | None, spec: SplittingSpec, seed: int, out: Path) -> dict[str, Any]:
    """Split scored examples into tiers.

    Writes `tier-1.parquet` (the easiest) and so on, each in the order of the seeded hash of its ids, so that new
    examples do not move the old ones; `held_out.parquet` (the rows in file order with their `tier`), if there is a
    held-out part; and the report as `split_report.json`. Memory grows by some 300 bytes for each example, whatever
    their length.

    Args:
        scores: Training examples, Parquet with `SCORED_SCHEMA`.
        held_out_scores: Held-out examples, likewise; they are put into tiers by the cuts of the training examples.
        spec: Number of tiers and how they are cut.
        seed: Of the order within the tiers.
        out: Folder to write to; made where absent.

    Returns:
        The report. Correlations are Spearman's, null where undefined; a tier's `held_out` counts held-out rows of
        every slice; its `digest` is that of its ids in order.

    Raises:
        DataError: If a difficulty is not a finite number, or a tier would be empty.
    """
    columns = _read(scores)
    cuts = cut_points(columns.difficulty, columns.tokens, spec)
    tiers = assign(columns.difficulty, cuts)
    out.mkdir(parents=True, exist_ok=True)
    held_out = np.zeros(spec.tiers, np.int64)
    if held_out_scores is not None:
        held_out = _write_held_out(held_out_scores, cuts, out / "held_out.parquet")
    targets: dict[Path, npt.NDArray[np.int64]] = {}
    described = []
    for tier in range(1, spec.tiers + 1):
        rows, digest = _in_order(columns.ids, np.flatnonzero(tiers == tier), seed)
        targets[out / f"tier-{tier}.parquet"] = rows
        described.append(_describe(tier, rows, digest, columns, int(held_out[tier - 1])))
    report = {
        "cut": spec.cut,
        "cuts": cuts,
        "spearman_difficulty_length": spearman(columns.difficulty, columns.tokens),
        "spearman_difficulty_given": spearman(columns.difficulty, columns.given),
        "tiers": described,
        "histogram": histogram(columns.difficulty),
        "examples": len(columns.difficulty),
        "tokens": int(columns.tokens.sum()),
    }
    del columns, tiers
    scatter(scores, targets)
    (out / REPORT).write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return report


def _read(path: Path) -> _Columns:
    """The columns that decide; the text stays in the file."""
    names = ["id", "difficulty", "tokens", "response_tokens", "fields"]
    ids: list[pa.Array] = []
    numbers: list[list[npt.NDArray[Any]]] = []
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_BATCH, columns=names):
            ids.append(batch.column("id"))
            numbers.append(
                [
                    _floats(batch.column("difficulty")),
                    batch.column("tokens").to_numpy(zero_copy_only=False).astype(np.int64),
                    batch.column("response_tokens").to_numpy(zero_copy_only=False).astype(np.int64),
                    np.array([given_difficulty(text) for text in batch.column("fields").to_pylist()], np.float64),
                ]
            )
    if not numbers:
        whole, real = np.empty(0, np.int64), np.empty(0, np.float64)
        return _Columns(pa.chunked_array([], pa.string()), real, whole, whole, real)
    return _Columns(pa.chunked_array(ids), *(np.concatenate(parts) for parts in zip(*numbers, strict=True)))


def _floats(column: pa.Array) -> npt.NDArray[np.float64]:
    """A column as floats, NaN for null."""
    values: npt.NDArray[np.float64] = column.to_numpy(zero_copy_only=False).astype(np.float64)
    return values


def _in_order(ids: pa.ChunkedArray, rows: npt.NDArray[np.int64], seed: int) -> tuple[npt.NDArray[np.int64], str]:
    """A tier's rows in the order that `hash_order(ids, seed, "order")` gives their ids, and the digest of the ids.

    Equal ids (data that was not deduplicated) keep the file's order.
    """
    names: list[str] = ids.take(pa.array(rows)).to_pylist()
    order = sorted(range(len(names)), key=lambda index: (unit_hash(names[index], seed, "order"), names[index]))
    return rows[np.array(order, np.int64)], digest_lines(names[index] for index in order)


def _describe(tier: int, rows: npt.NDArray[np.int64], digest: str, columns: _Columns, held_out: int) -> dict[str, Any]:
    """The report's entry of one tier."""
    return {
        "tier": tier,
        "examples": len(rows),
        "tokens": int(columns.tokens[rows].sum()),
        "response_tokens": int(columns.response_tokens[rows].sum()),
        "difficulty": five_numbers(columns.difficulty[rows]),
        "length": five_numbers(columns.tokens[rows]),
        "digest": digest,
        "held_out": held_out,
    }


def _write_held_out(source: Path, cuts: list[float], target: Path) -> npt.NDArray[np.int64]:
    """Copy the held-out rows with their tier; returns how many are in each tier."""
    counts = np.zeros(len(cuts) + 1, np.int64)
    with pq.ParquetFile(source) as file:
        require_finite(_floats(file.read(columns=["difficulty"]).column("difficulty").combine_chunks()), "held-out")
        with pq.ParquetWriter(target, HELD_OUT_SCHEMA, compression="zstd") as writer:
            for batch in file.iter_batches(batch_size=8192, columns=SCORED_SCHEMA.names):
                table = pa.Table.from_batches([batch]).select(SCORED_SCHEMA.names).cast(SCORED_SCHEMA)
                tiers = assign(_floats(batch.column("difficulty")), cuts)
                counts += np.bincount(tiers - 1, minlength=len(counts))
                writer.write_table(table.append_column(HELD_OUT_SCHEMA.field("tier"), pa.array(tiers, pa.int32())))
    return counts
