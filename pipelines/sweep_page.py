"""sweep.html: a sweep's verdict, plots and tables on one page that loads nothing from elsewhere.

It is made of sweep.json alone. Its one script, which sorts the table of trials, is named to the browser by its digest;
any other is refused.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.reporting.measures import duration
from components.reporting.page import Card
from components.reporting.page_tables import Cell, Table, whole
from components.reporting.report import fill, pictures_of, write_whole
from pipelines.sweep_page_importance import importances
from pipelines.sweep_page_plots import Point, figures_of, value_of
from pipelines.sweep_page_tree import Branch, branches
from pipelines.sweep_screen import described
from pipelines.sweep_spec import ObjectiveSpec

PAGE_FILE = "sweep.html"
_TEMPLATE = "sweep.html.jinja"
_SCRIPT = "sort.js.jinja"
_DASH = "\N{EN DASH}"


@dataclass(frozen=True, slots=True)
class SortCell:
    """A cell of the sortable table: what is shown, and the number that it is sorted by (by its text where empty)."""

    text: str
    note: str = ""
    by: str = ""


@dataclass(slots=True)
class Page:
    """All that the template shows, beside the plots."""

    name: str
    verdict: str
    lead: str
    sentences: list[str]
    objective: str
    better: str
    confidence: str
    cards: list[Card]
    columns: list[str]
    texts: list[bool]
    rows: list[list[SortCell]]
    branches: list[Branch]
    left_out: int
    without: int
    unsure: str
    explained: Table | None
    means: Table | None
    candidates: Table | None
    seeds: list[int] = field(default_factory=list)


def write_page(written: Mapping[str, Any], folder: Path) -> Path:
    """Write sweep.html of what sweep.json holds; returns its path."""
    path = folder / PAGE_FILE
    write_whole(path, render(written).encode())
    return path


def render(written: Mapping[str, Any]) -> str:
    """The page. Everything that comes from data is escaped."""
    from markupsafe import Markup

    points, objective = points_of(written), objective_of(written)
    confidence = (written["contest"] or {}).get("confidence", 0.95)
    found = importances(
        [point.row["params"] for point in points],
        [point.row["order"] for point in points],
        [point.value for point in points],
        confidence,
    )
    page = _page(written, points, found, confidence)
    pictures = pictures_of(lambda width: figures_of(written, points, found, objective, width))
    script = sort_script()
    return fill(_TEMPLATE, page=page, pictures=pictures, script=Markup(script), digest=digest_of(script))  # noqa: S704  # a file of ours, in which nothing is filled in


def sort_script() -> str:
    """The page's one script."""
    from components import reporting

    return (Path(reporting.__path__[0]) / _SCRIPT).read_text(encoding="utf-8")


