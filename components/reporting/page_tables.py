"""The report's tables: every number written out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from components.common.errors import redact
from components.common.records import StepRecord
from components.reporting.comparisons import Comparisons
from components.reporting.measures import MEASURES, Level, Measure, p_value, part_title, parts_of
from components.reporting.plot_style import BASE_COLOUR, colours
from components.reporting.results import CurriculumResult, Results
from components.reporting.verdict import compute_note, tested

_COUNTS = ("examples", "truncated", "tokens", "response_tokens", "steps")


@dataclass(frozen=True, slots=True)
class Cell:
    """A table's cell: a text, a softer second line, and the colour of what it is about."""

    text: str
    note: str = ""
    colour: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the page.

    Attributes:
        columns: The heads.
        rows: The cells; a bare string is a cell without more.
        texts: How many of the first columns are text; the rest are numbers and stand to the right.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str]]
    texts: int = 1


def whole(number: float | None) -> str:
    """`12,345`; a dash where it is not known."""
    return "\N{EN DASH}" if number is None else f"{round(number):,}"


def _signed(number: float | None) -> str:
    return "\N{EN DASH}" if number is None else f"{round(number):+,}" if round(number) else "0"


def _level(measure: Measure, level: Level | None) -> Cell:
    if level is None:
        return Cell("\N{EN DASH}")
    return Cell(measure.number(level.value) + measure.sign, measure.bounds(level.low, level.high))


def _name(results: Results, curriculum: CurriculumResult, text: str = "") -> Cell:
    palette = colours([each.name for each in results.curricula])
    return Cell(text or curriculum.title, "", palette[curriculum.name])


def levels_table(results: Results, found: Comparisons, measure: Measure) -> Table:
    """After every phase and on every tier; of several seeds the ends alone, as means."""
    tiers, _ = parts_of(results.metric_names(), measure)
    parts = ["", *tiers]
    rows: list[list[Cell | str]] = [
        [Cell("base", "", BASE_COLOUR), *(_level(measure, measure.read(results.base_metrics, part)) for part in parts)]
    ]
    for phase in results.main.first[:-1] if len(results.seeds) == 1 else ():
        levels = [_level(measure, measure.read(phase.metrics, part)) for part in parts]
        rows.append([_name(results, results.main, f"main, after {phase.plan.name}"), *levels])
    for curriculum in results.curricula:
        name = "main, after " + curriculum.first[-1].plan.name if curriculum is results.main else curriculum.title
        ends = [_level(measure, found.levels.get((curriculum.name, measure.metric(part)))) for part in parts]
        rows.append([_name(results, curriculum, name), *ends])
    return Table(["", "all held-out", *map(part_title, tiers)], rows)


def differences_table(results: Results, found: Comparisons) -> Table | None:
    """Main minus every control, with what may be said of it."""
    measure = found.measure
    adjusted = "adjusted p" if len(tested(found)) > 1 else "p"
    rows: list[list[Cell | str]] = []
    for against in found.controls:
        gap = against.comparison
        difference, p, said = Cell("\N{EN DASH}"), "\N{EN DASH}", "not compared"
        if gap:
            unit = measure.unit and f" {measure.unit}"
            difference = Cell(measure.gap(gap.difference) + unit, measure.bounds(gap.low, gap.high))
            p = p_value(against.p_holm).removeprefix("p = ").removeprefix("p ")
            said = f"main is {against.outcome}" if against.outcome in ("better", "worse") else str(against.outcome)
        name = _name(results, against.control)
        name = Cell(name.text, compute_note(results, against), name.colour)
        said = "the same training" if against.same_training else said
        rows.append([name, said, _level(measure, against.level), difference, p, whole(against.n)])
    heads = ["control", "verdict", f"its {measure.title}", "main minus control", adjusted, "examples"]
    return Table(heads, rows, texts=2) if rows else None


def parts_table(results: Results, found: Comparisons) -> Table | None:
    """Main minus every control by tier and slice."""
    measure = found.measure
    tiers, slices = parts_of(results.metric_names(), measure)
    rows: list[list[Cell | str]] = []
    for part in [*tiers, *slices]:
        cells: list[Cell | str] = [part_title(part)]
        for control in results.controls:
            gap = found.parts.get((control.name, part))
            text = Cell(measure.gap(gap.difference), measure.bounds(gap.low, gap.high)) if gap else Cell("\N{EN DASH}")
            cells.append(text)
        rows.append(cells)
    if not rows or not found.parts:
        return None
    return Table(["main minus", *(control.title for control in results.controls)], rows)


