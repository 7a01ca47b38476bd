"""The report's plots. Each function draws one figure in a given width; none computes a statistic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from components.common.curriculum import MAIN
from components.common.records import BASE
from components.reporting.comparisons import Comparisons
from components.reporting.measures import LOSS, Level, Measure, part_title, parts_of
from components.reporting.plot_style import (
    BASE_COLOUR,
    FAINT,
    INK,
    SOFT,
    WIDE,
    colours,
    halo,
    new_figure,
)
from components.reporting.results import CurriculumResult, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _palette(results: Results) -> dict[str, str]:
    return colours([curriculum.name for curriculum in results.curricula])


def phases_figure(results: Results, found: Comparisons, measure: Measure, width: float) -> Figure | None:
    """Small multiples: one panel for everything, each tier and each slice; base, every phase, the controls' ends."""
    tiers, slices = parts_of(results.metric_names(), measure)
    if not any(measure.read(phase.metrics) for phase in results.main.all_phases()):
        return None
    parts = ["", *tiers, *slices]
    across = min(len(parts), 3 if width == WIDE else 2)
    down = math.ceil(len(parts) / across)
    figure = new_figure(width, (2.1 if width == WIDE else 1.9) * down + 0.55)
    first: Axes | None = None
    for place, part in enumerate(parts):
        axes = figure.add_subplot(down, across, place + 1, sharey=first)
        first = first or axes
        _panel(axes, results, found, measure, part, place + across >= len(parts))
        axes.set_title({"": "all held-out"}.get(part, part_title(part)), fontweight="bold" if not part else "normal")
        axes.tick_params(labelleft=place % across == 0)
    figure.supylabel(f"{measure.title}, {'%' if measure is not LOSS else 'nats per token'}", fontsize=9, color=SOFT)
    _legend(figure, results)
    return figure


def _legend(figure: Figure, results: Results) -> None:
    from matplotlib.lines import Line2D

    palette = _palette(results)
    entries = [(BASE, "base"), *((curriculum.name, curriculum.title) for curriculum in results.curricula)]
    marks = [
        Line2D([], [], color=palette[name], marker="o", ms=5, lw=2 if name == MAIN else 0, label=title)
        for name, title in entries
    ]
    figure.legend(
        handles=marks,
        loc="outside upper left",
        ncols=min(len(marks), 5) if figure.get_figwidth() == WIDE else 2,
        frameon=False,
        handletextpad=0.4,
        columnspacing=1.3,
        handlelength=1.2,
    )


def _panel(axes: Axes, results: Results, found: Comparisons, measure: Measure, part: str, lowest: bool) -> None:
    palette, main = _palette(results), results.main
    names = ["base", *(phase.plan.name for phase in main.first)]
    base = measure.read(results.base_metrics, part)
    if base:
        axes.axhline(base.value * measure.scale, color=BASE_COLOUR, lw=0.9, ls=(0, (1, 2)))
        _point(axes, 0, base, measure, BASE_COLOUR)
    for phases in main.phases.values():
        levels = [(phase.plan.index, measure.read(phase.metrics, part)) for phase in phases]
        line = [(0, base), *levels]
        known = [(x, level.value * measure.scale) for x, level in line if level]
        alone = len(main.phases) == 1
        axes.plot(*zip(*known, strict=True), color=palette[MAIN], lw=2 if alone else 1, alpha=1 if alone else 0.45)
        for x, level in levels:
            if level and alone:
                _point(axes, x, level, measure, palette[MAIN])
    ends = [*([main] if len(main.phases) > 1 else []), *results.controls]
    for place, curriculum in enumerate(ends):
        level = found.levels.get((curriculum.name, measure.metric(part)))
        if level:
            _point(axes, len(names) - 0.35 + 0.4 * place, level, measure, palette[curriculum.name])
    if ends:
        axes.axvline(len(names) - 0.65, color=FAINT, lw=1)
    _name_phases(axes, names, lowest)
    axes.set_xlim(-0.35, len(names) - 0.6 + 0.4 * len(ends))
    axes.grid(axis="x", visible=False)


