"""Optuna's proposals for a sweep, by Tune's own search: what is left of the space once the tiers are known."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.sweep_space import draw_order, tiers_of
from pipelines.sweep_spec import ORDER, Integers, LogUniform, Sample, Sweep, ends

_MOST_ORDERS = 120
"""Orders among which Optuna chooses; of more tiers than five so many are drawn."""


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
        return [order for order in asked if not isinstance(order, list) or len(order) == tiers]
    count = asked.sample if isinstance(asked, Sample) else _MOST_ORDERS
    if math.factorial(tiers) <= count:
        return [list(order) for order in itertools.permutations(range(1, tiers + 1))]
    draw = random.Random(f"{sweep.spec.search.seed}: orders of {tiers}")
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < count:
        drawn.setdefault(tuple(draw_order(tiers, draw)))
    return [list(order) for order in sorted(drawn)]


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
