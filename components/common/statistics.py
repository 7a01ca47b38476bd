"""Intervals of one result, and small descriptive statistics.

Examples that share a group (the problem behind the wording) are not independent, so whatever is drawn anew here
is a *cluster* of examples. Comparisons of two results are in `paired.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from components.common.digests import seed_for

Floats = npt.NDArray[np.float64]
Numbers = Sequence[float] | npt.NDArray[np.number] | npt.NDArray[np.bool_]
Clusters = Sequence[str | None]
"""One name per example; None: the example is a cluster of its own."""

_CHUNK = 2_000_000
"""Numbers drawn at a time: 16 MB of indices and as much again for what they select."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its confidence interval.

    Attributes:
        value: The estimate.
        low: The interval's lower end; NaN where the data say nothing about the spread (a single cluster).
        high: The upper end, likewise.
    """

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """The fields by name, fit for JSON: what is not a number is None."""
        return without_nan(asdict(self))


def without_nan(fields: dict[str, float]) -> dict[str, float | None]:
    """The same fields with None for NaN, which JSON cannot hold."""
    return {name: None if math.isnan(value) else value for name, value in fields.items()}


def cluster_sums(clusters: Clusters, *columns: Numbers) -> list[Floats]:
    """Add up columns of per-example numbers within clusters.

    Args:
        clusters: The cluster of each of n examples.
        columns: Arrays of shape [n].

    Returns:
        For each column an array of shape [number of clusters], clusters in order of their first example.

    Raises:
        ValueError: If there are no examples, or the lengths differ.
    """
    lengths = {len(clusters), *(len(column) for column in columns)}
    if len(lengths) != 1:
        raise ValueError(f"clusters and numbers must be one per example; the lengths are {sorted(lengths)}")
    if not len(clusters):
        raise ValueError("there are no examples")
    positions: dict[str | int, int] = {}
    index = [positions.setdefault(row if name is None else name, len(positions)) for row, name in enumerate(clusters)]
    rows = np.asarray(index)
    return [np.bincount(rows, np.asarray(column, np.float64), len(positions)).astype(np.float64) for column in columns]


def bootstrap_ratios(numerators: Floats, denominators: Floats, resamples: int, seed: int) -> Floats:
    """Ratios of sums over clusters drawn with replacement.

    Args:
        numerators: Sums by cluster, shape [g].
        denominators: Sums by cluster, shape [g], all positive.
        resamples: How many times g clusters are drawn.
        seed: Of the draws.

    Returns:
        Array of shape [resamples]. Memory does not grow with ``g * resamples``.
    """
    random = np.random.default_rng(seed_for(seed, "bootstrap"))
    size = len(numerators)
    step = max(1, _CHUNK // size)
    parts = []
    for start in range(0, resamples, step):
        drawn = random.integers(size, size=(min(step, resamples - start), size))
        parts.append(numerators[drawn].sum(axis=1) / denominators[drawn].sum(axis=1))
    return np.concatenate(parts)


def percentile_bounds(draws: Floats, confidence: float) -> tuple[float, float]:
    """The central range that holds the share ``confidence`` of the draws."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def ratio_interval(
    numerators: Numbers, denominators: Numbers, clusters: Clusters, confidence: float, resamples: int, seed: int
) -> Interval:
    """A ratio of sums with a percentile bootstrap interval over clusters (Efron 1979; Davison & Hinkley 1997, 2.4).

    Args:
        numerators: Per example, e.g. the nats of its response; shape [n].
        denominators: Per example, e.g. the tokens of its response, or 1; not negative; shape [n].
        clusters: The cluster of each example.
        confidence: Between 0 and 1.
        resamples: Bootstrap resamples.
        seed: Of the resamples.

    Returns:
        ``sum(numerators) / sum(denominators)`` and its interval; NaN bounds where there is only one cluster.

    Raises:
        ValueError: If there are no examples, lengths differ, or the denominators are negative or add up to 0.
    """
    tops, bottoms = cluster_sums(clusters, numerators, denominators)
    if np.any(np.asarray(denominators) < 0) or not bottoms.sum() > 0:
        raise ValueError("denominators must not be negative and must not add up to 0")
    value = float(tops.sum() / bottoms.sum())
    # A cluster that weighs nothing would leave some resamples without a denominator.
    tops, bottoms = tops[bottoms > 0], bottoms[bottoms > 0]
    if len(tops) == 1:
        return Interval(value, math.nan, math.nan)
    return Interval(value, *percentile_bounds(bootstrap_ratios(tops, bottoms, resamples, seed), confidence))


def wilson_interval(successes: float, n: int, confidence: float) -> Interval:
    """A proportion with its score interval (Wilson 1927), which stays honest at 0 and at n successes.

    Raises:
        ValueError: If ``n`` is below 1 or ``successes`` outside [0, n].
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} are not a proportion")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the bound is exact, and rounding must not push it past the share itself.
    return Interval(
        share, 0.0 if successes == 0 else max(0.0, centre - half), 1.0 if successes == n else min(1.0, centre + half)
    )


def accuracy_interval(correct: Numbers, clusters: Clusters, confidence: float, resamples: int, seed: int) -> Interval:
    """The share of correct examples (0 or 1 each) with an interval over clusters.

    Where all are right or all are wrong every resample equals the data and a bootstrap would claim certainty: there
    it is the Wilson interval of the number of clusters. Otherwise `ratio_interval`.
    """
    marks = np.asarray(correct, np.float64)
    (sizes,) = cluster_sums(clusters, np.ones(len(marks)))
    if marks.min() == marks.max():
        return wilson_interval(len(sizes) * float(marks[0]), len(sizes), confidence)
    return ratio_interval(marks, np.ones(len(marks)), clusters, confidence, resamples, seed)


def seed_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1) over repetitions with different seeds.

    The deviation of a single repetition is NaN: one run says nothing about luck in training.
    """
    if not len(values):
        raise ValueError("there are no values")
    array = np.asarray(values, np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else math.nan


def average_ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


def spearman(x: Numbers, y: Numbers) -> float | None:
    """Spearman's rank correlation (1904), ties by average ranks; pairs with a NaN are left out.

    Returns:
        A number in [-1, 1], or None where it is undefined: fewer than 3 pairs, or a side that is constant.
    """
    first, second = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"the two sides have the shapes {first.shape} and {second.shape}")
    known = ~(np.isnan(first) | np.isnan(second))
    if known.sum() < 3:
        return None
    a, b = average_ranks(first[known]), average_ranks(second[known])
    a, b = a - a.mean(), b - b.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return max(-1.0, min(1.0, float(a @ b) / scale)) if scale > 0 else None


def quartiles(values: Numbers) -> list[float]:
    """First quartile, median, third quartile, by linear interpolation (Hyndman & Fan 1996, type 7)."""
    if not len(values):
        raise ValueError("there are no values")
    return [float(cut) for cut in np.quantile(np.asarray(values, np.float64), [0.25, 0.5, 0.75])]
