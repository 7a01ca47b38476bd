"""The main run beside the base model and the controls: levels, paired differences, and what they allow to say.

Every number comes from `components.common.statistics` and `paired`; this module only chooses what is compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from components.common.paired import Comparison, holm
from components.reporting.answers import Answers
from components.reporting.changes import Change, changes_of
from components.reporting.measures import ACCURACY, LOSS, MEASURES, Level, Measure, parts_of
from components.reporting.pairing import Book, all_or_none, difference, over_seeds
from components.reporting.results import CurriculumResult, PhaseResult, Results

_ENOUGH = 0.5
"""Share of the held-out examples that must be verifiable for accuracy to decide."""
Outcome = Literal["better", "worse", "no difference shown"]


@dataclass(frozen=True, slots=True)
class Against:
    """The main run against one control, after the last phase of both.

    Attributes:
        control: The control.
        level: The control's own result, None where it is missing.
        comparison: Main minus control, None where one of them is missing.
        p_holm: The p-value, adjusted for all of the run's controls (Holm).
        n: Examples that were compared.
        seeds: Seeds that both have.
        outcome: What may be said of the main run; None where nothing was compared.
        tokens_difference: Trained tokens, main minus control; None where a phase is missing.
        steps_difference: Optimizer steps, likewise.
        same_training: The two ended in the same model (the same key), so there is nothing to compare.
    """

    control: CurriculumResult
    level: Level | None
    comparison: Comparison | None
    p_holm: float
    n: int
    seeds: int
    outcome: Outcome | None
    tokens_difference: float | None
    steps_difference: float | None
    same_training: bool


@dataclass(slots=True)
class Comparisons:
    """All comparisons of a run.

    Attributes:
        measure: The metric that the verdict is about.
        main: The main run's result, None where it is missing.
        base: The base model's result, None where it is missing.
        over_base: Main minus base.
        controls: Main against every control, in the spec's order.
        levels: Results after the last phase by (curriculum, metric), for every measure and part.
        parts: Main minus control by (control, part) in the verdict's measure: intervals to look at, not adjusted.
        changes: What every phase of the main run changed, in the verdict's measure, on everything and each slice.
        lost: Evaluations whose per-example results are gone.
    """

    measure: Measure
    main: Level | None = None
    base: Level | None = None
    over_base: Comparison | None = None
    controls: list[Against] = field(default_factory=list)
    levels: dict[tuple[str, str], Level] = field(default_factory=dict)
    parts: dict[tuple[str, str], Comparison] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def primary_measure(results: Results) -> Measure:
    """Accuracy where half of the held-out examples or more are verifiable, else loss.

    A handful of verifiable examples among many must not decide for all of them.
    """
    everywhere = [results.base_metrics] + [p.metrics for c in results.curricula for p in c.all_phases()]
    share = results.verifiable_share()
    return ACCURACY if share >= _ENOUGH and any(ACCURACY.read(metrics) for metrics in everywhere) else LOSS


def decide(measure: Measure, comparison: Comparison, p_holm: float, confidence: float) -> Outcome:
    """What a comparison allows to say. Where the interval and the adjusted p-value disagree: nothing."""
    excludes = comparison.low > 0 or comparison.high < 0
    if not excludes or not p_holm < 1 - confidence:
        return "no difference shown"
    return "better" if (comparison.difference > 0) == measure.higher_is_better else "worse"


def _levels(results: Results, book: Book) -> dict[tuple[str, str], Level]:
    """The results after the last phase: of one seed as they were measured, of several their mean."""
    names = results.metric_names()
    levels: dict[tuple[str, str], Level] = {}
    for curriculum in results.curricula:
        ends = [phase for seed in results.seeds if (phase := curriculum.last(seed)).evaluation]
        sets = all_or_none([book.read(phase.evaluation) for phase in ends if phase.evaluation]) if len(ends) > 1 else []
        for measure in MEASURES:
            tiers, slices = parts_of(names, measure)
            for part in ["", *tiers, *slices]:
                level: Level | None = None
                if sets:
                    level = over_seeds(sets, measure, part, results.spec.evaluation.confidence)
                elif ends:
                    level = measure.read(ends[0].metrics, part)
                if level:
                    levels[curriculum.name, measure.metric(part)] = level
    return levels


def _pairs(results: Results, control: CurriculumResult) -> list[tuple[PhaseResult, PhaseResult]]:
    """The last phases of main and the control, for every seed that has both."""
    pairs = [(results.main.last(seed), control.last(seed)) for seed in results.seeds]
    return [(ours, theirs) for ours, theirs in pairs if ours.evaluation and theirs.evaluation]


def _same(pairs: list[tuple[PhaseResult, PhaseResult]]) -> bool:
    return bool(pairs) and all(
        ours.train is not None and theirs.train is not None and ours.train.key == theirs.train.key
        for ours, theirs in pairs
    )


def _gap(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours - theirs


def compare(results: Results) -> Comparisons:
    """Compare the main run with the base model and with every control."""
    book, settings, seed = Book(), results.spec.evaluation, results.spec.data_seed
    measure = primary_measure(results)
    found = Comparisons(measure, base=measure.read(results.base_metrics))
    found.levels = _levels(results, book)
    found.main = found.levels.get((results.main.name, measure.metric()))
    tiers, slices = parts_of(results.metric_names(), measure)

    def sets(phases: list[PhaseResult]) -> list[Answers]:
        return all_or_none([book.read(phase.evaluation) for phase in phases if phase.evaluation])

    for control in results.controls:
        pairs = _pairs(results, control)
        firsts, seconds = sets([ours for ours, _ in pairs]), sets([theirs for _, theirs in pairs])
        comparison, n = difference(firsts, seconds, measure, "", settings, seed)
        for part in [*tiers, *slices]:
            of_part, _ = difference(firsts, seconds, measure, part, settings, seed)
            if of_part:
                found.parts[control.name, part] = of_part
        found.controls.append(
            Against(
                control=control,
                level=found.levels.get((control.name, measure.metric())),
                comparison=comparison,
                p_holm=math.nan,
                n=n,
                seeds=len(pairs),
                outcome=None,
                tokens_difference=_gap(results.main.total("tokens"), control.total("tokens")),
                steps_difference=_gap(results.main.total("steps"), control.total("steps")),
                same_training=_same(pairs),
            )
        )
    found.controls = _judged(found.controls, measure, settings.confidence)
    ends = [phase for seed_ in results.seeds if (phase := results.main.last(seed_)).evaluation]
    base = book.read(results.base) if results.base else None
    if base and ends:
        found.over_base, _ = difference(sets(ends), [base] * len(ends), measure, "", settings, seed)
    found.changes = changes_of(results, book, measure, ["", *slices])
    found.lost = book.lost
    return found


def _judged(controls: list[Against], measure: Measure, confidence: float) -> list[Against]:
    """The same with adjusted p-values and outcomes. A control that is the same model is no hypothesis."""
    tested = [against for against in controls if against.comparison and not against.same_training]
    adjusted = holm([against.comparison.p for against in tested if against.comparison])
    by_name = {against.control.name: p for against, p in zip(tested, adjusted, strict=True)}
    judged = []
    for against in controls:
        if against.comparison:
            p = by_name.get(against.control.name, 1.0)
            against = replace(against, p_holm=p, outcome=decide(measure, against.comparison, p, confidence))
        judged.append(against)
    return judged