def changes_table(results: Results, found: Comparisons) -> Table | None:
    """What every phase of the main run changed, on everything and on each slice."""
    measure = found.measure
    unit = measure.unit and f" {measure.unit}"
    rows: list[list[Cell | str]] = []
    for change in found.changes:
        gap = change.comparison
        if gap is None:
            continue
        part = part_title(change.part) if change.part else "all held-out"
        difference = Cell(measure.gap(gap.difference) + unit, measure.bounds(gap.low, gap.high))
        p = "" if change.part else p_value(gap.p).removeprefix("p = ").removeprefix("p ")
        levels = [_level(measure, level) for level in (change.before, change.after)]
        name = f"{change.plan.index}. {change.plan.name}"
        rows.append([_name(results, results.main, name), change.plan.method, part, *levels, difference, p])
        rows[-1].append(whole(change.n))
    heads = ["phase", "method", "on", f"{measure.title} before", "after", "difference", "p", "examples"]
    return Table(heads, rows, texts=3) if rows else None


def own_data_table(results: Results) -> Table | None:
    """The data that phases have of their own, and where every row of them went."""
    rows: list[list[Cell | str]] = []
    for record in results.prepared.values():
        ledger, sources = record.info["ledger"], record.info["sources"]
        paths = ", ".join(redact(str(source["path"])) for source in sources)
        formats = "; ".join(dict.fromkeys(f"{source['format']}: {source['why']}" for source in sources))
        training = ledger["examples"] - ledger["held_out"]
        left = ledger["examples"] + ledger["duplicates"] + ledger["rejected"] + ledger["unsampled"]
        closes = "\N{CHECK MARK}" if ledger["rows_in"] + ledger["expanded"] == left else "\N{BALLOT X}"
        counts = [ledger[name] for name in ("rows_in", "expanded")]
        counts += [training, *(ledger[name] for name in ("held_out", "duplicates", "rejected", "unsampled"))]
        name = Cell(str(record.info["name"]), str(record.info["method"]))
        rows.append([name, Cell(paths, formats), *map(whole, counts), closes])
    heads = ["phase", "sources", "rows read", "expanded", "for training", "left out", "duplicates", "rejected"]
    return Table([*heads, "unsampled", "closes"], rows, texts=2) if rows else None


def compute_table(results: Results) -> Table:
    """Whether the curricula saw as much."""
    rows: list[list[Cell | str]] = []
    for curriculum in results.curricula:
        totals = {name: curriculum.total(name) for name in _COUNTS}
        gaps: list[float | None] = []
        for name in ("tokens", "steps"):
            ours, theirs = results.main.total(name), totals[name]
            gaps.append(None if ours is None or theirs is None else theirs - ours)
        beside = ["", ""] if curriculum is results.main else [_signed(gap) for gap in gaps]
        rows.append([_name(results, curriculum), *(whole(totals[name]) for name in _COUNTS), *beside])
    heads = ["", "examples seen", "truncated", "tokens", "of the response", "steps", "tokens beside main"]
    heads.append("steps beside main")
    return Table(heads, rows)


def slices_table(results: Results, found: Comparisons) -> Table | None:
    """Results on the slices: tests of their own."""
    rows: list[list[Cell | str]] = []
    for measure in MEASURES:
        for part in parts_of(results.metric_names(), measure)[1]:
            ends = [found.levels.get((curriculum.name, measure.metric(part))) for curriculum in results.curricula]
            cells = [_level(measure, level) for level in [measure.read(results.base_metrics, part), *ends]]
            rows.append([Cell(part_title(part), measure.title), *cells])
    heads = ["slice", "base", *(curriculum.title for curriculum in results.curricula)]
    return Table(heads, rows) if rows else None


