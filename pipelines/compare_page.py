"""What `phasetune compare` shows: a table on the screen, and the same as a page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from components.reporting.measures import ACCURACY, LOSS, Level, Measure, p_value
from components.reporting.page_tables import Cell, Table, whole
from components.reporting.report import fill, pictures_of, write_whole
from pipelines.compare import CONFIDENCE, Compared, Contender, Pair
from pipelines.compare_page_plots import figures_of
from pipelines.sweep_page import SortCell, digest_of, sort_script

if TYPE_CHECKING:
    from rich.console import Console

_TEMPLATE = "compare.html.jinja"
_DASH = "\N{EN DASH}"
_MOST_PAIRS = 15
"""Pairs on the screen; the page has all."""


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
    console.print(sentence(compared), highlight=False)
    for pair in compared.pairs[:_MOST_PAIRS]:
        console.print(f"{pair.first.name} minus {pair.second.name}: {said(pair, measure)}", highlight=False)
    if len(compared.pairs) > _MOST_PAIRS:
        console.print(f"and {len(compared.pairs) - _MOST_PAIRS} pairs more on the page", highlight=False)
    for note in compared.notes:
        console.print(note, style="dim", highlight=False)


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


def leading(compared: Compared) -> int | None:
    """The place of the best result, from 0; the first of equal ones, None where there is none."""
    sign = 1 if compared.measure.higher_is_better else -1
    places = [place for place, level in enumerate(compared.levels) if level is not None]
    return max(places, key=lambda place: sign * _value(compared.levels[place]), default=None)


def _value(level: Level | None) -> float:
    return float("nan") if level is None else level.value


def sentence(compared: Compared) -> str:
    """The verdict in one sentence: who is best, if that can be told, and how far it is from the closest."""
    place, measure = leading(compared), compared.measure
    if place is None:
        return "Nothing has a result."
    best, level = compared.contenders[place], compared.levels[place]
    name = f"{best.name} with {measure.title} {_written(measure, level)}"
    pairs = [pair for pair in (_seen_from(best, pair) for pair in compared.pairs) if pair is not None]
    measured = [pair for pair in pairs if pair.comparison is not None]
    if not measured:
        return f"No verdict: {name} has the best result, but can be compared with none of the others."
    unlike = [pair for pair in measured if verdict_of(pair, measure) != "the same model"]
    if not unlike:
        return f"No winner: {name} and what it was compared with are the same model."
    open_ = [pair for pair in unlike if verdict_of(pair, measure) != "better"]
    closest = min(open_ or unlike, key=_distance)
    against = f"{_gap_in_words(closest, measure)}, against {'the closest, ' if len(unlike) > 1 else ''}"
    against += closest.second.name
    left = len(pairs) - len(measured)
    rest = f"; {left} of the others cannot be compared with it" if left else ""
    if open_:
        return f"No winner: {name} leads, but is not told apart: {against}{rest}."
    return f"Winner: {name}; {against}{rest}."


def _distance(pair: Pair) -> float:
    return float("inf") if pair.comparison is None else abs(pair.comparison.difference)


def _gap_in_words(pair: Pair, measure: Measure) -> str:
    gap = pair.comparison
    if gap is None:
        return pair.said
    return f"{measure.difference(gap.difference, gap.low, gap.high)}, {p_value(pair.p_holm)}"


def _seen_from(best: Contender, pair: Pair) -> Pair | None:
    """A pair with this contender first; None where it is in neither place."""
    if pair.first is best:
        return pair
    if pair.second is not best:
        return None
    gap = pair.comparison
    turned = None if gap is None else replace(gap, difference=-gap.difference, low=-gap.high, high=-gap.low)
    return replace(pair, first=pair.second, second=pair.first, comparison=turned, chance=1 - pair.chance)


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
    from markupsafe import Markup

    pictures = pictures_of(lambda width: figures_of(compared, leading(compared), width))
    script = sort_script()
    title = " and ".join([", ".join(one.name for one in compared.contenders[:-1]), compared.contenders[-1].name])
    return fill(
        _TEMPLATE,
        title=title,
        measure=compared.measure.title,
        confidence=f"{CONFIDENCE:.0%}",
        sentence=sentence(compared),
        columns=_columns(compared),
        rows=_rows(compared),
        pairs=_pairs_table(compared),
        notes=compared.notes,
        pictures=pictures,
        script=Markup(script),  # noqa: S704  # a file of ours, in which nothing is filled in
        digest=digest_of(script),
    )


def _columns(compared: Compared) -> list[tuple[str, bool]]:
    """The heads of the table of contenders, and whether each is of a column of text."""
    measure, other = compared.measure, _other(compared.measure)
    numbers = [f"held-out {measure.title}", other.title, "phases", "tokens", "seconds", "seeds"]
    return [("no.", False), ("name", True), *((name, False) for name in numbers)]


def _rows(compared: Compared) -> list[list[SortCell]]:
    measure, other = compared.measure, _other(compared.measure)
    rows = []
    known = zip(compared.contenders, compared.levels, compared.others, strict=True)
    for number, (one, level, beside) in enumerate(known, 1):
        cells = [_sortable(number), SortCell(one.name, one.about), _cell(measure, level), _cell(other, beside)]
        cells += [_sortable(one.phases or None), _sortable(one.tokens)]
        cells.append(SortCell(_DASH) if one.seconds is None else SortCell(f"{one.seconds:.1f}", "", repr(one.seconds)))
        rows.append([*cells, _sortable(max(1, len(one.ends)))])
    return rows


def _sortable(value: float | None) -> SortCell:
    return SortCell(_DASH) if value is None else SortCell(whole(value), "", repr(value))


def _cell(measure: Measure, level: Level | None) -> SortCell:
    if level is None:
        return SortCell(_DASH)
    return SortCell(
        measure.number(level.value) + measure.sign, measure.bounds(level.low, level.high), repr(level.value)
    )


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
