"""What the report's template shows: every number written out, every section a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import yaml

from components.common.errors import redact
from components.common.records import StepRecord
from components.reporting import page_tables as tables
from components.reporting.answers import Sample, draw_samples
from components.reporting.comparisons import Comparisons
from components.reporting.measures import LOSS, MEASURES, duration
from components.reporting.page_shown import shown_tables
from components.reporting.page_tables import whole
from components.reporting.results import Results


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
    levels: list[tuple[str, bool, tables.Table]] = field(default_factory=list)
    differences: tables.Table | None = None
    parts: tables.Table | None = None
    changes: tables.Table | None = None
    own_data: tables.Table | None = None
    shown: list[tuple[str, str, tables.Table]] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    compute: tables.Table | None = None
    slices: tables.Table | None = None
    tiers: tables.Table | None = None
    correlations: list[str] = field(default_factory=list)
    ledger: dict[str, int] = field(default_factory=dict)
    sources: tables.Table | None = None
    rejected_file: str = ""
    samples: dict[int, list[Sample]] = field(default_factory=dict)
    plan: tables.Table | None = None
    timing: tables.Table | None = None
    versions: tables.Table | None = None
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
        (measure.title, measure is found.measure, tables.levels_table(results, found, measure))
        for measure in MEASURES
        if measure.metric() in results.metric_names()
    ]
    page.differences, page.parts = tables.differences_table(results, found), tables.parts_table(results, found)
    page.changes, page.own_data = tables.changes_table(results, found), tables.own_data_table(results)
    page.shown = shown_tables(results)
    page.methods = list(dict.fromkeys(phase.plan.method for phase in results.main.first))
    page.compute, page.slices = tables.compute_table(results), tables.slices_table(results, found)
    page.plan, page.timing, page.versions = (
        tables.plan_table(results),
        tables.timing_table(records),
        tables.versions_table(results),
    )
    if results.splits:
        split = next(iter(results.splits.values()))
        page.tiers, page.correlations = tables.tiers_table(split), _correlations(results, split)
    if results.prepare:
        page.ledger, page.sources = dict(results.prepare.info["ledger"]), tables.sources_table(results.prepare)
        page.rejected_file = str(results.prepare.info.get("rejected_file") or "")
    last = results.main.first[-1].evaluation
    page.samples = draw_samples(last, results.spec.data_seed) if last else {}
    spec = results.spec.model_dump(mode="json")
    page.spec = redact(yaml.safe_dump(spec, sort_keys=False, allow_unicode=True))
    return page


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
        model = f" by {redact(str(score['model']))}" if score.get("model") else ""
        cut = f"; {whole(score['truncated'])} were cut" if score.get("truncated") else ""
        lines.append(f"Scored with {score['method']}{model}: {whole(score['examples'])} examples{cut}.")
    return lines
