"""The trials of a sweep: the points of its space, in an order that is the same whenever it is asked for."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator
from typing import Any

from components.common.errors import SpecError
from components.common.spec import Spec
from pipelines.sweep_spec import ORDER, TIERS, Integers, LogUniform, Sample, Sweep, Uniform, ends

MOST_ORDERS = 5040
"""Permutations that a grid may spell out: those of seven tiers."""

Params = dict[str, Any]
"""Values by the key of the spec."""


def trials_of(sweep: Sweep) -> list[Params]:
    """The trials of a grid or of a random search, equal ones once.

    Raises:
        SpecError: If a grid has more trials than `search.trials` allows, or no order fits a number of tiers.
    """
    found = _grid(sweep) if sweep.spec.search.method == "grid" else _random(sweep)
    different: dict[str, Params] = {}
    limit = sweep.spec.search.trials
    for params in found:
        different.setdefault(json.dumps(params, sort_keys=True), params)
        if sweep.spec.search.method == "grid" and len(different) > limit:
            raise SpecError(
                f"the sweep {sweep.file}: the grid has more than {limit} trials (`search.trials`)",
                "raise it, drop values, or use `search.method: random`",
            )
    return list(different.values())


def tiers_of(sweep: Sweep, params: Params) -> int:
    """The number of tiers of a trial."""
    splitting = params.get("splitting", sweep.values.get("splitting")) or {}
    return int(params.get(TIERS, splitting.get("tiers", Spec.model_fields["splitting"].default.tiers)))


def draw_order(tiers: int, draw: random.Random) -> list[int]:
    """A random order of the tiers."""
    return draw.sample(range(1, tiers + 1), tiers)


def _grid(sweep: Sweep) -> Iterator[Params]:
    space = {key: values for key, values in sweep.spec.space.items() if key != ORDER}
    for values in itertools.product(*(_points(dimension) for dimension in space.values())):
        params = dict(zip(space, values, strict=True))
        if ORDER not in sweep.spec.space:
            yield params
            continue
        for order in _orders(sweep, tiers_of(sweep, params)):
            yield {**params, ORDER: order}


def _orders(sweep: Sweep, tiers: int) -> list[Any]:
    """The orders that a grid tries for a number of tiers."""
    asked = sweep.spec.space[ORDER]
    if isinstance(asked, list):
        return listed_orders(sweep, asked, tiers)
    every = math.factorial(tiers)
    if isinstance(asked, Sample) and asked.sample < every:
        draw = random.Random(f"{sweep.spec.search.seed}: orders of {tiers}")
        drawn: dict[tuple[int, ...], None] = {}
        while len(drawn) < asked.sample:
            drawn.setdefault(tuple(draw_order(tiers, draw)))
        return [list(order) for order in sorted(drawn)]
    if every > MOST_ORDERS:
        raise SpecError(
            f"the sweep {sweep.file}: {tiers} tiers have {every} orders", "draw some of them: `{sample: 100}`"
        )
    return [list(order) for order in itertools.permutations(range(1, tiers + 1))]


def listed_orders(sweep: Sweep, asked: list[Any], tiers: int) -> list[Any]:
    """The orders of a list that fit a number of tiers: words, and those that name as many.

    Raises:
        SpecError: If none does: trials of so many tiers would be missing without a word.
    """
    orders = [order for order in asked if not isinstance(order, list) or len(order) == tiers]
    if not orders:
        raise SpecError(
            f"the sweep {sweep.file}: space.{ORDER} lists no order of {tiers} tiers",
            f"add one, or a word that fits any (`descending`), or drop {tiers} from the numbers of tiers",
        )
    return orders


def _points(dimension: Any) -> list[Any]:
    if isinstance(dimension, list):
        return dimension
    if isinstance(dimension, Integers):
        return list(range(dimension.integers[0], dimension.integers[1] + 1))
    points = dimension.points - 1
    low, high = ends(dimension)
    if isinstance(dimension, LogUniform):
        return [_rounded(low * (high / low) ** (place / points)) for place in range(points + 1)]
    return [_rounded(low + (high - low) * place / points) for place in range(points + 1)]


def _random(sweep: Sweep) -> Iterator[Params]:
    """Every trial has a generator of its own, so a longer search begins with the trials of a shorter one."""
    for number in range(sweep.spec.search.trials):
        draw = random.Random(f"{sweep.spec.search.seed}: trial {number}")
        params = {key: _drawn(values, draw) for key, values in sweep.spec.space.items() if key != ORDER}
        if ORDER in sweep.spec.space:
            params[ORDER] = _drawn_order(sweep, tiers_of(sweep, params), draw)
        yield params


def _drawn_order(sweep: Sweep, tiers: int, draw: random.Random) -> Any:
    asked = sweep.spec.space[ORDER]
    if isinstance(asked, list | Sample):
        return draw.choice(_orders(sweep, tiers))
    return draw_order(tiers, draw)


def _drawn(dimension: Any, draw: random.Random) -> Any:
    if isinstance(dimension, list):
        return draw.choice(dimension)
    if isinstance(dimension, Integers):
        return draw.randint(*dimension.integers)
    low, high = ends(dimension)
    if isinstance(dimension, LogUniform):
        return _rounded(math.exp(draw.uniform(math.log(low), math.log(high))))
    if not isinstance(dimension, Uniform):
        raise AssertionError(f"{dimension} is no range")
    return _rounded(draw.uniform(low, high))


def _rounded(value: float) -> float:
    """Six digits: what a user can read and type again."""
    return float(f"{value:.6g}")