def digest_of(script: str) -> str:
    """How a Content-Security-Policy names a script."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def points_of(written: Mapping[str, Any]) -> list[Point]:
    """The trials with a result, the best first: their first run, so that all are judged alike."""
    objective = objective_of(written)
    seconds = {row["key"]: row["seconds"] for row in written["tree"]}
    points = []
    for row in written["table"]:
        value = value_of(row["metrics"], objective.name)
        if value is None:
            continue
        times = [seconds.get(key) for key in row["keys"]]
        known = [time for time in times if time is not None]
        points.append(
            Point(
                row=row,
                value=value,
                low=value_of(row["metrics"], f"{objective.name}.low"),
                high=value_of(row["metrics"], f"{objective.name}.high"),
                seconds=sum(known) if times and len(known) == len(times) else None,
            )
        )
    return points


def objective_of(written: Mapping[str, Any]) -> ObjectiveSpec:
    """What decides."""
    return ObjectiveSpec.model_validate(written["objective"])


def _page(written: Mapping[str, Any], points: Sequence[Point], found: Any, confidence: float) -> Page:
    objective = objective_of(written)
    lines, left_out = branches(written["tree"])
    columns, texts, rows = _trials(written, points, objective.name)
    return Page(
        name=str(written["name"]),
        verdict=str(written["verdict"]),
        lead=written["sentences"][0],
        sentences=list(written["sentences"][1:]),
        objective=objective.name,
        better="higher" if objective.mode == "max" else "lower",
        confidence=f"{confidence:.0%}",
        cards=_cards(written),
        columns=columns,
        texts=texts,
        rows=rows,
        branches=lines,
        left_out=left_out,
        without=len(written["table"]) - len(points),
        unsure=found if isinstance(found, str) else "",
        explained=None if isinstance(found, str) else _explained(found),
        means=_means(points),
        candidates=_candidates(written),
        seeds=list((written["contest"] or {}).get("seeds", [])),
    )


def _cards(written: Mapping[str, Any]) -> list[Card]:
    asked, distinct = written["phases_requested"], written["phases_distinct"]
    states = [row["state"] for row in written["table"]]
    said = [f"{states.count(state)} {word}" for state, word in _STATES.items() if states.count(state)]
    if written["merged_trials"]:
        said.append(f"{whole(written['merged_trials'])} more meant the same")
    cards = [
        Card("trials", whole(written["trials"]), ", ".join(said)),
        Card("phases asked for", whole(asked), f"{whole(distinct)} distinct"),
        Card("saved by sharing", f"{1 - distinct / asked:.0%}" if asked else _DASH, "of the phases asked for"),
        Card(
            "phases trained", whole(written["phases_trained"]), f"{whole(written['phases_reused'])} found in the store"
        ),
        Card("time", duration(written["seconds"]), f"{duration(written['slot_seconds'])} of work in the slots"),
    ]
    contest = written["contest"]
    if contest:
        chance = max(one["chance"] for one in contest["candidates"] if one["trial"] == contest["leader"])
        cards.append(Card(f"trial {contest['leader']} is the best", _chance(chance), "probability"))
    return cards


_STATES = {"failed": "failed", "stopped": "stopped early", "running": "not finished"}


def _chance(chance: float) -> str:
    return "<1%" if 0 < chance < 0.01 else ">99%" if 0.99 < chance < 1 else f"{chance:.0%}"


def column_names(keys: Sequence[str]) -> list[str]:
    """The last part of each key, or all of it where that would be the same for two."""
    last = [key.split(".")[-1] for key in keys]
    return [key if last.count(short) > 1 else short for key, short in zip(keys, last, strict=True)]


def _trials(
    written: Mapping[str, Any], points: Sequence[Point], metric: str
) -> tuple[list[str], list[bool], list[list[SortCell]]]:
    """The table of all trials: its heads, which of its columns are text, and its rows."""
    keys = list(dict.fromkeys(key for row in written["table"] for key in row["params"]))
    by_number = {point.row["trial"]: point for point in points}
    several = any(len(row["by_seed"]) > 1 for row in written["table"])
    merged = any(row["same_as"] for row in written["table"])
    columns = ["trial", metric, *(["by seed"] if several else []), *column_names(keys), "phases", "tokens", "seconds"]
    columns += ["state", *(["the same as"] if merged else [])]
    rows = []
    for row in written["table"]:
        point = by_number.get(row["trial"])
        cells = [_number(row["trial"], str(row["trial"])), _result(point)]
        if several:
            cells.append(SortCell(", ".join(f"{seed}: {value:.3f}" for seed, value in row["by_seed"].items()) or _DASH))
        cells += [_param(row["params"], key) for key in keys]
        cells.append(_number(len(row["keys"]) or None))
        cells.append(_number(row["tokens"]))
        seconds = None if point is None else point.seconds
        cells.append(SortCell(_DASH) if seconds is None else SortCell(f"{seconds:.1f}", "", repr(seconds)))
        cells.append(SortCell(row["state"], row["reason"]))
        if merged:
            cells.append(SortCell("; ".join(described(params) for params in row["same_as"])))
        rows.append(cells)
    numeric = {"trial", metric, "phases", "tokens", "seconds"}
    texts = [
        column not in numeric and not all(row[place].by or row[place].text == _DASH for row in rows)
        for place, column in enumerate(columns)
    ]
    return columns, texts, rows


def _number(value: int | None, text: str | None = None) -> SortCell:
    return SortCell(_DASH) if value is None else SortCell(text or whole(value), "", str(value))


def _result(point: Point | None) -> SortCell:
    if point is None:
        return SortCell(_DASH)
    note = "" if point.low is None or point.high is None else f"[{point.low:.3f}, {point.high:.3f}]"
    return SortCell(f"{point.value:.3f}", note, repr(point.value))


def _param(params: Mapping[str, Any], key: str) -> SortCell:
    value = params.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return SortCell(f"{value:g}" if isinstance(value, float) else str(value), "", repr(value))
    return SortCell(shown(value))


def shown(value: Any) -> str:
    """A parameter's value: an order as `1-3-2`."""
    if value is None:
        return _DASH
    if isinstance(value, list) and all(isinstance(item, int | str) for item in value):
        return "-".join(map(str, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _explained(found: Sequence[Any]) -> Table:
    rows = [[each.key, Cell(f"{each.share:.0%}", f"[{each.low:.0%}, {each.high:.0%}]")] for each in found]
    return Table(["dimension", "share explained"], rows)


def _means(points: Sequence[Point]) -> Table | None:
    """The mean result by value, for dimensions of few values."""
    rows: list[list[Cell | str]] = []
    for key in dict.fromkeys(key for point in points for key in point.row["params"]):
        by_value: dict[str, list[float]] = {}
        for point in points:
            by_value.setdefault(shown(point.row["params"].get(key)), []).append(point.value)
        if 1 < len(by_value) <= _FEW:
            for value, found in sorted(by_value.items(), key=lambda item: (len(item[0]), item[0])):
                rows.append([key, value, f"{sum(found) / len(found):.3f}", f"{max(found):.3f}", str(len(found))])
    return Table(["dimension", "value", "mean", "best", "trials"], rows, texts=2) if rows else None


_FEW = 12


def _candidates(written: Mapping[str, Any]) -> Table | None:
    contest = written["contest"]
    if not contest:
        return None
    params = {row["trial"]: row["params"] for row in written["table"]}
    rows: list[list[Cell | str]] = []
    for one in sorted(contest["candidates"], key=lambda one: -one["chance"]):
        value = Cell(f"{one['value']:.3f}", f"[{one['low']:.3f}, {one['high']:.3f}]")
        rows.append([str(one["trial"]), described(params[one["trial"]]), value, _chance(one["chance"])])
    return Table(["trial", "", "over the seeds that count", "best"], rows, texts=2)
