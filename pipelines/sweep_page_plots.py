"""The plots of sweep.html. Each function draws one figure in a given width."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from components.reporting.plot_style import BASE_COLOUR, FAINT, INK, MAIN_COLOUR, SOFT, WIDE, halo, new_figure
from pipelines.sweep_page_importance import Importance
from pipelines.sweep_screen import described
from pipelines.sweep_spec import ObjectiveSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEADER = "#D55E00"
_MOST_CANDIDATES = 16
_MOST_TIERS = 9
"""Tiers up to which the cells of a map of orders have room for numbers."""


@dataclass(frozen=True, slots=True)
class Point:
    """A trial with a result.

    Attributes:
        row: The trial, as in sweep.json.
        value: Its first run's result.
        low: The lower end of the result's interval; None where it has none.
        high: The upper end.
        seconds: Of the training of its phases, whoever trained them; None where that is not known.
    """

    row: Mapping[str, Any]
    value: float
    low: float | None
    high: float | None
    seconds: float | None


def value_of(metrics: Mapping[str, Any], name: str) -> float | None:
    """A metric's value; None where there is none, or no number."""
    value = metrics.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def figures_of(
    written: Mapping[str, Any],
    points: Sequence[Point],
    found: Sequence[Importance] | str,
    objective: ObjectiveSpec,
    width: float,
) -> dict[str, Figure | None]:
    """Every plot for which there are results, by name."""
    leader = (written["contest"] or {}).get("leader")
    return {
        "counts": counts_figure(points, leader, objective, width),
        "orders": orders_figure(points, objective, width),
        "cost": cost_figure(points, leader, objective, width),
        "importance": None if isinstance(found, str) else importance_figure(found, width),
        "chances": chances_figure(written, objective, width),
    }


