"""The report's first sentences: what the comparisons allow to say, and what they do not."""

from __future__ import annotations

import math

from components.common.curriculum import phase_name
from components.common.spec import Spec
from components.reporting.changes import Change, told_apart
from components.reporting.comparisons import Against, Comparisons, decide
from components.reporting.measures import LOSS, p_value
from components.reporting.results import Results

_MOST_NAMES = 6


def verdict(results: Results, found: Comparisons) -> str:
    """The verdict in one string; see `sentences_of`."""
    return " ".join(sentences_of(results, found))


def sentences_of(results: Results, found: Comparisons) -> list[str]:
    """The verdict's sentences: what is missing, if anything; the main run and `one_off`; the others; the luck."""
    sentences = [_incomplete(results, found)] if results.missing or found.lost else []
    if found.main is None:
        sentences.append(f"{describe(results.spec)}: no result of the main run, so there is no verdict.")
        return sentences
    controls = sorted(found.controls, key=lambda against: against.control.name != "one_off")
    first, rest = controls[:1], controls[1:]
    opening = f"{describe(results.spec)}: held-out {found.measure.title} {found.measure.level(found.main)}"
    if found.measure is LOSS:
        opening += " nats per token (lower is better)"
    sentences.append(opening + (f"; {_against(results, found, first[0])}." if first else "."))
    sentences += [f"{_capital(_against(results, found, against))}." for against in rest]
    if not controls:
        sentences.append("The run has no control: there is nothing to compare the phases with.")
    sentences += [_changed(results, found, change) for change in found.changes if told_apart(results, change)]
    if len(tested(found)) > 1:
        sentences.append(f"p-values are adjusted for {len(tested(found))} comparisons (Holm).")
    sentences.append(_luck(results, found))
    return sentences


def tested(found: Comparisons) -> list[Against]:
    """The controls that main was tested against."""
    return [against for against in found.controls if against.comparison and not against.same_training]


def describe(spec: Spec) -> str:
    """`3 phases, ascending`; phases that a user listed are named."""
    after = [phase_name(phase) for phase in spec.curriculum.then]
    if spec.curriculum.phases is not None:
        names = [phase_name(phase) for phase in spec.curriculum.phases]
        count, order = len(names), f" ({', '.join(names)})" if len(names) <= _MOST_NAMES else " as listed in the spec"
    else:
        count, given = spec.splitting.tiers, spec.curriculum.order
        words = {"ascending": "ascending", "descending": "descending", "random": "in random order"}
        order = ", " + (words[given] if isinstance(given, str) else "tiers in the order " + ", ".join(map(str, given)))
    plural = "s" if count + len(after) != 1 else ""
    then = f", then {', '.join(after)}" if after else ""
    return f"{count + len(after)} phase{plural}{order if count > 1 else ''}{then}"


def compute_note(results: Results, against: Against) -> str:
    """`at equal compute` (equal tokens, steps within the number of phases), or the share of main's tokens."""
    ours, theirs = results.main.total("tokens"), against.control.total("tokens")
    if not ours or theirs is None:
        return ""
    if against.tokens_difference == 0 and abs(against.steps_difference or 0) <= len(results.main.first):
        return "at equal compute"
    if against.tokens_difference == 0:
        return "with equal tokens"
    return f"with {100 * theirs / ours:.0f}% of the tokens"


def difference_text(found: Comparisons, against: Against) -> str:
    """`difference +0.4 points [-1.2, 2.0], p = .61`, with the adjusted p-value where there are several tests."""
    comparison = against.comparison
    if comparison is None:
        return ""
    gap = found.measure.difference(comparison.difference, comparison.low, comparison.high)
    adjusted = "adjusted " if len(tested(found)) > 1 else ""
    return f"difference {gap}, {adjusted}{p_value(against.p_holm)}"


def _against(results: Results, found: Comparisons, against: Against) -> str:
    name = " ".join(filter(None, [against.control.title, compute_note(results, against)]))
    if against.level is None:
        return f"{name} has no result yet: not compared"
    said = f"{name} {found.measure.level(against.level)}"
    if against.same_training:
        return f"{said}: it is the very same training, so there is nothing to compare"
    if against.comparison is None or against.outcome is None:
        return f"{said}: not compared, for want of results on the same examples"
    outcome = against.outcome if against.outcome == "no difference shown" else f"the main run is {against.outcome}"
    return f"{said}: {outcome} ({difference_text(found, against)})"


def _changed(results: Results, found: Comparisons, change: Change) -> str:
    """`GRPO: held-out accuracy 41.2% before, 43.0% after (difference +1.8 points [0.2, 3.4] on 680 examples ...)`."""
    measure, gap, plan = found.measure, change.comparison, change.plan
    method = plan.method.upper()
    name = method if plan.name == plan.method else f"{_capital(plan.name)} ({method})"
    if change.before is None or change.after is None or gap is None:
        return f"{name}: no results before and after it on the same examples."
    levels = [measure.number(level.value) + measure.sign for level in (change.before, change.after)]
    outcome = decide(measure, gap, gap.p, results.spec.evaluation.confidence)
    said = f"{outcome}, " if outcome == "no difference shown" else ""
    numbers = measure.difference(gap.difference, gap.low, gap.high)
    opening = f"{name}: held-out {measure.title} {levels[0]} before, {levels[1]} after"
    return f"{opening} ({said}difference {numbers} on {change.n:,} examples that no phase saw)."


def _incomplete(results: Results, found: Comparisons) -> str:
    gone = [*results.missing, *(f"{step} (its examples.parquet)" for step in found.lost)]
    shown = ", ".join(gone[:6]) + (f" and {len(gone) - 6} more" if len(gone) > 6 else "")
    # Kubeflow has the report written when no step runs any more; of a run on this machine some may still come.
    state = "FAILED" if results.info.on_cluster else "is incomplete"
    return f"The run {state}: {shown} {'is' if len(gone) == 1 else 'are'} missing."


def _luck(results: Results, found: Comparisons) -> str:
    seeds = max((against.seeds for against in found.controls), default=len(results.seeds))
    if seeds < 2:
        return "One seed: luck in training is not excluded."
    spreads = [("main", found.main), *((against.control.title, against.level) for against in found.controls)]
    written = [
        f"{title} {found.measure.number(level.spread)}"
        for title, level in spreads
        if level and not math.isnan(level.spread)
    ]
    unit = f" {found.measure.unit}" if found.measure.unit else ""
    note = f"; standard deviation between them: {', '.join(written)}{unit}" if written else ""
    return f"{seeds} seeds: the intervals include the spread between them{note}."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
