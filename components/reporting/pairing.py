"""Results of several evaluations on the same examples: read once, aligned by id, and compared.

Every number comes from `components.common.statistics` and `paired`; this module only lines up what goes in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from components.common.digests import seed_for
from components.common.paired import Comparison, combine_seeds, paired_difference
from components.common.records import StepRecord
from components.common.spec import EvaluationSpec
from components.common.statistics import seed_spread
from components.reporting.answers import Answers, load_answers
from components.reporting.measures import ACCURACY, Level, Measure


class Book:
    """Per-example results, each file read once."""

    def __init__(self) -> None:
        self._answers: dict[str, Answers | None] = {}
        self.lost: list[str] = []

    def read(self, record: StepRecord) -> Answers | None:
        """The results of an evaluation; None, and noted in `lost`, where the file is gone."""
        if record.step not in self._answers:
            self._answers[record.step] = load_answers(record)
            if self._answers[record.step] is None:
                self.lost.append(record.step)
        return self._answers[record.step]


def shared(sets: Sequence[Answers], measure: Measure, part: str) -> list[Answers]:
    """The same examples of every set, in one order: members of the part that all of them measured."""
    known = [
        answers.ids[answers.member(part) & ~np.isnan(answers.numerators(measure)) & ~np.isnan(answers.weights(measure))]
        for answers in sets
    ]
    ids = known[0]
    for others in known[1:]:
        ids = np.intersect1d(ids, others, assume_unique=True)
    return [answers.take(ids) for answers in sets]


def difference(
    firsts: list[Answers], seconds: list[Answers], measure: Measure, part: str, settings: EvaluationSpec, seed: int
) -> tuple[Comparison | None, int]:
    """Firsts minus seconds (one set for each seed, or a single first against each), and the number of examples."""
    if not firsts or not seconds:
        return None, 0
    aligned = shared([*firsts, *seconds], measure, part)
    n = len(aligned[0].ids)
    if n == 0:
        return None, 0
    ours = [answers.numerators(measure) for answers in aligned[: len(firsts)]]
    theirs = [answers.numerators(measure) for answers in aligned[len(firsts) :]]
    weights, clusters = aligned[0].weights(measure), aligned[0].clusters
    if not weights.sum() > 0:
        return None, 0
    if len(ours) > 1:
        return combine_seeds(ours, theirs, weights, clusters, settings.confidence), n
    draw = seed_for(seed, "report comparisons")
    flips = 1 if part else 10_000  # the p-value of a part is shown nowhere
    found = paired_difference(
        ours[0], theirs[0], weights, clusters, settings.confidence, settings.resamples, draw, flips
    )
    return found, n


def over_seeds(sets: list[Answers], measure: Measure, part: str, confidence: float) -> Level | None:
    """The mean over two or more seeds, with an interval that holds their spread and that of the examples."""
    aligned = shared(sets, measure, part)
    weights = aligned[0].weights(measure)
    if not len(weights) or not weights.sum() > 0:
        return None
    rows = [answers.numerators(measure) for answers in aligned]
    mean = combine_seeds(rows, [np.zeros(len(weights))] * len(rows), weights, aligned[0].clusters, confidence)
    low, high = (mean.low, mean.high) if measure is not ACCURACY else (max(0.0, mean.low), min(1.0, mean.high))
    return Level(mean.difference, low, high, seed_spread([float(row.sum() / weights.sum()) for row in rows])[1])


def all_or_none(sets: list[Answers | None]) -> list[Answers]:
    """The sets if all of them are there, else nothing."""
    return [answers for answers in sets if answers] if all(sets) else []