def _name_phases(axes: Axes, names: list[str], lowest: bool) -> None:
    """Ticks with the phases' names, or with their numbers (0 is the base model) where the names have no room."""
    figure = axes.get_figure(root=True)
    wide = figure is not None and figure.get_figwidth() == WIDE
    upright = not wide and len(names) <= 6 and max(map(len, names)) <= 9
    shown = names if upright or (wide and sum(map(len, names)) <= 28) else [str(place) for place in range(len(names))]
    axes.set_xticks(range(len(names)), shown if lowest else [""] * len(names), rotation=90 if upright else 0)


def _point(axes: Axes, x: float, level: Level, measure: Measure, colour: str) -> None:
    value, low, high = (number * measure.scale for number in (level.value, level.low, level.high))
    if not math.isnan(low):
        axes.plot([x, x], [low, high], color=colour, lw=1.6, solid_capstyle="butt")
    axes.plot([x], [value], "o", color=colour, ms=5, mec="white", mew=0.8)


def controls_figure(results: Results, found: Comparisons, width: float) -> Figure | None:
    """Beside each other: every curriculum's result with its interval, and main minus each control with its own."""
    measure, palette, wide = found.measure, _palette(results), width == WIDE
    rows = [(c, found.levels.get((c.name, measure.metric()))) for c in results.curricula]
    compared = [against for against in found.controls if against.comparison]
    if not compared or not any(level for _, level in rows):
        return None
    tall = 0.34 * len(rows) + 0.95
    figure = new_figure(width, tall if wide else 2 * tall + 0.1)
    left = figure.add_subplot(1, 2, 1) if wide else figure.add_subplot(2, 1, 1)
    right = figure.add_subplot(1, 2, 2) if wide else figure.add_subplot(2, 1, 2)
    for y, (curriculum, level) in enumerate(rows):
        if level:
            _bar(left, y, level.value, level.low, level.high, measure, palette[curriculum.name])
            text = measure.number(level.value) + measure.sign
            _over(left, level.value * measure.scale, y, text, palette[curriculum.name])
    _rows(left, [curriculum for curriculum, _ in rows], palette, labels=True)
    left.set_title(f"{measure.title}, {results.spec.evaluation.confidence:.0%} interval")
    order = {curriculum.name: y for y, (curriculum, _) in enumerate(rows)}
    for against in compared:
        gap, name = against.comparison, against.control.name
        if gap:
            _bar(right, order[name], gap.difference, gap.low, gap.high, measure, palette[name])
            _over(right, gap.difference * measure.scale, order[name], measure.gap(gap.difference), palette[name])
    _rows(right, [curriculum for curriculum, _ in rows], palette, labels=not wide)
    right.axvline(0, color=INK, lw=1)
    furthest = max(abs(bound) for bound in right.get_xlim())
    right.set_xlim(-furthest, furthest)
    right.set_title("main minus control" + (f", {measure.unit}" if measure.unit else ", nats per token"))
    worse, better = ("main worse", "main better") if measure.higher_is_better else ("main better", "main worse")
    right.set_xlabel(f"\N{LEFTWARDS ARROW} {worse}      {better} \N{RIGHTWARDS ARROW}")
    return figure


def _bar(axes: Axes, y: float, value: float, low: float, high: float, measure: Measure, colour: str) -> None:
    if not math.isnan(low):
        axes.plot([low * measure.scale, high * measure.scale], [y, y], color=colour, lw=2.4, solid_capstyle="butt")
    axes.plot([value * measure.scale], [y], "o", color=colour, ms=7, mec="white", mew=1)


def _over(axes: Axes, x: float, y: float, text: str, colour: str) -> None:
    axes.annotate(
        text,
        (x, y),
        (0, 6),
        textcoords="offset points",
        ha="center",
        color=colour,
        fontsize=8.5,
        path_effects=halo(),
    )


def _rows(axes: Axes, curricula: Sequence[CurriculumResult], palette: dict[str, str], labels: bool) -> None:
    axes.set_ylim(len(curricula) - 0.5, -0.75)
    axes.set_yticks(range(len(curricula)), [c.title if labels else "" for c in curricula])
    for label, curriculum in zip(axes.get_yticklabels(), curricula, strict=True):
        label.set(color=palette[curriculum.name], fontsize=9.5)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
