"""The verdict of a sweep in sentences: a winner with its interval, or that there is none at this budget."""

from __future__ import annotations

from collections.abc import Sequence
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

    Where trials were repeated, only those are candidates. With three seeds or more the first one does not count: it
    chose who was repeated, so its values are too good.
    """
    objective = sweep.spec.objective
    ended = [trial for trial in trials if trial.same is None and objective.name in run.metrics(trial)]
    if not ended:
        return Judged(["No trial came to a result."], None, [], [])
    by_number = {trial.number: {trial.seed: trial} for trial in ended}
    for repeat in repeats:
        if repeat.number in by_number and objective.name in run.metrics(repeat):
            by_number[repeat.number][repeat.seed] = repeat
    most = max(len(runs) for runs in by_number.values())
    candidates = [trial for trial in ended if len(by_number[trial.number]) == most]
    seeds = sorted(by_number[candidates[0].number], key=lambda seed: (seed != candidates[0].seed, seed))
    counted = seeds[1:] if most > 2 else seeds
    runs = [[by_number[trial.number][seed] for seed in counted] for trial in candidates]
    found = _contest(run, objective, runs)
    if found is None:
        return Judged(["The per-example results of the trials are gone, so they cannot be compared."], None, [], [])
    sentences = _sentences(objective, found, candidates, counted, len(seeds), len(ended))
    distinct = sum(trial.same is None for trial in trials)
    if len(ended) < distinct:
        sentences.insert(1, f"{distinct - len(ended)} of the {distinct} trials have no result.")
    return Judged(sentences, found, candidates, counted)


def _contest(run: SweepRun, objective: ObjectiveSpec, runs: Sequence[Sequence[Trial]]) -> Contest | None:
    measure = ACCURACY if objective.metric.startswith("verifiable") else LOSS
    part = "" if objective.on == "held_out" else objective.on
    read = [[_answers(run.store, one, measure, part) for one in seeds] for seeds in runs]
    whole = [[one for one in seeds if one is not None] for seeds in read]
    if any(len(seeds) != len(runs[0]) for seeds in whole):
        return None
    shared = set.intersection(*(set(one.ids.tolist()) for seeds in whole for one in seeds))
    if not shared:
        return None
    ids = np.array(sorted(shared), dtype=np.str_)
    taken = [[one.take(ids) for one in seeds] for seeds in whole]
    first = taken[0][0]
    return contest(
        [[one.numerators(measure) for one in seeds] for seeds in taken],
        first.weights(measure),
        first.clusters,
        objective.mode == "max",
        CONFIDENCE,
        _RESAMPLES,
        17,
        measure is ACCURACY,
    )


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


def _sentences(
    objective: ObjectiveSpec, found: Contest, candidates: list[Trial], counted: list[int], seeds: int, ended: int
) -> list[str]:
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
    sentences = [first, f"The probability that it is the best of the {len(candidates)} compared is {chance:.2f}."]
    if len(candidates) < ended:
        sentences.append(f"These were chosen from {ended} trials by their first run.")
    if seeds == 1:
        sentences.append("Each was trained once, so luck in training is not excluded: `search.seeds` repeats the best.")
    elif len(counted) < seeds:
        sentences.append(f"Counted are the {len(counted)} further seeds; the first chose what was repeated.")
    elif len(candidates) < ended:
        sentences.append("The seed that chose them counts too, which flatters them: three seeds leave it out.")
    return sentences
