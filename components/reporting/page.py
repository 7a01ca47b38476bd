"""What the report's template shows: every number written out, every section a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from components.common.records import StepRecord
from components.reporting.answers import Sample, draw_samples
from components.reporting.comparisons import Comparisons
from components.reporting.measures import LOSS, MEASURES, Level, Measure, duration, p_value, part_title, parts_of
from components.reporting.plot_style import BASE_COLOUR, colours
from components.reporting.results import CurriculumResult, Results
from components.reporting.summary import without_password
from components.reporting.verdict import compute_note, tested

_COUNTS = ("examples", "truncated", "response_tokens", "tokens", "steps")


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


@dataclass(frozen=True, slots=True)
class Card:
    """A key figure."""

    label: str
    value: str
    note: str = ""


@dataclass(slots=True)
class Page:
    """All that the template shows, beside the plots."""

    name: str
    run: str
    started: str
    verdict: str
    lead: str
    sentences: list[str]
    confidence: str
    seeds: list[int]
    missing: list[str]
    cards: list[Card] = field(default_factory=list)
    levels: list[tuple[str, bool, Table]] = field(default_factory=list)
    differences: Table | None = None
    parts: Table | None = None
    compute: Table | None = None
    slices: Table | None = None
    tiers: Table | None = None
    correlations: list[str] = field(default_factory=list)
    ledger: dict[str, int] = field(default_factory=dict)
    sources: Table | None = None
    rejected_file: str = ""
    samples: dict[int, list[Sample]] = field(default_factory=dict)
    plan: Table | None = None
    timing: Table | None = None
    versions: Table | None = None
    spec: str = ""


def build_page(results: Results, found: Comparisons, sentences: list[str], report: StepRecord) -> Page:
    """Write out everything that the page shows."""
    info, records = results.info, [*results.records, report]
    page = Page(
        name=info.name,
        run=info.run,
        started=info.started[:16].replace("T", " ") + " UTC",
        verdict=" ".join(sentences),
        lead=sentences[0],
        sentences=sentences[1:],
        confidence=f"{results.spec.evaluation.confidence:.0%}",
        seeds=results.seeds,
        missing=[*results.missing, *found.lost],
    )
    page.cards = _cards(results, found, records)
    page.levels = [
        (measure.title, measure is found.measure, _levels(results, found, measure))
        for measure in MEASURES
        if measure.metric() in results.metric_names()
    ]
    page.differences, page.parts = _differences(results, found), _parts(results, found)
    page.compute, page.slices = _compute(results), _slices(results, found)
    page.plan, page.timing, page.versions = _plan(results), _timing(records), _versions(results)
    if results.splits:
        split = next(iter(results.splits.values()))
        page.tiers, page.correlations = _tiers(split), _correlations(results, split)
    if results.prepare:
        page.ledger, page.sources = dict(results.prepare.info["ledger"]), _sources(results.prepare)
        page.rejected_file = str(results.prepare.info.get("rejected_file") or "")
    last = results.main.first[-1].evaluation
    page.samples = draw_samples(last, results.spec.data_seed) if last else {}
    spec = results.spec.model_dump(mode="json")
    page.spec = without_password(yaml.safe_dump(spec, sort_keys=False, allow_unicode=True))
    return page


def whole(number: float | None) -> str:
    """`12,345`; a dash where it is not known."""
    return "\N{EN DASH}" if number is None else f"{round(number):,}"


def _signed(number: float | None) -> str:
    return "\N{EN DASH}" if number is None else f"{round(number):+,}" if round(number) else "0"


def _level(measure: Measure, level: Level | None) -> Cell:
    if level is None:
        return Cell("\N{EN DASH}")
    return Cell(measure.number(level.value) + measure.sign, measure.bounds(level.low, level.high))


def _cards(results: Results, found: Comparisons, records: Sequence[StepRecord]) -> list[Card]:
    measure = found.measure
    unit = " nats per token" if measure is LOSS else ""
    cards = []
    if found.main:
        value = measure.number(found.main.value) + measure.sign
        cards.append(Card(f"held-out {measure.title}", value, measure.bounds(found.main.low, found.main.high) + unit))
    gaps = [("over the base model", found.over_base)]
    gaps += [(f"against {against.control.title}", against.comparison) for against in found.controls[:2]]
    for label, gap in gaps:
        if gap:
            value = f"{measure.gap(gap.difference)}{measure.unit and ' ' + measure.unit}"
            cards.append(Card(label, value, measure.bounds(gap.low, gap.high) + unit))
    if results.prepare:
        ledger = results.prepare.info["ledger"]
        training = ledger["examples"] - ledger["held_out"]
        cards.append(Card("training examples", whole(training), f"{whole(ledger['held_out'])} held out"))
    cards.append(
        Card(
            "tokens in the main run", whole(results.main.total("tokens")), f"{whole(results.main.total('steps'))} steps"
        )
    )
    seconds = sum(record.seconds for record in records)
    overhead = sum(record.overhead_seconds for record in records) / max(seconds, 1e-9)
    reused = sum(record.reused for record in records)
    cards.append(Card("time in all steps", duration(seconds), f"{overhead:.0%} of it overhead"))
    cards.append(Card("taken from the store", f"{reused} of {len(records) - 1}", "steps"))
    return cards


def _name(results: Results, curriculum: CurriculumResult, text: str = "") -> Cell:
    palette = colours([each.name for each in results.curricula])
    return Cell(text or curriculum.title, "", palette[curriculum.name])


def _levels(results: Results, found: Comparisons, measure: Measure) -> Table:
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


def _differences(results: Results, found: Comparisons) -> Table | None:
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


def _parts(results: Results, found: Comparisons) -> Table | None:
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


def _compute(results: Results) -> Table:
    rows: list[list[Cell | str]] = []
    for curriculum in results.curricula:
        totals = {
            name: curriculum.total(name) for name in ("tokens", "response_tokens", "examples", "steps", "truncated")
        }
        gaps = []
        for name in ("tokens", "steps"):
            ours, theirs = results.main.total(name), totals[name]
            gaps.append(None if ours is None or theirs is None else theirs - ours)
        beside = ["", ""] if curriculum is results.main else [_signed(gap) for gap in gaps]
        counts = [whole(totals[name]) for name in ("examples", "tokens", "response_tokens", "steps")]
        truncated = whole(totals["truncated"])
        rows.append([_name(results, curriculum), *counts, *beside, truncated])
    heads = [
        "",
        "examples seen",
        "tokens",
        "of the response",
        "steps",
        "tokens beside main",
        "steps beside main",
        "cut",
    ]
    return Table(heads, rows)


def _slices(results: Results, found: Comparisons) -> Table | None:
    rows: list[list[Cell | str]] = []
    for measure in MEASURES:
        for part in parts_of(results.metric_names(), measure)[1]:
            ends = [found.levels.get((curriculum.name, measure.metric(part))) for curriculum in results.curricula]
            cells = [_level(measure, level) for level in [measure.read(results.base_metrics, part), *ends]]
            rows.append([Cell(part_title(part), measure.title), *cells])
    heads = ["slice", "base", *(curriculum.title for curriculum in results.curricula)]
    return Table(heads, rows) if rows else None


def _tiers(split: StepRecord) -> Table:
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


def _correlations(results: Results, split: StepRecord) -> list[str]:
    lines = []
    length = split.info.get("spearman_difficulty_length")
    given = split.info.get("spearman_difficulty_given")
    if length is not None:
        lines.append(f"Rank correlation (Spearman) of difficulty with the response's length: {length:+.2f}.")
    if given is not None:
        lines.append(f"Rank correlation of the scored difficulty with the difficulty given in the data: {given:+.2f}.")
    if results.score:
        score = results.score.info
        model = f" by {without_password(str(score['model']))}" if score.get("model") else ""
        cut = f"; {whole(score['truncated'])} were cut" if score.get("truncated") else ""
        lines.append(f"Scored with {score['method']}{model}: {whole(score['examples'])} examples{cut}.")
    return lines


def _sources(prepare: StepRecord) -> Table:
    rows: list[list[Cell | str]] = [
        [
            without_password(str(source["path"])),
            Cell(str(source["format"]), str(source["why"])),
            whole(source["rows"]),
            whole(source["examples"]),
            whole(source["rejected"]),
        ]
        for source in prepare.info["sources"]
    ]
    return Table(["source", "format, and why", "rows", "examples", "rejected"], rows, texts=2)


def _plan(results: Results) -> Table:
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
            reused = "reused" if train.reused else "trained"
            keys = [str(train.info["parent_key"])[:8], train.key[:8]]
            rows.append([*start, reused, *keys, *counts, f"{train.seconds:.1f}"])
    heads = ["curriculum", "phase", "method", "state", "from", "key", "examples", "tokens", "steps", "seconds"]
    return Table(heads, rows, texts=6)


def _timing(records: Sequence[StepRecord]) -> Table:
    rows: list[list[Cell | str]] = []
    for record in records:
        work = max(0.0, record.seconds - record.overhead_seconds)
        times = [f"{seconds:.1f}" for seconds in (record.seconds, work, record.overhead_seconds)]
        rows.append([record.step, "reused" if record.reused else "", *times])
    seconds, overhead = (sum(getattr(record, name) for record in records) for name in ("seconds", "overhead_seconds"))
    rows.append(["all steps", "", f"{seconds:.1f}", f"{seconds - overhead:.1f}", f"{overhead:.1f}"])
    return Table(["step", "", "seconds", "work", "overhead"], rows, texts=2)


def _versions(results: Results) -> Table:
    info = results.info
    facts: dict[str, Any] = {"run": info.run, "spec digest": info.spec_digest}
    facts |= {name: value for name, value in info.machine.items() if value not in (None, [], "")}
    facts |= dict(sorted(info.versions.items()))
    if info.mlflow.get("uri"):
        facts |= {"MLflow": without_password(info.mlflow["uri"]), "MLflow run": info.mlflow["run_id"]}
    rows = [[name.replace("_", " "), _fact(value)] for name, value in facts.items()]
    return Table(["", ""], rows, texts=2)


def _fact(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
