"""What every phase of the main run changed: its result beside that of the phase before, on the same examples."""

from __future__ import annotations

from dataclasses import dataclass

from components.common.curriculum import PhasePlan
from components.common.paired import Comparison
from components.common.records import StepRecord
from components.reporting.answers import Answers
from components.reporting.measures import Level, Measure
from components.reporting.pairing import Book, all_or_none, difference, over_seeds
from components.reporting.results import Results


@dataclass(frozen=True, slots=True)
class Change:
    """One phase beside the one before it, or the base model, on one part of the held-out examples.

    Attributes:
        plan: The phase.
        part: All ordinary held-out examples (``""``), or a slice.
        before: The result before the phase.
        after: The result after it.
        comparison: After minus before, paired; None where one of them is missing. Of a slice, its p-value is not
            worked out.
        n: Examples that were compared.
        seeds: Seeds that have both.
    """

    plan: PhasePlan
    part: str
    before: Level | None
    after: Level | None
    comparison: Comparison | None
    n: int
    seeds: int


def changes_of(results: Results, book: Book, measure: Measure, parts: list[str]) -> list[Change]:
    """The changes by phase, and of a phase by part."""
    return [_change(results, book, measure, place, part) for place in range(len(results.main.first)) for part in parts]


def _change(results: Results, book: Book, measure: Measure, place: int, part: str) -> Change:
    settings, seed = results.spec.evaluation, results.spec.data_seed
    pairs: list[tuple[StepRecord, StepRecord]] = []
    for phases in results.main.phases.values():
        before = phases[place - 1].evaluation if place else results.base
        after = phases[place].evaluation
        if before is not None and after is not None:
            pairs.append((before, after))
    seconds = all_or_none([book.read(before) for before, _ in pairs])
    firsts = all_or_none([book.read(after) for _, after in pairs])
    comparison, n = difference(firsts, seconds, measure, part, settings, seed)
    return Change(
        plan=results.main.first[place].plan,
        part=part,
        before=_level([before for before, _ in pairs], seconds, measure, part, settings.confidence),
        after=_level([after for _, after in pairs], firsts, measure, part, settings.confidence),
        comparison=comparison,
        n=n,
        seeds=len(pairs),
    )


def _level(
    records: list[StepRecord], sets: list[Answers], measure: Measure, part: str, confidence: float
) -> Level | None:
    if len(sets) > 1:
        return over_seeds(sets, measure, part, confidence)
    return measure.read(records[0].info["metrics"], part) if records else None


def told_apart(results: Results, change: Change) -> bool:
    """Whether a sentence of its own says what a phase changed: one after the tiers, or not SFT on them."""
    plan = change.plan
    tiered = len(results.main.first) - len(results.spec.curriculum.then)
    return not change.part and (plan.index > tiered or plan.method != "sft" or bool(plan.data))
