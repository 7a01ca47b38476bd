"""The table on the screen at the end of a run, from summary.json alone. It fits 100 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from components.reporting.measures import MEASURES, Measure, parts_of
from components.reporting.results import curriculum_title

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

_MOST_TIERS = 3
_NAME_WIDTH = 21


def results_table(summary: Mapping[str, Any]) -> Table:
    """Results of the base model, of the main run's phases and of every control.

    Phases show their own tokens, steps and seconds; a control shows those of all its phases. With several seeds the
    main run is one row too, and a row's metrics are means, its counts those of one seed, its seconds those of all.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    measure = next(each for each in MEASURES if each.metric() == summary["metric"])
    tiers = _tiers(summary, measure)
    title = Text(f"{summary['name']}: held-out {measure.title}", style="bold")
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True, max_width=_NAME_WIDTH, overflow="ellipsis")
    for tier in tiers:
        table.add_column(Text(tier.replace("_", " ")), justify="right", no_wrap=True)
    table.add_column(Text(f"all [{summary['confidence']:.0%}]"), justify="right", no_wrap=True)
    for head in ("tokens", "steps", "seconds", "reused"):
        table.add_column(head, justify="right", no_wrap=True)
    for name, metrics, phases in _rows(summary):
        table.add_row(Text(name), *_levels(measure, metrics, tiers), *_counts(phases, len(summary["seeds"])))
    return table


def _tiers(summary: Mapping[str, Any], measure: Measure) -> list[str]:
    every = [summary["base"]["metrics"], summary["metrics"], *(phase["metrics"] for phase in summary["phases"])]
    tiers, _ = parts_of({name for metrics in every for name in metrics}, measure)
    return tiers if len(tiers) <= _MOST_TIERS else []


def _rows(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], Sequence[Mapping[str, Any]]]]:
    rows: list[tuple[str, Mapping[str, Any], Sequence[Mapping[str, Any]]]] = [("base", summary["base"]["metrics"], [])]
    several = len(summary["seeds"]) > 1
    if several:
        rows.append((f"main, {len(summary['seeds'])} seeds", summary["metrics"], summary["phases"]))
    else:
        rows += [(f"main: {phase['name']}", phase["metrics"], [phase]) for phase in summary["phases"]]
    rows += [(curriculum_title(each["name"]), each["metrics"], each["phases"]) for each in summary["controls"]]
    return rows


def _levels(measure: Measure, metrics: Mapping[str, Any], tiers: Sequence[str]) -> list[str | Text]:
    from rich.text import Text

    cells: list[str | Text] = []
    for part in [*tiers, ""]:
        level = measure.read(metrics, part)
        if level is None:
            cells.append("-")
            continue
        text = measure.number(level.value) + measure.sign if part else measure.level(level)
        cells.append(Text(text))
    return cells


def _counts(phases: Sequence[Mapping[str, Any]], seeds: int) -> list[str]:
    if not phases:
        return [""] * 4
    tokens, steps, seconds = (sum(phase[name] for phase in phases) for name in ("tokens", "steps", "seconds"))
    reused = sum(bool(phase["reused"]) for phase in phases)
    said = ("yes" if reused else "no") if len(phases) == 1 else f"{reused}/{len(phases)}"
    return [_short(tokens / seeds), f"{round(steps / seeds):,}", f"{seconds:.1f}", said]


def _short(number: float) -> str:
    return f"{round(number):,}" if number < 1e7 else f"{number / 1e6:,.1f} M"
