"""How every plot looks: colours that colour-blind readers can tell apart (Okabe & Ito 2008), sizes, and saving.

A figure's inch is 100 CSS pixels and is saved at twice that. Each plot is drawn in two widths, for a desk and for a
phone, so that its letters have the same size on both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

from components.common.curriculum import MAIN
from components.common.records import BASE

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.patheffects import AbstractPathEffect

WIDE, NARROW = 7.6, 3.6
"""Inches."""
INK, SOFT, FAINT = "#1f2430", "#667085", "#e3e6ec"
BASE_COLOUR = "#7a828f"
MAIN_COLOUR = "#0072B2"
_FIXED = {MAIN: MAIN_COLOUR, BASE: BASE_COLOUR, "one_off": "#D55E00", "random_tiers": "#009E73"}
_FREE = ("#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#6A51A3", "#4D4D4D")
_DPI = 200


def colours(curricula: Sequence[str]) -> dict[str, str]:
    """One colour for each curriculum, the same in every plot of a run."""
    others = [name for name in curricula if name not in _FIXED]
    return dict(_FIXED) | {name: _FREE[place % len(_FREE)] for place, name in enumerate(others)}


def tier_colours(count: int) -> list[str]:
    """Shades from light (easy) to dark (hard)."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    shades = colormaps["YlGnBu"]
    return [to_hex(shades(0.35 + 0.55 * place / max(1, count - 1))) for place in range(count)]


@contextmanager
def drawing() -> Iterator[None]:
    """The settings of our plots, for figures made and saved inside the block."""
    from matplotlib import rc_context

    settings: Any = {
        "font.size": 9.5,
        "axes.titlesize": 9.5,
        "axes.labelsize": 9,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "text.color": INK,
        "axes.labelcolor": SOFT,
        "axes.edgecolor": "#b6bcc8",
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": FAINT,
        "grid.linewidth": 0.8,
        "xtick.major.size": 3,
        "ytick.major.size": 0,
        "axes.titlelocation": "left",
    }
    with rc_context(settings):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure that belongs to no global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def halo() -> list[AbstractPathEffect]:
    """A white rim that keeps letters readable where they cross a line."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=3, foreground="white")]


def to_png(figure: Figure) -> bytes:
    """The figure as PNG, with no date inside: the same numbers give the same bytes."""
    layout = figure.get_layout_engine()
    if layout is not None:  # once: while it has one, saving arranges and draws the figure twice
        figure.set_dpi(_DPI)
        layout.execute(figure)
        figure.set_layout_engine("none")
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Places of labels, pushed apart so that neighbours are at least `gap` from each other."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved = [places[index] for index in order]
    for place in range(1, len(moved)):
        moved[place] = max(moved[place], moved[place - 1] + gap)
    excess = moved[-1] - max(places) if moved else 0.0
    result = [0.0] * len(places)
    for index, value in zip(order, moved, strict=True):
        result[index] = value - excess / 2
    return result
