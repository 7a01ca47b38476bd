"""How much of what separates a sweep's trials each dimension explains: permutation importance, with an interval.

For every bag of trials drawn with replacement an additive model (ridge regression on what `_columns` makes of the
parameters) is fitted to the bag and asked about the trials that are not in it. Then one dimension's values are
shuffled among these: by how much the squared error grows, halved and divided by the variance of the results, is that
dimension's share (for an additive model its Sobol index). So what only fits the bag counts for nothing. Effects that
one dimension has only together with another are not seen.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from components.common.digests import seed_for
from components.common.statistics import Floats, average_ranks, percentile_bounds

ORDER = "curriculum.order"
ENOUGH = 12
"""Trials below which nothing is said; and at least two for each column of the model."""
_BAGS = 200
_SHUFFLES = 5
_RIDGE = 1.0
"""Worth one trial against an effect, columns being standardised."""


@dataclass(frozen=True, slots=True)
class Importance:
    """What one dimension explains.

    Attributes:
        key: The dimension.
        share: Of the variance of the trials' results; below 0 where it explains nothing.
        low: The lower end of the interval over bags of trials.
        high: The upper end.
    """

    key: str
    share: float
    low: float
    high: float


def importances(
    params: Sequence[Mapping[str, Any]],
    orders: Sequence[Sequence[int] | None],
    values: Sequence[float],
    confidence: float,
    seed: int = 17,
) -> list[Importance] | str:
    """The importance of every dimension that varies, the largest first; or why it cannot be told.

    Args:
        params: Of each trial, by the key of the spec.
        orders: The order of the tiers of each trial, where it has one.
        values: The result of each trial.
        confidence: Of the intervals.
        seed: Of what is drawn.
    """
    found = np.asarray(values, np.float64)
    keys = dict.fromkeys(key for one in params for key in one)
    made = {key: _columns(key, params, orders) for key in keys}
    blocks = {key: block for key, block in made.items() if block.shape[1]}
    count = sum(block.shape[1] for block in blocks.values())
    needed = max(ENOUGH, 2 * count)
    if len(found) < needed:
        return f"{len(found)} trials with a result are too few to tell: at least {needed} are needed"
    if not blocks or math.isclose(float(found.var()), 0.0, abs_tol=1e-15):
        return "no dimension varies among the trials, or all results are the same"
    draws = _bagged(list(blocks.values()), found, seed)
    rows = []
    for key, drawn in zip(blocks, draws.T, strict=True):
        low, high = percentile_bounds(drawn, confidence)
        rows.append(Importance(key, float(drawn.mean()), low, high))
    return sorted(rows, key=lambda row: -row.share)


def _columns(key: str, params: Sequence[Mapping[str, Any]], orders: Sequence[Sequence[int] | None]) -> Floats:
    """What the model sees of a dimension, shape [n, columns], standardised; no column where it does not vary.

    An order is seen as how hard its first and its last tier are, and whether it rises: trials with different numbers
    of tiers then speak of the same thing. Numbers are seen as their ranks, anything else as one column a value.
    """
    raw = [one.get(key) for one in params]
    if key == ORDER:
        table = np.array([_seen(order) for order in orders])
    elif all(isinstance(value, int | float) and not isinstance(value, bool) for value in raw) and len(set(raw)) > 4:
        table = average_ranks(np.array(raw, np.float64))[:, None]
    else:
        named = [json.dumps(value, sort_keys=True) for value in raw]
        table = np.array([[name == each for each in sorted(set(named))] for name in named], np.float64)
    spread = table.std(axis=0)
    return np.asarray((table - table.mean(axis=0))[:, spread > 0] / spread[spread > 0], np.float64)


def _seen(order: Sequence[int] | None) -> list[float]:
    if order is None or len(order) < 2:
        return [0.0, 0.0, 0.0]
    middle, last = (len(order) + 1) / 2, len(order)
    rising = float(np.corrcoef(np.arange(last), np.asarray(order, np.float64))[0, 1])
    return [(order[0] - middle) / (last - 1), (order[-1] - middle) / (last - 1), rising]


def _bagged(blocks: Sequence[Floats], values: Floats, seed: int) -> npt.NDArray[np.float64]:
    """The shares of each bag, shape [bags, dimensions]."""
    random = np.random.default_rng(seed_for(seed, "importance"))
    table, count = np.hstack(blocks), len(values)
    edges = np.cumsum([0, *(block.shape[1] for block in blocks)])
    rows: list[list[float]] = []
    while len(rows) < _BAGS:
        bag = random.integers(count, size=count)
        left = np.setdiff1d(np.arange(count), bag)
        if len(left) < 2:
            continue
        weights, mean = _fitted(table[bag], values[bag])
        error = values[left] - mean - table[left] @ weights
        shares = []
        for start, end in itertools.pairwise(edges):
            told = table[left, start:end] @ weights[start:end]
            grown = [
                float(np.mean((error + told - random.permutation(told)) ** 2 - error**2)) for _ in range(_SHUFFLES)
            ]
            shares.append(min(1.0, float(np.mean(grown)) / 2 / float(values.var())))
        rows.append(shares)
    return np.array(rows)


def _fitted(table: Floats, values: Floats) -> tuple[Floats, float]:
    """Weights and mean of a ridge regression."""
    mean = float(values.mean())
    centred = table - table.mean(axis=0)
    weights = np.linalg.solve(centred.T @ centred + _RIDGE * np.eye(table.shape[1]), centred.T @ (values - mean))
    return weights, mean - float(table.mean(axis=0) @ weights)
