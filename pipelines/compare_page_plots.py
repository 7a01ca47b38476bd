"""The plots of compare.html. Each function draws one figure in a given width."""

from __future__ import annotations

from typing import TYPE_CHECKING

from components.reporting.measures import Level, Measure
from components.reporting.plot_style import INK, MAIN_COLOUR, WIDE, halo, new_figure
from pipelines.compare import Compared, Contender
from pipelines.sweep_page_plots import Point, cost_figure, counts_figure, plain
from pipelines.sweep_spec import ObjectiveSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_DRAWN = 28
_ENOUGH = 3
"""Results from which on a Pareto front says something."""


def figures_of(compared: Compared, leader: int | None, width: float) -> dict[str, Figure | None]:
    """Every plot for which there are results, by name.

    Args:
        compared: What is shown.
        leader: The place of the best result among the contenders, from 0.
        width: In inches.
    """
    measure, points = compared.measure, points_of(compared)
    objective = ObjectiveSpec(
        metric=f"held-out {measure.title}" + (f", {measure.sign}" if measure.sign else ""),
        mode="max" if measure.higher_is_better else "min",
    )
    best = None if leader is None else leader + 1
    counted = [point for point in points if point.row["keys"]]
    several = len({len(point.row["keys"]) for point in counted}) > 1
    return {
        "levels": levels_figure(compared, width),
        "pairs": pairs_figure(compared, width),
        "counts": counts_figure(counted, best, objective, width, "result") if several else None,
        "cost": cost_figure(points, best, objective, width) if len(points) >= _ENOUGH else None,
    }


def points_of(compared: Compared) -> list[Point]:
    """The contenders as the plots of sweeps take them, numbered from 1 in the order of the table."""
    known = zip(compared.contenders, compared.levels, strict=True)
    return [_point(number, one, level, compared.measure) for number, (one, level) in enumerate(known, 1) if level]


def _point(number: int, one: Contender, level: Level, measure: Measure) -> Point:
    row = {"trial": number, "keys": range(one.phases), "tokens": one.tokens}
    low, high = (None if bound != bound else bound * measure.scale for bound in (level.low, level.high))
    return Point(row, level.value * measure.scale, low, high, one.seconds)


def levels_figure(compared: Compared, width: float) -> Figure | None:
    """Every result with its interval."""
    measure = compared.measure
    known = [(one, level) for one, level in zip(compared.contenders, compared.levels, strict=True) if level]
    rows = [(one.name, level.value, level.low, level.high) for one, level in known]
    unit = measure.sign or "nats per token"
    return _forest(rows, f"held-out {measure.title}, {unit}", measure, width, False)


def pairs_figure(compared: Compared, width: float) -> Figure | None:
    """Every difference with its interval."""
    measure = compared.measure
    rows = [
        (f"{pair.first.name} \N{MINUS SIGN} {pair.second.name}", gap.difference, gap.low, gap.high)
        for pair in compared.pairs
        if (gap := pair.comparison) is not None
    ]
    title = f"difference in {measure.title}, {measure.unit or 'nats per token'}"
    return _forest(rows[:_MOST_DRAWN], title, measure, width, True) if rows else None


def _forest(
    rows: list[tuple[str, float, float, float]], title: str, measure: Measure, width: float, gaps: bool
) -> Figure:
    wide = width == WIDE
    figure = new_figure(width, (0.32 if wide else 0.5) * len(rows) + 0.85)
    axes = figure.add_subplot()
    for place, (_, value, low, high) in enumerate(rows):
        bounds = [low * measure.scale, high * measure.scale]
        axes.plot(bounds, [place, place], color=MAIN_COLOUR, lw=2.2, solid_capstyle="butt")
        axes.plot([value * measure.scale], [place], "o", color=MAIN_COLOUR, ms=6, mec="white", mew=0.8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    names = [plain(name, 56) for name, *_ in rows]
    if wide:
        axes.set_yticks(range(len(rows)), names)
    else:  # beside the plot there is no room for names on a phone
        axes.set_yticks(range(len(rows)), [""] * len(rows))
        for place, name in enumerate(names):
            axes.annotate(
                name,
                (0, place),
                (2, 7),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                fontsize=8,
                path_effects=halo(),
            )
    if gaps:
        axes.axvline(0, color=INK, lw=1)
        furthest = max(abs(bound) for bound in axes.get_xlim())
        axes.set_xlim(-furthest, furthest)
        worse, better = ("first worse", "first better")[:: 1 if measure.higher_is_better else -1]
        axes.set_xlabel(f"\N{LEFTWARDS ARROW} {worse}      {better} \N{RIGHTWARDS ARROW}")
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_title(title)
    return figure
