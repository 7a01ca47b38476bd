"""Optuna's proposals for a sweep, by Tune's own search: what is left of the space once the tiers are known."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.sweep_space import Params, draw_order, listed_orders, tiers_of
from pipelines.sweep_spec import ORDER, TIERS, Integers, LogUniform, Sample, Sweep, ends

_MOST_ORDERS = 120
"""Orders among which Optuna chooses; of more tiers than five so many are drawn."""
_MOST_TRIED = 500
"""Combinations of values that are tried before a sweep starts, each some milliseconds."""


def suggester(sweep: Sweep, objective: str, before: Sequence[dict[str, Any]]) -> Any:
    """Tune's search by Optuna (TPE) over a space in which the orders depend on the number of tiers.

    Args:
        sweep: The sweep.
        objective: The reported metric's name.
        before: What an earlier run of the same sweep was proposed, in order: proposed again first, and found stored.
    """
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(
        space=Proposing(sweep),
        metric=objective,
        mode=sweep.spec.objective.mode,
        # What was proposed before draws nothing: with the same seed, the next draws would be the first ones again.
        seed=sweep.spec.search.seed + len(before),
        points_to_evaluate=[point(sweep, params) for params in before] or None,
    )


@dataclass(frozen=True, slots=True)
class Proposing:
    """What Optuna calls for a trial's parameters; Tune pickles it with the state of the search.

    Attributes:
        sweep: The sweep.
    """

    sweep: Sweep

    def __call__(self, trial: Any) -> dict[str, Any]:
        """The configuration of a trial of Tune, as Optuna chooses it."""
        space = self.sweep.spec.space
        params = {key: _value(trial, key, dimension) for key, dimension in space.items() if key != ORDER}
        tiers = tiers_of(self.sweep, params)
        if ORDER in space:
            orders = orders_of(self.sweep, tiers)
            params[ORDER] = json.loads(trial.suggest_categorical(f"{ORDER}@{tiers}", [json.dumps(o) for o in orders]))
        return {"params": json.dumps(params), "tiers": tiers}


def orders_of(sweep: Sweep, tiers: int) -> list[Any]:
    """The orders among which is chosen, the same whenever asked."""
    asked = sweep.spec.space[ORDER]
    if isinstance(asked, list):
        return listed_orders(sweep, asked, tiers)
    count = asked.sample if isinstance(asked, Sample) else _MOST_ORDERS
    if math.factorial(tiers) <= count:
        return [list(order) for order in itertools.permutations(range(1, tiers + 1))]
    draw = random.Random(f"{sweep.spec.search.seed}: orders of {tiers}")
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < count:
        drawn.setdefault(tuple(draw_order(tiers, draw)))
    return [list(order) for order in sorted(drawn)]


def choices(sweep: Sweep) -> Iterator[Params]:
    """Trials that Optuna may propose, so that what would be refused in the middle of a sweep is refused before it.

    Every listed value and both ends of every range in every combination, each with every order that is listed; of a
    large space each value once, beside the first ones of the others.

    Raises:
        SpecError: If no order is listed for a number of tiers.
    """
    space = {key: _tried(key, dimension) for key, dimension in sweep.spec.space.items() if key != ORDER}
    first = {key: values[0] for key, values in space.items()}
    found: Iterable[Params]
    if math.prod(len(values) for values in space.values()) <= _MOST_TRIED:
        found = (dict(zip(space, values, strict=True)) for values in itertools.product(*space.values()))
    else:
        found = ({**first, key: value} for key, values in space.items() for value in values)
    for params in found:
        orders = orders_of(sweep, tiers_of(sweep, params)) if ORDER in sweep.spec.space else []
        if not isinstance(sweep.spec.space.get(ORDER), list):  # made here, they are what they should be
            orders = orders[:1]
        yield from ({**params, ORDER: order} for order in orders) if ORDER in sweep.spec.space else (params,)


def _tried(key: str, dimension: Any) -> list[Any]:
    if isinstance(dimension, list):
        return dimension
    low, high = ends(dimension)
    return list(range(int(low), int(high) + 1)) if key == TIERS else [low, high]


def point(sweep: Sweep, params: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's parameters as Optuna knows them."""
    named: dict[str, Any] = {}
    for key, value in params.items():
        if key == ORDER:
            named[f"{ORDER}@{tiers_of(sweep, dict(params))}"] = json.dumps(value)
        else:
            named[key] = json.dumps(value) if isinstance(sweep.spec.space[key], list) else value
    return named


def _value(trial: Any, key: str, dimension: Any) -> Any:
    if isinstance(dimension, list):
        # As JSON, since Optuna's choices are words and numbers, and a value of a spec may be a list.
        return json.loads(trial.suggest_categorical(key, [json.dumps(value) for value in dimension]))
    low, high = ends(dimension)
    if isinstance(dimension, Integers):
        return trial.suggest_int(key, int(low), int(high))
    return trial.suggest_float(key, low, high, log=isinstance(dimension, LogUniform))
