"""Comparisons of two results on the same examples: with one run of each, and over several seeds.

A difference is ``(sum(first) - sum(second)) / sum(weights)``: per token for a loss, per example for an accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from components.common.digests import seed_for
from components.common.statistics import (
    Clusters,
    Floats,
    Numbers,
    bootstrap_ratios,
    cluster_sums,
    percentile_bounds,
    without_nan,
)

_EXACT_CLUSTERS = 12
"""Up to so many clusters that differ, all sign flips are counted (4096) and none is drawn."""
_CHUNK = 2_000_000
"""Signs drawn at a time: 16 MB."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two results differ.

    Attributes:
        difference: First minus second.
        low: The interval's lower end; NaN where the data say nothing about the spread (a single cluster).
        high: The upper end, likewise.
        p: Two-sided p-value of "no difference"; 1.0 for a single cluster.
    """

    difference: float
    low: float
    high: float
    p: float

    def to_dict(self) -> dict[str, float | None]:
        """The fields by name, fit for JSON: what is not a number is None."""
        return without_nan(asdict(self))


def paired_difference(
    first: Numbers,
    second: Numbers,
    weights: Numbers,
    clusters: Clusters,
    confidence: float,
    resamples: int,
    seed: int,
    flips: int = 10_000,
) -> Comparison:
    """Compare two results, one run of each, on the same examples.

    The interval is a percentile bootstrap over clusters. The p-value is a sign-flip permutation test over clusters:
    exact for up to 12 clusters that differ, else from random flips as ``(1 + b) / (1 + flips)`` (Phipson & Smyth
    2010), never 0. Both speak of these two trained models: luck in training is not in them (see `combine_seeds`).

    Args:
        first: Per-example numerators (nats, or 0 and 1), shape [n].
        second: The same of the other result, shape [n].
        weights: The shared denominators (tokens, or 1), not negative, shape [n].
        clusters: The cluster of each example.
        confidence: Between 0 and 1.
        resamples: Bootstrap resamples.
        seed: Of the resamples and the flips.
        flips: Random sign flips.

    Raises:
        ValueError: If there are no examples, lengths differ, or the weights are negative or add up to 0.
    """
    deltas, sizes = _cluster_differences(first, second, weights, clusters)
    difference = float(deltas.sum() / sizes.sum())
    if not deltas.any():
        return Comparison(0.0, 0.0, 0.0, 1.0)
    if len(deltas) == 1:
        return Comparison(difference, math.nan, math.nan, 1.0)
    low, high = percentile_bounds(bootstrap_ratios(deltas, sizes, resamples, seed), confidence)
    return Comparison(difference, low, high, sign_flip_p(deltas, flips, seed))


def _cluster_differences(
    first: Numbers, second: Numbers, weights: Numbers, clusters: Clusters
) -> tuple[Floats, Floats]:
    if len(first) != len(second):
        raise ValueError(f"the two results have {len(first)} and {len(second)} examples")
    if np.any(np.asarray(weights) < 0):
        raise ValueError("weights must not be negative")
    gaps = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    deltas, sizes = cluster_sums(clusters, gaps, weights)
    if not sizes.sum() > 0:
        raise ValueError("weights must not add up to 0")
    return deltas[sizes > 0], sizes[sizes > 0]


def sign_flip_p(deltas: Floats, flips: int, seed: int) -> float:
    """Two-sided p-value of a sum being this far from 0 if every term's sign were a coin's.

    Args:
        deltas: The clusters' differences, shape [g].
        flips: Random flips where there are too many clusters to count them all.
        seed: Of the flips.
    """
    moved = deltas[deltas != 0]  # a zero is the same under either sign
    # Sums that are equal on paper differ in the last digits; without the slack the data may not count themselves.
    bound = abs(float(moved.sum())) - 1e-9 * float(np.abs(moved).sum())
    if len(moved) <= _EXACT_CLUSTERS:
        signs = 2.0 * (np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved)) & 1) - 1.0
        return float(np.mean(np.abs(signs @ moved) >= bound))
    random = np.random.default_rng(seed_for(seed, "flips"))
    step = max(1, _CHUNK // len(moved))
    beyond = 0
    for start in range(0, flips, step):
        rows = min(step, flips - start)
        raw = np.frombuffer(random.bytes(rows * len(moved) // 8 + 1), np.uint8)
        bits = np.unpackbits(raw, count=rows * len(moved)).reshape(rows, len(moved))
        # sum(sign * delta) = 2 * (sum of those with a plus) - sum(delta)
        beyond += int(np.sum(np.abs(2.0 * (bits.astype(np.float64) @ moved) - moved.sum()) >= bound))
    return (1 + beyond) / (1 + flips)


def combine_seeds(
    firsts: Sequence[Numbers], seconds: Sequence[Numbers], weights: Numbers, clusters: Clusters, confidence: float
) -> Comparison:
    """Compare two recipes that were each trained with S >= 2 seeds, on the same examples.

    Seeds and examples are crossed random effects. With ``d[s, g]`` the difference of seed s summed over cluster g,
    ``w[g]`` the cluster's weight, W their sum, ``D[s] = sum_g d[s, g] / W`` and D the mean of D[s]::

        seeds    = sum_s (D[s] - D)^2 / (S - 1) / S                                   S - 1 degrees of freedom
        clusters = G / (G - 1) * sum_g (mean_s d[s, g] - D * w[g])^2 / W^2            G - 1 degrees of freedom
        interval = D +- sqrt(t(S - 1)^2 * seeds + t(G - 1)^2 * clusters)              t: Student's quantiles

    The second term is the linearised variance of a ratio estimator (Cochran 1977, 6.4); the interval is Banerjee's
    (Sankhya 22, 1960), which covers at least as often as it says whatever the ratio of the two variances. Degrees
    of freedom after Satterthwaite do not: with 2 seeds that agree by chance they call 12% of null effects real.
    The residual (seed by example) variance is in both terms, so the interval is conservative, and with 2 seeds wide.
    The p-value is 1 minus the confidence at which the interval reaches 0, and at least 1e-15.

    Args:
        firsts: For each seed the per-example numerators, shape [S, n].
        seconds: The same of the other recipe, shape [S, n], seeds in the same order.
        weights: The shared denominators, not negative, shape [n].
        clusters: The cluster of each example.
        confidence: Between 0 and 1.

    Raises:
        ValueError: If there are fewer than 2 seeds, the shapes differ, or the weights are negative or add up to 0.
    """
    if len(firsts) != len(seconds) or len(firsts) < 2:
        raise ValueError(f"two or more seeds of both are needed, got {len(firsts)} and {len(seconds)}")
    pairs = [_cluster_differences(a, b, weights, clusters) for a, b in zip(firsts, seconds, strict=True)]
    sizes = pairs[0][1]
    deltas = np.stack([delta for delta, _ in pairs])
    count, groups = deltas.shape
    by_seed = deltas.sum(axis=1) / sizes.sum()
    difference = float(by_seed.mean())
    if not deltas.any():
        return Comparison(0.0, 0.0, 0.0, 1.0)
    if groups == 1:
        return Comparison(difference, math.nan, math.nan, 1.0)
    of_seeds = float(by_seed.var(ddof=1)) / count
    residuals = deltas.mean(axis=0) - difference * sizes
    of_clusters = groups / (groups - 1) * float(residuals @ residuals) / float(sizes.sum()) ** 2
    if of_seeds + of_clusters <= (1e-12 * difference) ** 2:
        # Every cluster differs by the same amount with every seed: only the signs are evidence.
        return Comparison(difference, difference, difference, 2.0 ** (1 - groups))
    parts = [(of_seeds, count - 1), (of_clusters, groups - 1)]
    half = _reach(parts, 1 - confidence)
    return Comparison(difference, difference - half, difference + half, _p_of_reach(parts, abs(difference)))


def _reach(parts: list[tuple[float, int]], p: float) -> float:
    """Banerjee's half width at confidence 1 - p, for a sum of independent (variance, degrees of freedom)."""
    from scipy.special import stdtrit

    return math.sqrt(sum(variance * float(stdtrit(degrees, p / 2)) ** 2 for variance, degrees in parts))


def _p_of_reach(parts: list[tuple[float, int]], distance: float) -> float:
    """The p at which the half width is the distance, by bisection of log p."""
    low, high = math.log(1e-15), 0.0
    for _ in range(60):
        middle = (low + high) / 2
        if _reach(parts, math.exp(middle)) > distance:
            low = middle
        else:
            high = middle
    return math.exp(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for testing several hypotheses at once, in the order given (Holm 1979)."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = highest
    return adjusted
