"""What `phasetune compare` shows: a table on the screen, and the same as a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from components.reporting.measures import ACCURACY, LOSS, Level, Measure, p_value
from components.reporting.page_tables import Cell, Table, whole
from components.reporting.plot_style import INK, MAIN_COLOUR, WIDE, halo, new_figure
from components.reporting.report import fill, pictures_of, write_whole
from pipelines.compare import CONFIDENCE, Compared, Pair
from pipelines.sweep_page_plots import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

_TEMPLATE = "compare.html.jinja"
_DASH = "\N{EN DASH}"
_MOST_PAIRS = 15
"""Pairs on the screen; the page has all."""
_MOST_DRAWN = 28


def show(compared: Compared, console: Console) -> None:
    """Print the results side by side, and every difference."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as ScreenTable
    from rich.text import Text

    measure, other = compared.measure, _other(compared.measure)
    table = ScreenTable(box=SIMPLE_HEAD, pad_edge=False)
    for place, head in enumerate(("", "", f"{measure.title} [{CONFIDENCE:.0%}]", other.title, "tokens")):
        table.add_column(Text(head), justify="left" if place < 2 else "right", overflow="fold")
    for one, level, beside in zip(compared.contenders, compared.levels, compared.others, strict=True):
        shown = [_written(measure, level), _written(other, beside, bare=True), whole(one.tokens)]
        table.add_row(Text(one.name), Text(one.about), *map(Text, shown))
    console.print(table, soft_wrap=False)
    for pair in compared.pairs[:_MOST_PAIRS]:
        console.print(
            f"{pair.first.name} minus {pair.second.name}: {said(pair, measure)}", highlight=False, markup=False
        )
    if len(compared.pairs) > _MOST_PAIRS:
        console.print(f"and {len(compared.pairs) - _MOST_PAIRS} pairs more on the page", highlight=False)
    for note in compared.notes:
        console.print(note, style="dim", highlight=False, markup=False)


def said(pair: Pair, measure: Measure) -> str:
    """A pair in words: its difference, or why there is none."""
    gap = pair.comparison
    if gap is None:
        return pair.said
    number = measure.difference(gap.difference, gap.low, gap.high)
    return f"{number}, {p_value(pair.p_holm)}; {verdict_of(pair, measure)}"


def verdict_of(pair: Pair, measure: Measure) -> str:
    """What a comparison allows to say of the first."""
    gap = pair.comparison
    if gap is None:
        return "not compared"
    if set(pair.first.ends.values()) == set(pair.second.ends.values()):
        return "the same model"
    if not (gap.low > 0 or gap.high < 0) or not pair.p_holm < 1 - CONFIDENCE:
        return "no difference shown"
    return "better" if (gap.difference > 0) == measure.higher_is_better else "worse"


def _other(measure: Measure) -> Measure:
    return LOSS if measure is ACCURACY else ACCURACY


def _written(measure: Measure, level: Level | None, bare: bool = False) -> str:
    if level is None:
        return _DASH
    return measure.number(level.value) + measure.sign if bare else measure.level(level)


def write_compared(compared: Compared, path: Path) -> None:
    """Write the page."""
    write_whole(path, render(compared).encode())


def render(compared: Compared) -> str:
    """The page. Everything that comes from data is escaped."""
    pictures = pictures_of(
        lambda width: {"levels": levels_figure(compared, width), "pairs": pairs_figure(compared, width)}
    )
    title = " and ".join([", ".join(one.name for one in compared.contenders[:-1]), compared.contenders[-1].name])
    return fill(
        _TEMPLATE,
        title=title,
        measure=compared.measure.title,
        confidence=f"{CONFIDENCE:.0%}",
        levels=_levels_table(compared),
        pairs=_pairs_table(compared),
        notes=compared.notes,
        pictures=pictures,
    )


def _levels_table(compared: Compared) -> Table:
    measure, other = compared.measure, _other(compared.measure)
    rows: list[list[Cell | str]] = []
    for one, level, beside in zip(compared.contenders, compared.levels, compared.others, strict=True):
        cells = [_cell(measure, level), _cell(other, beside)]
        rows.append([Cell(one.name, one.about), *cells, whole(one.tokens), str(max(1, len(one.ends)))])
    return Table(["", f"held-out {measure.title}", other.title, "tokens", "seeds"], rows)


def _cell(measure: Measure, level: Level | None) -> Cell:
    if level is None:
        return Cell(_DASH)
    return Cell(measure.number(level.value) + measure.sign, measure.bounds(level.low, level.high))


def _pairs_table(compared: Compared) -> Table:
    measure = compared.measure
    unit = measure.unit and f" {measure.unit}"
    rows: list[list[Cell | str]] = []
    for pair in compared.pairs:
        gap, name = pair.comparison, Cell(pair.first.name, f"minus {pair.second.name}")
        if gap is None:
            rows.append([name, Cell("not compared", pair.said), *[_DASH] * 4])
            continue
        difference = Cell(measure.gap(gap.difference) + unit, measure.bounds(gap.low, gap.high))
        p = p_value(pair.p_holm).removeprefix("p = ").removeprefix("p ")
        told = f"the first is {verdict}" if (verdict := verdict_of(pair, measure)) in ("better", "worse") else verdict
        rows.append([name, told, difference, p, f"{pair.chance:.0%}", whole(pair.n)])
    heads = ["first minus second", "what may be said", f"difference in {measure.title}", "adjusted p"]
    return Table([*heads, "first is better", "examples"], rows, texts=2)


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