def plain(text: str, length: int = 60) -> str:
    """Text of the user's as Matplotlib shows it unread: on one line, shortened, and no formula."""
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    text = text if len(text) <= length else text[: length - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
    return text.replace("$", r"\$")


def counts_figure(
    points: Sequence[Point], leader: int | None, objective: ObjectiveSpec, width: float, called: str = "trial"
) -> Figure | None:
    """Every trial's result with its interval, by the number of its phases, sorted within each number.

    Args:
        points: The results.
        leader: The trial that is marked.
        objective: What decides.
        width: In inches.
        called: What one of them is.
    """
    if not points:
        return None
    figure = new_figure(width, 3.1)
    axes = figure.add_subplot()
    counts = sorted({len(point.row["keys"]) for point in points})
    for place, count in enumerate(counts):
        here = sorted((point for point in points if len(point.row["keys"]) == count), key=lambda point: point.value)
        mean = sum(point.value for point in here) / len(here)
        axes.plot([place - 0.4, place + 0.4], [mean, mean], color=BASE_COLOUR, lw=1, ls=(0, (4, 2)), zorder=1)
        for number, point in enumerate(here):
            x = place + (0.7 * (number / (len(here) - 1) - 0.5) if len(here) > 1 else 0.0)
            _interval(axes, x, point, point.row["trial"] == leader, len(here) * WIDE / width)
    trials = [sum(len(point.row["keys"]) == count for point in points) for count in counts]
    named = [f"{count}\n{n} {called}{'s' * (n != 1)}" for count, n in zip(counts, trials, strict=True)]
    axes.set_xticks(range(len(counts)), named)
    axes.set_xlim(-0.55, len(counts) - 0.45)
    axes.grid(axis="x", visible=False)
    axes.set_xlabel("phases")
    axes.set_ylabel(plain(objective.name))
    return figure


def _interval(axes: Axes, x: float, point: Point, leads: bool, crowd: float) -> None:
    colour, above = (_LEADER, 4) if leads else (MAIN_COLOUR, 3)
    thick = 1.6 if leads else 1.4 if crowd < 30 else 0.6
    if point.low is not None and point.high is not None:
        axes.plot(
            [x, x], [point.low, point.high], color=colour, lw=thick, alpha=0.95 if leads else 0.5, zorder=above - 1
        )
    size = 5.5 if crowd < 12 or leads else 4 if crowd < 30 else 2.5
    axes.plot([x], [point.value], "o", color=colour, ms=size, mec="white", mew=0.5, zorder=above)


def orders_figure(points: Sequence[Point], objective: ObjectiveSpec, width: float) -> Figure | None:
    """For each number of tiers the mean result by the first and the last tier of the order."""
    maps = {count: _map(points, count) for count in sorted({int(point.row["tiers"]) for point in points})}
    maps = {count: found for count, found in maps.items() if np.isfinite(found[0]).sum() > 1}
    if not maps:
        return None
    known = np.concatenate([means[np.isfinite(means)] for means, _ in maps.values()])
    limits = (float(known.min()), float(known.max()))
    if limits[0] == limits[1]:
        limits = (limits[0] - 0.05, limits[1] + 0.05)
    most = max(maps)
    across = len(maps) if width == WIDE and most * len(maps) <= 15 else 1
    cell = min(0.68, (width - 0.6 * across - 0.3) / (most * across))
    rows = [most] if across > 1 else list(maps)
    height = sum(count * cell + 0.75 for count in rows) + 0.9
    figure = new_figure(width, height)
    if engine := figure.get_layout_engine():
        engine.set(rect=(0, 0, 1, 1 - 0.22 / height))  # type: ignore[call-arg]  # the stubs know the base class only
    grid = figure.add_gridspec(len(rows), across, height_ratios=rows)
    panels = []
    for place, (count, (means, often)) in enumerate(maps.items()):
        axes = figure.add_subplot(grid[0, place] if across > 1 else grid[place, 0])
        _draw_map(axes, means, often, limits, objective, cell)
        axes.set_xlim(-0.5, most - 0.5)  # all cells are of one size
        axes.set_ylim(count - 0.5, (count - most if across > 1 else 0) - 0.5)
        axes.set_anchor("SW")
        axes.annotate(f"{count} tiers", (-0.5, -0.5), (0, 4), textcoords="offset points")
        axes.set_ylabel("first tier" if place == 0 or across == 1 else "", loc="bottom")
        panels.append(axes)
    bar = figure.colorbar(
        panels[-1].images[0], ax=panels, location="bottom", fraction=0.06, aspect=40, shrink=0.6, pad=0.03
    )
    bar.outline.set_visible(False)
    bar.set_label(f"mean {plain(objective.name)}, {'higher' if objective.mode == 'max' else 'lower'} is better")
    return figure


def _map(points: Sequence[Point], count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Mean results by first (row) and last tier (column), and how many trials each mean is of."""
    sums, often = np.zeros((count, count)), np.zeros((count, count), np.int64)
    for point in points:
        order = point.row["order"]
        if order is not None and len(order) == count and count > 1:
            sums[order[0] - 1, order[-1] - 1] += point.value
            often[order[0] - 1, order[-1] - 1] += 1
    return np.divide(sums, often, out=np.full(sums.shape, np.nan), where=often > 0), often


def _draw_map(
    axes: Axes,
    means: np.ndarray[Any, Any],
    often: np.ndarray[Any, Any],
    limits: tuple[float, float],
    objective: ObjectiveSpec,
    cell: float,
) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    count = len(means)
    shades = colormaps["YlGnBu" if objective.mode == "max" else "YlGnBu_r"]
    axes.imshow(means, cmap=shades, vmin=limits[0], vmax=limits[1])
    axes.add_patch(Rectangle((-0.5, -0.5), count, count, color="#f7f8fa", zorder=-1))
    for first, last in np.argwhere(often > 0) if count <= _MOST_TIERS else ():
        value = means[first, last]
        level = (value - limits[0]) / (limits[1] - limits[0])
        dark = level > 0.55 if objective.mode == "max" else level < 0.45
        text = f"{value:.3f}\nn = {often[first, last]}" if cell > 0.42 else f"{value:.2f}\nn={often[first, last]}"
        size = 8 if cell > 0.5 else 7 if cell > 0.42 else 5.5
        axes.text(last, first, text, ha="center", va="center", fontsize=size, color="white" if dark else INK)
    axes.set_xticks(range(count), [str(tier + 1) for tier in range(count)])
    axes.set_yticks(range(count), [str(tier + 1) for tier in range(count)])
    axes.set_xlabel("last tier", loc="left")
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0)


def pareto(costs: Sequence[float], values: Sequence[float], larger_is_better: bool) -> list[int]:
    """The points than which none is as cheap and better, or cheaper and as good; the cheapest first."""
    sign = 1.0 if larger_is_better else -1.0
    front: list[int] = []
    for place in sorted(range(len(costs)), key=lambda place: (costs[place], -sign * values[place])):
        if not front or sign * values[place] > sign * values[front[-1]]:
            front.append(place)
    return front


def cost_figure(points: Sequence[Point], leader: int | None, objective: ObjectiveSpec, width: float) -> Figure | None:
    """Result against training tokens and against seconds of training, with the Pareto front of each."""
    tokens = [(float(point.row["tokens"]), point) for point in points if point.row["tokens"]]
    seconds = [(point.seconds, point) for point in points if point.seconds]
    panels = [(title, rows) for title, rows in (("tokens", tokens), ("seconds of training", seconds)) if rows]
    if not panels:
        return None
    wide = width == WIDE
    figure = new_figure(width, 2.9 if wide else 2.6 * len(panels))
    first: Axes | None = None
    for place, (title, rows) in enumerate(panels):
        shape = (1, len(panels)) if wide else (len(panels), 1)
        axes = figure.add_subplot(*shape, place + 1, sharey=first)
        first = first or axes
        _draw_cost(axes, rows, leader, objective)
        axes.set_xlabel(title)
        if place == 0 or not wide:
            axes.set_ylabel(plain(objective.name))
        else:
            axes.tick_params(labelleft=False)
    return figure


def _draw_cost(axes: Axes, rows: Sequence[tuple[float, Point]], leader: int | None, objective: ObjectiveSpec) -> None:
    from matplotlib.ticker import MaxNLocator

    costs, values = [cost for cost, _ in rows], [point.value for _, point in rows]
    front = pareto(costs, values, objective.mode == "max")
    axes.plot(costs, values, "o", color=BASE_COLOUR, ms=4.5, alpha=0.55, mec="white", mew=0.4)
    line = [(costs[place], values[place]) for place in front]
    axes.plot(*zip(*line, strict=True), color=MAIN_COLOUR, lw=1.2, drawstyle="steps-post", alpha=0.8)
    for number, place in enumerate(front):
        trial = rows[place][1].row["trial"]
        colour = _LEADER if trial == leader else MAIN_COLOUR
        axes.plot([costs[place]], [values[place]], "o", color=colour, ms=7, mec="white", mew=0.8, zorder=3)
        if len(front) <= 8 or number in (0, len(front) - 1):
            above = 5 if objective.mode == "max" else -12
            axes.annotate(
                str(trial), (costs[place], values[place]), (0, above), textcoords="offset points", ha="center",
                fontsize=8.5, color=colour, path_effects=halo(), zorder=4,
            )  # fmt: skip
    axes.margins(0.08, 0.14)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if max(costs) < 1.005 * min(costs):  # a scale of hair's breadths would only seem to say something
        axes.set_xticks([sum(costs) / len(costs)])
        axes.set_xlim(min(costs) * 0.9, max(costs) * 1.1)
    axes.xaxis.set_major_formatter(_short)


def _short(number: float, _: Any = None) -> str:
    """`24,080`, `120k`, `3.5M`: ticks of a cost."""
    if abs(number) >= 1e6:
        return f"{number / 1e6:.6g}M"
    return f"{number / 1e3:.6g}k" if abs(number) >= 1e5 else f"{number:,.6g}"


def importance_figure(found: Sequence[Importance], width: float) -> Figure:
    """The share of every dimension with its interval."""
    figure = new_figure(width, 0.42 * len(found) + 0.75)
    axes = figure.add_subplot()
    for place, each in enumerate(found):
        axes.barh(place, max(0.0, each.share) * 100, color=MAIN_COLOUR, alpha=0.3, height=0.5)
        axes.plot([each.low * 100, each.high * 100], [place, place], color=MAIN_COLOUR, lw=2.2, solid_capstyle="butt")
        axes.plot([each.share * 100], [place], "o", color=MAIN_COLOUR, ms=6, mec="white", mew=0.8)
    length = 40 if width == WIDE else 18
    names = [plain(each.key if width == WIDE else each.key.split(".")[-1], length) for each in found]
    axes.set_yticks(range(len(found)), names)
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.axvline(0, color=INK, lw=1)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("% of the variance between trials")
    return figure


def varying(params: Mapping[int, Mapping[str, Any]], trials: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The parameters of some trials, without those in which these are all the same."""
    first = params[trials[0]]
    same = {key for key in first if all(params[trial].get(key) == first[key] for trial in trials)}
    return {trial: {key: value for key, value in params[trial].items() if key not in same} for trial in trials}


def _brief(params: Mapping[str, Any]) -> str:
    """`tiers 3, 1-3-2, ifd`: only numbers need their names."""
    bare = [isinstance(value, str | list) for value in params.values()]
    said = [described({key: value}) for key, value in params.items()]
    return ", ".join(text.partition(" ")[2] if alone else text for text, alone in zip(said, bare, strict=True))


def chances_figure(written: Mapping[str, Any], objective: ObjectiveSpec, width: float) -> Figure | None:
    """The candidates most likely to be the best: their values with intervals, and how likely."""
    contest = written["contest"]
    if not contest or len(contest["candidates"]) < 2:
        return None
    rows = sorted(contest["candidates"], key=lambda one: -one["chance"])[:_MOST_CANDIDATES]
    params = varying({row["trial"]: row["params"] for row in written["table"]}, [one["trial"] for one in rows])
    wide = width == WIDE
    tall = 0.3 * len(rows) + 0.8
    figure = new_figure(width, tall if wide else 2 * tall)
    left = figure.add_subplot(1, 2, 1) if wide else figure.add_subplot(2, 1, 1)
    right = figure.add_subplot(1, 2, 2) if wide else figure.add_subplot(2, 1, 2)
    for place, one in enumerate(rows):
        colour = _LEADER if one["trial"] == contest["leader"] else MAIN_COLOUR
        left.plot([one["low"], one["high"]], [place, place], color=colour, lw=2.2, solid_capstyle="butt")
        left.plot([one["value"]], [place], "o", color=colour, ms=6, mec="white", mew=0.8)
        right.barh(place, one["chance"] * 100, color=colour, height=0.55)
        said = f"{one['chance']:.0%}" if one["chance"] >= 0.005 or not one["chance"] else "<1%"
        right.annotate(
            said,
            (one["chance"] * 100, place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color=SOFT,
        )
    names = [plain(f"{one['trial']}: {_brief(params[one['trial']])}", 36 if wide else 24) for one in rows]
    for axes, title in ((left, plain(objective.name)), (right, "probability of being the best, %")):
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks(range(len(rows)), names if axes is left or not wide else [""] * len(rows))
        axes.set_title(title, loc="left" if wide else "right")
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_color(FAINT)
    right.set_xlim(0, max(12.0, *(one["chance"] * 115 for one in rows)))
    return figure
