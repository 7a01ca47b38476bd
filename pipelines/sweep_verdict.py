"""The verdict of a sweep in sentences: a winner with its interval, or that there is none at this budget."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from components.common.best_of import Contest, contest
from components.common.records import StepRecord
from components.common.store import Store
from components.reporting.answers import Answers, load_answers
from components.reporting.measures import ACCURACY, LOSS, Measure, p_value
from pipelines.sweep_run import SweepRun, Trial
from pipelines.sweep_screen import described
from pipelines.sweep_spec import ObjectiveSpec, Sweep

CONFIDENCE = 0.95
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Judged:
    """A verdict, and what it stands on.

    Attributes:
        sentences: The verdict; the first sentence says whether there is a winner.
        contest: The comparison; None where fewer than one trial has a result.
        candidates: The trials compared, in the contest's order.
        seeds: The seeds that count.
    """

    sentences: list[str]
    contest: Contest | None
    candidates: list[Trial]
    seeds: list[int]

    @property
    def text(self) -> str:
        """All of it."""
        return " ".join(self.sentences)


def judge(sweep: Sweep, run: SweepRun, trials: Sequence[Trial], repeats: Sequence[Trial]) -> Judged:
    """Compare the trials of a sweep.

    Where trials were repeated, only those are candidates, with the seeds that they have in common. With three seeds or
    more the first one does not count: it chose who was repeated, so its values are too good.
    """
    objective = sweep.spec.objective
    ended = [trial for trial in trials if trial.same is None and objective.name in run.metrics(trial)]
    if not ended:
        return Judged(["No trial came to a result."], None, [], [])
    by_number = {trial.number: {trial.seed: trial} for trial in ended}
    for repeat in repeats:
        if repeat.number in by_number and objective.name in run.metrics(repeat):
            by_number[repeat.number][repeat.seed] = repeat
    numbers, seeds = comparable(by_number, ended[0].seed)
    candidates = [trial for trial in ended if trial.number in numbers]
    counted = seeds[1:] if len(seeds) > 2 else seeds
    runs = [[by_number[trial.number][seed] for seed in counted] for trial in candidates]
    found, said = _contest(run, objective, runs)
    if found is None:
        return Judged([said], None, [], [])
    sentences = [*_first(objective, found, candidates), *([said] if said else [])]
    if found.difference is not None:
        sentences += _luck(candidates, counted, seeds, len(ended), repeats, sweep.spec.search.seeds)
    distinct = sum(trial.same is None for trial in trials)
    if len(ended) < distinct:
        sentences.insert(1, f"{distinct - len(ended)} of the {distinct} trials have no result.")
    return Judged(sentences, found, candidates, counted)


def comparable(runs: Mapping[int, Mapping[int, object]], first: int) -> tuple[list[int], list[int]]:
    """Which trials are compared with which seeds: every one of the trials has a result with every one of the seeds.

    A sweep may be stopped when only some repetitions are done. Then it is as many further seeds as any two trials have
    in common, and all trials that have these; all trials with the first seed alone where no two have any. So the choice
    is made by what has come to its end, and not by how good it is.

    Args:
        runs: By the number of the trial and the seed, what has a result; every trial has the first seed.
        first: The seed of the first round.

    Returns:
        The numbers of the trials, and the seeds, the first round's before the others.
    """
    further = {number: set(seeds) - {first} for number, seeds in runs.items()}
    if len(runs) == 1:
        return list(runs), [first, *(seed for there in further.values() for seed in sorted(there))]

    def having(seeds: set[int]) -> list[int]:
        return [number for number, there in further.items() if seeds <= there]

    pairs = (one & other for one, other in itertools.combinations(further.values(), 2))
    common = max(pairs, key=lambda seeds: (len(seeds), len(having(seeds))))
    return having(common), [first, *sorted(common)]


def _contest(run: SweepRun, objective: ObjectiveSpec, runs: Sequence[Sequence[Trial]]) -> tuple[Contest | None, str]:
    """The comparison, and what is to be said of it; None, and why, where there can be none."""
    measure = ACCURACY if objective.metric.startswith("verifiable") else LOSS
    part = "" if objective.on == "held_out" else objective.on
    read = [[_answers(run.store, one, measure, part) for one in seeds] for seeds in runs]
    whole = [[one for one in seeds if one is not None] for seeds in read]
    if any(len(seeds) != len(runs[0]) for seeds in whole):
        return None, "The per-example results of the trials are gone, so they cannot be compared."
    sets = [set(one.ids.tolist()) for seeds in whole for one in seeds]
    shared = set.intersection(*sets)
    if not shared:
        return None, "The trials have no measured example in common, so they cannot be compared."
    ids = np.array(sorted(shared), dtype=np.str_)
    taken = [[one.take(ids) for one in seeds] for seeds in whole]
    first = taken[0][0]
    weights = first.weights(measure)
    if any(not np.array_equal(one.weights(measure), weights) for seeds in taken for one in seeds):
        # A nat per token of one tokenizer, or of answers that were cut elsewhere, is not one of another.
        return None, "The trials count the tokens of the same answers differently, so their losses cannot be compared."
    found = contest(
        [[one.numerators(measure) for one in seeds] for seeds in taken],
        weights,
        first.clusters,
        objective.mode == "max",
        CONFIDENCE,
        _RESAMPLES,
        17,
        measure is ACCURACY,
    )
    most = max(len(one) for one in sets)
    return found, "" if len(shared) == most else f"Compared on the {len(shared)} examples that all of them measured."


def _answers(store: Store, trial: Trial, measure: Measure, part: str) -> Answers | None:
    """The trial's last evaluation: the examples of the part that were measured."""
    key = trial.chain.evaluations[-1] if trial.chain is not None else ""
    entry = store.find("evaluations", key) if key else None
    if entry is None:
        return None
    answers = load_answers(StepRecord("", "evaluations", key, entry.uri, True, 0.0, 0.0))
    if answers is None:
        return None
    measured = answers.member(part) & ~np.isnan(answers.numerators(measure))
    return answers.take(answers.ids[measured])


