"""The report's plots of the data and of the steps: the histogram of difficulty, and where the time went."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from components.common.records import StepRecord
from components.reporting.measures import duration
from components.reporting.plot_style import INK, SOFT, WIDE, new_figure, tier_colours

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_BARS = 30


def difficulty_figure(split: StepRecord, method: str, width: float) -> Figure:
    """The histogram of difficulty, coloured by tier, with the cuts."""
    info = split.info
    edges, counts, cuts = info["histogram"]["edges"], info["histogram"]["counts"], info["cuts"]
    shades = tier_colours(len(info["tiers"]))
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    widths = [0.92 * (high - low) for low, high in pairwise(edges)]
    figure = new_figure(width, 2.7)
    axes = figure.add_subplot()
    axes.bar(middles, counts, widths, color=[shades[sum(m >= cut for cut in cuts)] for m in middles])
    top = max([*counts, 1])
    axes.set_ylim(0, 1.14 * top)
    bounds = [edges[0], *cuts, edges[-1]]
    few = len(cuts) < (8 if width == WIDE else 4)
    for cut in cuts:
        axes.axvline(cut, color=INK, lw=1, ls=(0, (4, 3)))
        if few:
            axes.annotate(
                f"{cut:.3g}", (cut, 1.07 * top), (3, 0), textcoords="offset points", fontsize=8.5, va="center"
            )
    for tier, low, high in zip(info["tiers"], bounds, bounds[1:], strict=False):
        text = f"tier {tier['tier']}" if few else str(tier["tier"])
        axes.annotate(
            text,
            ((low + high) / 2, 1.0),
            (0, 4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            fontweight="bold",
            fontsize=9,
        )
    axes.set_xlabel(f"difficulty ({method})")
    axes.set_ylabel("training examples")
    axes.grid(axis="x", visible=False)
    return figure


def timing_figure(records: Sequence[StepRecord], width: float) -> Figure | None:
    """Seconds of every step, divided into work and overhead."""
    rows = _timed(records)
    if not rows:
        return None
    figure = new_figure(width, 0.23 * len(rows) + 1.0)
    axes = figure.add_subplot()
    spots = range(len(rows))
    work = [max(0.0, seconds - overhead) for _, seconds, overhead in rows]
    axes.barh(spots, work, 0.66, color="#3f6fa8", label="work")
    axes.barh(spots, [overhead for *_, overhead in rows], 0.66, left=work, color="#e0a458", label="overhead")
    for y, (_, seconds, _) in enumerate(rows):
        axes.annotate(
            duration(seconds), (seconds, y), (4, 0), textcoords="offset points", va="center", fontsize=8, color=SOFT
        )
    axes.set_yticks(spots, [name for name, *_ in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1.15 * max([seconds for _, seconds, _ in rows] + [0.1]))
    axes.set_xlabel("seconds")
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    return figure


def _timed(records: Sequence[StepRecord]) -> list[tuple[str, float, float]]:
    """(name, seconds, overhead) of the steps; where they are too many, seeds are added up and the longest shown."""
    rows: dict[str, tuple[float, float]] = {}
    many = len(records) > _MOST_BARS
    for record in records:
        name = record.step.rsplit(".s", 1)[0] if many else record.step
        seconds, overhead = rows.get(name, (0.0, 0.0))
        rows[name] = (seconds + record.seconds, overhead + record.overhead_seconds)
    longest = sorted(rows, key=lambda name: -rows[name][0])[:_MOST_BARS]
    return [(name, *rows[name]) for name in rows if name in longest]
