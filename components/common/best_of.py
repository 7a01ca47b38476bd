"""Which of several results is best, and how sure that is, on the same examples and over training seeds.

The best of many is in part the luckiest. So a winner is announced only where it is told apart from every other
candidate, and beside it stands the probability, over examples and seeds drawn anew, that it is the best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from components.common.digests import seed_for
from components.common.paired import Comparison, combine_seeds, paired_difference
from components.common.statistics import Clusters, Floats, Numbers, cluster_sums, percentile_bounds, wilson_interval

_CHUNK = 4_000_000
"""Weights drawn at a time: 32 MB."""


@dataclass(frozen=True, slots=True)
class Contest:
    """How several candidates compare.

    Attributes:
        values: The value of each: the mean over its seeds.
        lows: The lower end of each value's interval.
        highs: The upper end.
        chances: The probability of each that it is the best of them; they add up to 1.
        leader: The one with the best value.
        runner_up: The one that is hardest to tell from the leader; None where there is only one.
        difference: The leader against it; None where there is only one.
        won: Whether the leader is told apart from every other candidate.
    """

    values: list[float]
    lows: list[float]
    highs: list[float]
    chances: list[float]
    leader: int
    runner_up: int | None
    difference: Comparison | None
    won: bool


def contest(
    candidates: Sequence[Sequence[Numbers]],
    weights: Numbers,
    clusters: Clusters,
    larger_is_better: bool,
    confidence: float,
    resamples: int,
    seed: int,
    shares: bool,
) -> Contest:
    """Compare candidates that were each run with the same S seeds.

    The chances are a bootstrap over clusters of examples, which are the same for all candidates, and over seeds, which
    are each candidate's own. Of S seeds drawn anew from S the spread is too small by (S - 1) / S, so deviations of
    seeds are widened by sqrt(S / (S - 1)) (Davison & Hinkley 1997, 2.3). With one seed the chances speak of these
    trained models only.

    The leader has won where the test of `paired.combine_seeds` (one seed: `paired.paired_difference`) tells it from
    every other candidate: the largest p-value counts, as all must be told apart (an intersection-union test, Berger
    1982). Though the leader was chosen by its value, candidates that are equal name a winner in at most 1 -
    confidence of the cases: with two of them the test is two-sided, and with more the gap at the top is smaller.

    Args:
        candidates: For each candidate and seed the per-example numerators, shape [k, S, n].
        weights: The shared denominators, shape [n].
        clusters: The cluster of each example.
        larger_is_better: Else the smallest value is the best.
        confidence: Of intervals and of the test.
        resamples: Of the bootstrap.
        seed: Of the draws.
        shares: Whether the values are shares, of correct examples for instance.

    Raises:
        ValueError: If there is no candidate, or they differ in their number of seeds.
    """
    seeds = {len(one) for one in candidates}
    if not candidates or len(seeds) != 1 or 0 in seeds:
        raise ValueError(f"every candidate needs the same number of seeds; there are {sorted(seeds)}")
    sizes, *sums = cluster_sums(clusters, weights, *(run for one in candidates for run in one))
    runs = np.stack(sums).reshape(len(candidates), seeds.pop(), -1)
    values = runs.sum(axis=2).mean(axis=1) / sizes.sum()
    drawn = _drawn(runs, sizes, resamples, seed)
    sign = 1.0 if larger_is_better else -1.0
    leader = int(np.argmax(sign * values))
    bounds = [_bounds(draws, len(sizes), confidence, shares) for draws in drawn.T]
    others = {
        place: _compare(candidates[leader], candidates[place], weights, clusters, confidence, resamples, seed)
        for place in sorted(set(range(len(candidates))) - {leader})
    }
    hardest = max(others, key=lambda place: others[place].p, default=None)
    return Contest(
        values=[float(value) for value in values],
        lows=[low for low, _ in bounds],
        highs=[high for _, high in bounds],
        chances=[float(chance) for chance in _chances(sign * drawn)],
        leader=leader,
        runner_up=hardest,
        difference=None if hardest is None else others[hardest],
        won=hardest is not None and others[hardest].p < 1 - confidence,
    )


def _drawn(runs: npt.NDArray[np.float64], sizes: Floats, resamples: int, seed: int) -> npt.NDArray[np.float64]:
    """Values of the candidates on clusters and seeds drawn anew, shape [resamples, k]."""
    candidates, count, groups = runs.shape
    random = np.random.default_rng(seed_for(seed, "best of"))
    widened = math.sqrt(count / (count - 1)) if count > 1 else 0.0
    step = max(1, _CHUNK // groups)
    parts = []
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        often = random.multinomial(groups, np.full(groups, 1 / groups), size=rows).astype(np.float64)
        by_seed = (often @ runs.reshape(candidates * count, groups).T) / (often @ sizes)[:, None]
        by_seed = by_seed.reshape(rows, candidates, count)
        means = by_seed.mean(axis=2)
        if count > 1:
            again = random.integers(count, size=(rows, candidates, count))
            means = means + widened * (np.take_along_axis(by_seed, again, axis=2).mean(axis=2) - means)
        parts.append(means)
    return np.concatenate(parts)


def _bounds(draws: Floats, clusters: int, confidence: float, shares: bool) -> tuple[float, float]:
    """An interval; of shares one that does not leave [0, 1], as widened deviations would.

    Where all answers are right, or all wrong, every draw is the same and says nothing of the spread: there it is the
    Wilson interval of the number of clusters, as in `statistics.accuracy_interval`.
    """
    low, high = percentile_bounds(draws, confidence)
    if not shares:
        return low, high
    if low == high and low in (0.0, 1.0):
        found = wilson_interval(clusters * low, clusters, confidence)
        return found.low, found.high
    return max(0.0, low), min(1.0, high)


def _chances(drawn: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """How often each column holds the largest value of a row; equal ones share."""
    largest = drawn == drawn.max(axis=1, keepdims=True)
    return np.asarray((largest / largest.sum(axis=1, keepdims=True)).mean(axis=0), dtype=np.float64)


def _compare(
    first: Sequence[Numbers],
    second: Sequence[Numbers],
    weights: Numbers,
    clusters: Clusters,
    confidence: float,
    resamples: int,
    seed: int,
) -> Comparison:
    if len(first) > 1:
        return combine_seeds(first, second, weights, clusters, confidence)
    return paired_difference(first[0], second[0], weights, clusters, confidence, resamples, seed)
