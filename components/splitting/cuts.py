"""Where the tiers are cut, and which tier a difficulty belongs to.

The cuts come from the training examples alone; the held-out part is put into the tiers by the same cuts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from components.common.errors import DataError
from components.common.spec import SplittingSpec
from components.splitting.distribution import show

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def cut_points(difficulties: Floats, tokens: npt.NDArray[np.integer], spec: SplittingSpec) -> list[float]:
    """The cuts between the tiers.

    `quantiles` and `tokens` put each cut, from the easy end, at the change between two distinct difficulties that is
    nearest to its share of the examples or tokens, and leave every tier at least one distinct difficulty. Such a cut
    is the lowest difficulty of the harder tier.

    Args:
        difficulties: Of the training examples, shape [n].
        tokens: Of the same examples, shape [n].
        spec: The number of tiers and the method.

    Returns:
        ``spec.tiers - 1`` increasing values; an example at a cut belongs to the harder tier.

    Raises:
        DataError: If a difficulty is not a finite number, there are fewer distinct difficulties than tiers, or a
            tier would be empty.
    """
    require_finite(difficulties, "training")
    if not len(difficulties):
        raise DataError("there are no training examples to split", "check data.train and the ledger of the preparation")
    if spec.cut == "thresholds":
        cuts = [float(cut) for cut in spec.thresholds]
    else:
        distinct = len(np.unique(difficulties))
        if distinct < spec.tiers:
            raise DataError(
                f"{spec.tiers} tiers need {spec.tiers} distinct difficulties, there are {distinct}\n"
                f"{show(difficulties, [])}",
                f"set splitting.tiers to {distinct} or fewer, or score by a method that tells more examples apart",
            )
        weights = np.ones(len(difficulties), np.int64) if spec.cut == "quantiles" else tokens.astype(np.int64)
        cuts = _balanced(difficulties, weights, spec.tiers)
    counts = np.bincount(assign(difficulties, cuts) - 1, minlength=spec.tiers)
    if not counts.all():
        raise _empty_tier(difficulties, cuts, counts)
    return cuts


def assign(difficulties: Floats, cuts: list[float]) -> Ints:
    """The tier, 1 to ``len(cuts) + 1``, of each difficulty; a difficulty at a cut belongs to the harder tier."""
    return np.searchsorted(np.asarray(cuts, np.float64), difficulties, side="right").astype(np.int64) + 1


def require_finite(difficulties: Floats, what: str) -> None:
    """Refuse difficulties that have no place in an order.

    Raises:
        DataError: Naming how many of the ``what`` examples have a NaN, missing or infinite difficulty.
    """
    missing, infinite = int(np.isnan(difficulties).sum()), int(np.isinf(difficulties).sum())
    if missing or infinite:
        raise DataError(
            f"{missing + infinite} of {len(difficulties)} {what} examples have no finite difficulty "
            f"({missing} not a number or missing, {infinite} infinite)",
            "look at these rows in the scores; with `method: column` give every row a number",
        )


def _balanced(difficulties: Floats, weights: Ints, tiers: int) -> list[float]:
    """Cuts that give each tier as near to an equal share of the weights as ties allow."""
    values, inverse = np.unique(difficulties, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    starts = np.searchsorted(inverse[order], np.arange(len(values)))
    # Whole numbers: a cut must not depend on how a sum of shares rounds.
    below = np.concatenate([[0], np.cumsum(np.add.reduceat(weights[order], starts))])
    cuts: list[float] = []
    chosen = 0
    for tier in range(1, tiers):
        # below[i] is the weight under values[i]; each tier still to come must keep a distinct value.
        first, last = chosen + 1, len(values) - (tiers - tier)
        distance = np.abs(below[first : last + 1] * tiers - tier * below[-1])
        chosen = first + int(np.argmin(distance))
        cuts.append(float(values[chosen]))
    return cuts


def _empty_tier(difficulties: Floats, cuts: list[float], counts: Ints) -> DataError:
    """The error for cuts that leave a tier without examples."""
    tiers = len(counts)
    empty = ", ".join(str(tier) for tier in range(1, tiers + 1) if not counts[tier - 1])
    sizes = ", ".join(f"tier {tier}: {count}" for tier, count in enumerate(counts, 1))
    distinct = len(np.unique(difficulties))
    if distinct >= tiers:
        suggested = _short(difficulties, _balanced(difficulties, np.ones(len(difficulties), np.int64), tiers))
        values = ", ".join(repr(cut) for cut in suggested)
        remedy = f"set splitting.thresholds to [{values}] (near equal counts), use `cut: quantiles`, or fewer tiers"
    else:
        remedy = f"set splitting.tiers to {distinct} or fewer: there are no more distinct difficulties"
    return DataError(
        f"these cuts leave an empty tier ({empty}); examples in each: {sizes}\n{show(difficulties, cuts)}", remedy
    )


def _short(difficulties: Floats, cuts: list[float]) -> list[float]:
    """The cuts in four digits, if they then still give every tier an example."""
    rounded = [float(f"{cut:.4g}") for cut in cuts]
    if sorted(set(rounded)) != rounded:
        return cuts
    return rounded if np.bincount(assign(difficulties, rounded), minlength=len(cuts) + 2)[1:].all() else cuts
