"""The per-example results of one evaluation, as comparisons need them, and a few answers to look at."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from components.common.digests import hash_order
from components.common.records import StepRecord
from components.common.store import folder_of
from components.reporting.measures import ACCURACY, Measure

EXAMPLES = "examples.parquet"
_NUMBERS = ["id", "cluster", "tier", "slice", "nll", "tokens", "correct"]
_TEXTS = ["id", "tier", "slice", "correct", "prompt", "expected", "response"]


@dataclass(frozen=True, slots=True)
class Answers:
    """Per-example results of one evaluation, ordered by id.

    Attributes:
        ids: The examples' ids.
        clusters: The cluster of each.
        tiers: The tier of each.
        slices: The slice of each; None for ordinary examples.
        nll: Nats summed over the response; NaN where it was not measured.
        tokens: Tokens of the response.
        correct: 1 or 0; NaN where the example is not verifiable.
    """

    ids: npt.NDArray[np.str_]
    clusters: list[str | None]
    tiers: npt.NDArray[np.int64]
    slices: list[str | None]
    nll: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.float64]
    correct: npt.NDArray[np.float64]

    def numerators(self, measure: Measure) -> npt.NDArray[np.float64]:
        """Per example what is added up: marks for accuracy, nats for loss; NaN where not measured."""
        return self.correct if measure is ACCURACY else self.nll

    def weights(self, measure: Measure) -> npt.NDArray[np.float64]:
        """Per example what the sum is divided by: 1 for accuracy, tokens for loss."""
        return np.ones(len(self.ids)) if measure is ACCURACY else self.tokens

    def member(self, part: str) -> npt.NDArray[np.bool_]:
        """Which examples belong to a part: all ordinary ones (``""``), a tier's (`tier_1`), or a slice's."""
        ordinary = np.array([name is None for name in self.slices], dtype=bool)
        if not part:
            return ordinary
        if tier := re.fullmatch(r"tier_(\d+)", part):
            ordinary &= self.tiers == int(tier[1])
            return ordinary
        return np.array([name == part for name in self.slices], dtype=bool)

    def take(self, ids: npt.NDArray[np.str_]) -> Answers:
        """The results of some of the examples, in the order of ``ids`` (sorted, each present)."""
        rows = np.searchsorted(self.ids, ids)
        return Answers(
            self.ids[rows],
            [self.clusters[row] for row in rows],
            self.tiers[rows],
            [self.slices[row] for row in rows],
            self.nll[rows],
            self.tokens[rows],
            self.correct[rows],
        )


def _columns(record: StepRecord, names: list[str]) -> dict[str, list[Any]] | None:
    import pyarrow.parquet as pq

    folder = folder_of(record.uri)
    if folder is None or not (folder / EXAMPLES).is_file():
        return None
    with pq.ParquetFile(folder / EXAMPLES) as file:  # `read_table` would import pandas
        columns: dict[str, list[Any]] = file.read(names).to_pydict()
    return columns


def _floats(values: list[Any], rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
    return np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)[rows]


def load_answers(record: StepRecord) -> Answers | None:
    """Read an evaluation's per-example results; None where the file is gone."""
    columns = _columns(record, _NUMBERS)
    if columns is None:
        return None
    ids = np.array(columns["id"], dtype=np.str_)
    rows = np.argsort(ids, kind="stable")
    return Answers(
        ids=ids[rows],
        clusters=[columns["cluster"][row] for row in rows],
        tiers=np.array([tier or 0 for tier in columns["tier"]], dtype=np.int64)[rows],
        slices=[columns["slice"][row] for row in rows],
        nll=_floats(columns["nll"], rows),
        tokens=_floats(columns["tokens"], rows),
        correct=_floats(columns["correct"], rows),
    )


@dataclass(frozen=True, slots=True)
class Sample:
    """One generated answer to look at."""

    prompt: str
    expected: str
    response: str
    correct: bool


def draw_samples(record: StepRecord, seed: int, count: int = 3, length: int = 600) -> dict[int, list[Sample]]:
    """A few generated answers of every tier, drawn at random (by hash), so that they flatter nobody.

    Args:
        record: The evaluation.
        seed: Of the draw.
        count: Answers for each tier.
        length: Characters of a text that are kept.
    """
    columns = _columns(record, _TEXTS) or {name: [] for name in _TEXTS}
    rows = {row_id: row for row, row_id in enumerate(columns["id"])}
    samples: dict[int, list[Sample]] = {}
    for row_id in hash_order(rows, seed, "report samples"):
        row = {name: columns[name][rows[row_id]] for name in _TEXTS}
        if row["slice"] is not None or row["correct"] is None or row["response"] is None:
            continue
        drawn = samples.setdefault(int(row["tier"]), [])
        if len(drawn) < count:
            prompt, expected, response = (_shortened(row[name], length) for name in ("prompt", "expected", "response"))
            drawn.append(Sample(prompt, expected, response, bool(row["correct"])))
    return dict(sorted(samples.items()))


def _shortened(text: str | None, length: int) -> str:
    text = (text or "").strip()
    return text if len(text) <= length else text[:length].rstrip() + " ..."
