"""The report's learning curves: what each method's trainer watches, over the steps of the curricula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from components.common.curriculum import MAIN, PhasePlan
from components.common.spec_phases import DpoSettings
from components.reporting.plot_style import INK, SOFT, WIDE, apart, colours, new_figure
from components.reporting.results import CurriculumResult, PhaseResult, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_LABELS = 6


@dataclass(frozen=True, slots=True)
class _Piece:
    """The curve of one phase: values by step, counted over its whole curriculum."""

    phase: PhaseResult
    start: float
    end: float
    steps: list[float]
    values: list[float]


def _watched(plan: PhasePlan) -> tuple[str, str]:
    """The key of a point that a method's curve shows, and what it is. GRPO's loss says nothing of its progress."""
    if plan.method == "grpo":
        return "reward", "mean reward"
    if isinstance(plan.settings, DpoSettings):
        return "loss", f"DPO loss ({plan.settings.loss})"
    return "loss", "training loss, nats per token"


def _pieces(phases: Sequence[PhaseResult]) -> list[_Piece]:
    """The phases' curves, up to the first phase that is missing."""
    pieces: list[_Piece] = []
    done = 0.0
    for phase in phases:
        if phase.train is None:
            break
        key, _ = _watched(phase.plan)
        points = [point for point in phase.train.info["learning"] if point.get(key) is not None]
        steps = [done + point["step"] for point in points]
        end = done + phase.train.info["steps"]
        pieces.append(_Piece(phase, done, end, steps, [float(point[key]) for point in points]))
        done = end
    return pieces


def _smooth(values: Sequence[float]) -> list[float]:
    """Running mean over about a twentieth of the points, within one phase."""
    reach = max(0, len(values) // 40)
    windows = [values[max(0, place - reach) : place + reach + 1] for place in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def learning_figure(results: Results, width: float) -> Figure | None:
    """The curves of the main run with its phases, the controls' thinner beside it (first seed); a panel a method."""
    drawn = [(curriculum, _pieces(curriculum.first)) for curriculum in reversed(results.curricula)]
    drawn = [(curriculum, pieces) for curriculum, pieces in drawn if any(piece.steps for piece in pieces)]
    if not drawn:
        return None
    methods = dict.fromkeys(phase.plan.method for phase in results.main.first)
    methods |= dict.fromkeys(piece.phase.plan.method for _, pieces in drawn for piece in pieces)
    wide, one = width == WIDE, len(methods) == 1
    height = 3.5 if wide else 3.1
    figure = new_figure(width, height if one else 0.5 + 2.3 * len(methods))
    ends: dict[str, tuple[float, float, str, str]] = {}
    axes = None
    for place, method in enumerate(methods):
        axes = figure.add_subplot(len(methods), 1, place + 1)
        ends |= _panel(axes, results, drawn, method, wide)
    if axes is not None:
        axes.set_xlabel("optimizer steps" if one else "optimizer steps of the whole run")
        _label_ends(axes, list(ends.values()), wide and one)
    return figure


def _panel(
    axes: Axes, results: Results, drawn: list[tuple[CurriculumResult, list[_Piece]]], method: str, wide: bool
) -> dict[str, tuple[float, float, str, str]]:
    """Draw a method's curves; returns by curriculum where its line ends, its title and colour."""
    palette = colours([curriculum.name for curriculum in results.curricula])
    ends: dict[str, tuple[float, float, str, str]] = {}
    shown: list[_Piece] = []
    for curriculum, pieces in drawn:
        main = curriculum.name == MAIN
        for piece in pieces:
            if piece.phase.plan.method != method or not piece.steps:
                continue
            smooth = _smooth(piece.values)
            if main:
                axes.plot(piece.steps, piece.values, color=palette[MAIN], lw=0.8, alpha=0.3)
            axes.plot(piece.steps, smooth, color=palette[curriculum.name], lw=2.4 if main else 1.2)
            ends[curriculum.name] = (piece.steps[-1], smooth[-1], curriculum.title, palette[curriculum.name])
            shown.append(piece)
    of_main = [piece for curriculum, pieces in drawn if curriculum.name == MAIN for piece in pieces]
    of_main = [piece for piece in of_main if piece.phase.plan.method == method]
    _mark_phases(axes, of_main, wide)
    labels = dict.fromkeys(_watched(piece.phase.plan)[1] for piece in [*of_main, *shown])
    axes.set_ylabel("\n".join(labels))
    if shown:
        axes.set_xlim(min(piece.start for piece in shown), max(piece.end for piece in shown))
    axes.grid(axis="x", visible=False)
    return ends


def _label_ends(axes: Axes, ends: list[tuple[float, float, str, str]], inside: bool) -> None:
    """Names of the lines: at their ends where that is wished, all end at the right, and there is room; else below."""
    low, high = axes.get_ylim()
    edge = axes.get_xlim()[1]
    if not inside or any(x < 0.93 * edge for x, *_ in ends) or len(ends) > _MOST_LABELS:
        from matplotlib.lines import Line2D

        lines = [Line2D([], [], color=colour, lw=2, label=text) for *_, text, colour in reversed(ends)]
        figure = axes.get_figure(root=True)
        if figure:
            columns = min(len(lines), 5 if figure.get_figwidth() == WIDE else 2)
            figure.legend(handles=lines, loc="outside lower center", ncols=columns, frameon=False, handlelength=1.2)
        return
    places = apart([y for _, y, _, _ in ends], 0.065 * (high - low))
    for (_, _, text, colour), place in zip(ends, places, strict=True):
        axes.annotate(
            text, (edge, place), (5, 0), textcoords="offset points", va="center", color=colour, annotation_clip=False
        )


def _mark_phases(axes: Axes, pieces: Sequence[_Piece], wide: bool) -> None:
    named = sum(len(piece.phase.plan.name) for piece in pieces) <= (60 if wide else 26)
    for place, piece in enumerate(pieces):
        if place:
            axes.axvline(piece.start, color=SOFT, lw=1, ls=(0, (4, 3)))
        axes.annotate(
            piece.phase.plan.name if named else str(piece.phase.plan.index),
            ((piece.start + piece.end) / 2, 1.0),
            (0, 4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            color=INK,
            fontweight="bold",
            fontsize=9,
        )