def _first(objective: ObjectiveSpec, found: Contest, candidates: list[Trial]) -> list[str]:
    best, chance = candidates[found.leader], found.chances[found.leader]
    name = f"trial {best.number} ({described(best.params)})"
    value = f"{found.values[found.leader]:.3f} [{found.lows[found.leader]:.3f}, {found.highs[found.leader]:.3f}]"
    if found.difference is None or found.runner_up is None:
        return [f"Only {name} came to a result: {objective.name} {value}."]
    other = candidates[found.runner_up]
    against = (
        f"{found.difference.difference:+.3f} [{found.difference.low:.3f}, {found.difference.high:.3f}], "
        f"{p_value(found.difference.p)}, against the closest, trial {other.number} ({described(other.params)})"
    )
    if found.won:
        first = f"Winner: {name} with {objective.name} {value}; {against}."
    else:
        first = (
            f"No winner at this budget: {name} leads with {objective.name} {value}, but is not told apart: {against}."
        )
    return [first, f"The probability that it is the best of the {len(candidates)} compared is {chance:.2f}."]


def _luck(
    candidates: list[Trial], counted: list[int], seeds: list[int], ended: int, repeats: Sequence[Trial], asked: int
) -> list[str]:
    """What is to be said of seeds: how the candidates were chosen, what counts, and what is not finished."""
    if len(seeds) == 1 and asked > 1:
        return [
            "No two trials have a further seed in common yet, so these are the runs of the first round, one of each: "
            "luck in training is not excluded."
        ]
    if len(seeds) == 1:
        return ["Each was trained once, so luck in training is not excluded: `search.seeds` repeats the best."]
    sentences = []
    if len(candidates) < ended:
        sentences.append(f"These were chosen from {ended} trials by their first run.")
    if len(counted) < len(seeds):
        sentences.append(f"Counted are the {len(counted)} further seeds; the first chose what was repeated.")
    elif len(candidates) < ended:
        sentences.append("The seed that chose them counts too, which flatters them: three seeds leave it out.")
    left = sorted({repeat.number for repeat in repeats} - {one.number for one in candidates})
    if left:
        named = f"trial{'s' * (len(left) > 1)} {', '.join(map(str, left))}"
        sentences.append(f"Not compared is what has no result with all of these seeds: {named}.")
    if len(seeds) < asked:
        sentences.append(f"Of {asked} seeds, {len(seeds)} are done.")
    return sentences
