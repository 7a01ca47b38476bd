"""What a set of numbers looks like: five numbers, a histogram for the report, and one in text for an error."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from components.common.statistics import quartiles

_BINS = 40
_TEXT_BINS = 10
_BAR = 40
"""Characters of the longest bar."""


def five_numbers(values: npt.NDArray[Any]) -> dict[str, float]:
    """Minimum, quartiles and maximum of one or more values, by name."""
    q1, median, q3 = quartiles(values)
    return {"min": float(values.min()), "q1": q1, "median": median, "q3": q3, "max": float(values.max())}


def histogram(values: npt.NDArray[np.float64]) -> dict[str, list[float] | list[int]]:
    """Counts in 40 equal bins from the 0.5th to the 99.5th percentile; what lies beyond is in the end bins.

    Returns:
        ``edges`` (41 values) and ``counts`` (40, which add up to the number of values).
    """
    low, high = (float(cut) for cut in np.quantile(values, [0.005, 0.995]))
    if low == high:
        low, high = float(values.min()), float(values.max())
    counts, edges = _counts(values, low, high, _BINS)
    return {"edges": [float(edge) for edge in edges], "counts": counts}


def show(values: npt.NDArray[np.float64], cuts: list[float]) -> str:
    """The distribution in plain characters: a line of numbers, the cuts, and ten bins over the whole range."""
    five = five_numbers(values)
    counts, edges = _counts(values, five["min"], five["max"], _TEXT_BINS)
    lines = [
        f"  difficulty of {len(values)} examples: min {five['min']:.4g}, quartiles {five['q1']:.4g} / "
        f"{five['median']:.4g} / {five['q3']:.4g}, max {five['max']:.4g}",
        f"  cuts: {', '.join(f'{cut:.4g}' for cut in cuts) or 'none'}",
    ]
    for index, count in enumerate(counts):
        bar = "#" * -(-_BAR * count // max(counts))
        inside = [cut for cut in cuts if edges[index] <= cut < edges[index + 1]]
        mark = f"  < cut {', '.join(f'{cut:.4g}' for cut in inside)}" if inside else ""
        lines.append(f"  {edges[index]:>10.4g} to {edges[index + 1]:<10.4g} {count:>8} {bar}{mark}")
    return "\n".join(lines)


def _counts(
    values: npt.NDArray[np.float64], low: float, high: float, bins: int
) -> tuple[list[int], npt.NDArray[np.float64]]:
    edges = np.linspace(low, high, bins + 1)
    if not (np.diff(edges) > 0).all():
        # All values are equal, or so nearly that the bins have no width.
        room = max(0.5, abs(low) * 1e-6)
        edges = np.linspace(low - room, high + room, bins + 1)
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return [int(count) for count in counts], edges