def tiers_table(split: StepRecord) -> Table:
    """Counts and quartiles of every tier."""

    def quartiles(values: dict[str, float], decimals: int) -> list[Cell | str]:
        middle = f"{values['median']:.{decimals}f}"
        span = f"{values['q1']:.{decimals}f} \N{EN DASH} {values['q3']:.{decimals}f}"
        ends = f"{values['min']:.{decimals}f} \N{EN DASH} {values['max']:.{decimals}f}"
        return [Cell(middle, span), ends]

    rows: list[list[Cell | str]] = [
        [
            f"tier {tier['tier']}",
            whole(tier["examples"]),
            whole(tier["held_out"]),
            whole(tier["tokens"]),
            whole(tier["response_tokens"]),
            *quartiles(tier["difficulty"], 2),
            *quartiles(tier["length"], 0),
        ]
        for tier in split.info["tiers"]
    ]
    heads = ["", "examples", "held out", "tokens", "of the response"]
    return Table([*heads, "difficulty (median, quartiles)", "range", "length (median, quartiles)", "range"], rows)


def sources_table(prepare: StepRecord) -> Table:
    """Every source, its format, and why that was chosen."""
    rows: list[list[Cell | str]] = [
        [
            redact(str(source["path"])),
            Cell(str(source["format"]), str(source["why"])),
            whole(source["rows"]),
            whole(source["examples"]),
            whole(source["rejected"]),
        ]
        for source in prepare.info["sources"]
    ]
    return Table(["source", "format, and why", "rows", "examples", "rejected"], rows, texts=2)


def plan_table(results: Results) -> Table:
    """Every phase of every curriculum."""
    several = len(results.seeds) > 1
    rows: list[list[Cell | str]] = []
    for curriculum in results.curricula:
        for phase in curriculum.all_phases():
            title = _name(results, curriculum, curriculum.title + (f", seed {phase.seed}" if several else ""))
            start: list[Cell | str] = [title, f"{phase.plan.index}. {phase.plan.name}", phase.plan.method]
            train = phase.train
            if train is None:
                rows.append([*start, "missing", *["\N{EN DASH}"] * 6])
                continue
            counts = [whole(train.info[name]) for name in ("examples", "tokens", "steps")]
            reused = Cell("reused" if train.reused else "trained", _eventful(train.info))
            keys = [str(train.info["parent_key"])[:8], train.key[:8]]
            rows.append([*start, reused, *keys, *counts, f"{train.seconds:.1f}"])
    heads = ["curriculum", "phase", "method", "state", "from", "key", "examples", "tokens", "steps", "seconds"]
    return Table(heads, rows, texts=6)


def _eventful(info: dict[str, Any]) -> str:
    """What happened to a phase beside its training: the checkpoint that it left, rollbacks, a resumption."""
    said = []
    if info.get("best"):
        said.append(f"best at step {info['best']['step']:.0f}")
    if info.get("rollbacks"):
        said.append(f"rolled back {info['rollbacks']} \N{MULTIPLICATION SIGN}")
    if info.get("resumed_at"):
        said.append(f"resumed at step {info['resumed_at']}")
    return ", ".join(said)


def timing_table(records: Sequence[StepRecord]) -> Table:
    """The time of every step."""
    rows: list[list[Cell | str]] = []
    for record in records:
        work = max(0.0, record.seconds - record.overhead_seconds)
        times = [f"{seconds:.1f}" for seconds in (record.seconds, work, record.overhead_seconds)]
        rows.append([record.step, "reused" if record.reused else "", *times])
    seconds, overhead = (sum(getattr(record, name) for record in records) for name in ("seconds", "overhead_seconds"))
    rows.append(["all steps", "", f"{seconds:.1f}", f"{seconds - overhead:.1f}", f"{overhead:.1f}"])
    return Table(["step", "", "seconds", "work", "overhead"], rows, texts=2)


def versions_table(results: Results) -> Table:
    """Versions and machine."""
    info = results.info
    facts: dict[str, Any] = {"run": info.run, "spec digest": info.spec_digest}
    facts |= {name: value for name, value in info.machine.items() if value not in (None, [], "")}
    facts |= dict(sorted(info.versions.items()))
    if info.mlflow.get("uri"):
        facts |= {"MLflow": redact(info.mlflow["uri"]), "MLflow run": info.mlflow["run_id"]}
    rows = [[name.replace("_", " "), _fact(value)] for name, value in facts.items()]
    return Table(["", ""], rows, texts=2)


def _fact(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
