"""`phasetune compare`: finished runs and sweeps side by side, and the difference between every two of them.

A difference is paired: it needs two runs that were evaluated on the same held-out examples, of which the store has the
results one by one. Of others it is said that they cannot be compared; two intervals side by side would invite it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from components.common.best_of import contest
from components.common.curriculum import MAIN, expand
from components.common.errors import UserError
from components.common.paired import Comparison, holm
from components.common.records import RunInfo, RunRecords, StepRecord, step_name
from components.reporting.answers import Answers, load_answers
from components.reporting.measures import ACCURACY, LOSS, MEASURES, Level, Measure
from components.reporting.pairing import over_seeds, shared
from pipelines.running import RUN_FILE
from pipelines.sweep_screen import described

SUMMARY_FILE = "summary.json"
SWEEP_FILE = "sweep.json"
CONFIDENCE = 0.95
_RESAMPLES = 2000
_OF_ONE_SWEEP = 5
"""Trials that are compared where one sweep is all that is named."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A finished run, or a trial of a sweep.

    Attributes:
        name: What tables call it.
        about: What it is, in few words.
        metrics: After its last phase; of several seeds of a run the means.
        ends: The URI of its last evaluation, by seed; empty where the records are gone.
        sweep: The sweep's name; empty of a run.
        chosen: From how many trials it was chosen, by the very results that are compared; 0 where the user named it.
        tokens: It was trained on; None where that is not known.
        phases: Of its curriculum.
        seconds: Of the training of its phases, whoever trained them first; None where that is not known.
        answers: Its results one by one, by seed, as far as they are there.
    """

    name: str
    about: str
    metrics: dict[str, Any]
    ends: dict[int, str]
    sweep: str = ""
    chosen: int = 0
    tokens: float | None = None
    phases: int = 0
    seconds: float | None = None
    answers: dict[int, Answers] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two contenders.

    Attributes:
        first: The one.
        second: The other.
        comparison: First minus second; None where they cannot be compared.
        chance: The probability that the first is better.
        p_holm: The p-value, adjusted for all pairs that were compared (Holm).
        n: Examples that were compared.
        seeds: Runs of each that were compared.
        said: Why they cannot be compared; empty where they can.
    """

    first: Contender
    second: Contender
    comparison: Comparison | None = None
    chance: float = float("nan")
    p_holm: float = float("nan")
    n: int = 0
    seeds: int = 0
    said: str = ""


@dataclass(frozen=True, slots=True)
class Compared:
    """Several contenders and all pairs of them.

    Attributes:
        contenders: In the order given.
        measure: What is compared.
        levels: The result of each in that measure; None where it has none.
        others: Likewise in the other measure.
        pairs: Every two.
        notes: What a reader must know.
    """

    contenders: list[Contender]
    measure: Measure
    levels: list[Level | None]
    others: list[Level | None]
    pairs: list[Pair]
    notes: list[str]


def read_contenders(named: Sequence[str]) -> list[Contender]:
    """What output folders hold: of a run its main curriculum, of a sweep the trial that leads, or `FOLDER:TRIAL`.

    Raises:
        UserError: If a folder holds no result, or there is only one to compare.
    """
    found = [_read(name, _OF_ONE_SWEEP if len(named) == 1 else 1) for name in named]
    contenders = list(itertools.chain(*found))
    if len(contenders) < 2:
        raise UserError("there is only one result to compare", "name two output folders or more")
    names = [one.name for one in contenders]
    if len(set(names)) < len(names):  # runs of one name in several places
        places = [name for name, read in zip(named, found, strict=True) for _ in read]
        contenders = [
            replace(one, name=f"{place}: {one.name}" if names.count(one.name) > 1 else one.name)
            for one, place in zip(contenders, places, strict=True)
        ]
    return [replace(one, answers=_answers(one.ends)) for one in contenders]


def _read(name: str, trials: int) -> list[Contender]:
    folder, number = Path(name), 0
    if not folder.exists() and name.rpartition(":")[2].isdecimal():
        folder, number = Path(name.rpartition(":")[0]), int(name.rpartition(":")[2])
    if (folder / SWEEP_FILE).is_file():
        return _sweep(folder, number, trials)
    if (folder / SUMMARY_FILE).is_file() and not number:
        return [_run(folder)]
    raise UserError(
        f"there is no {SUMMARY_FILE} of a run and no {SWEEP_FILE} of a sweep in {folder}",
        "give output folders, e.g. runs/quickstart; of a sweep's trial runs/orders:7",
    )


def _loaded(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}", "run the same command again that made it") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path} holds no results", "run the same command again that made it")
    return loaded


def _run(folder: Path) -> Contender:
    summary = _loaded(folder / SUMMARY_FILE)
    phases, seeds = summary["phases"], summary["seeds"]
    about = f"{len(phases) // max(1, len(seeds))} phases" + (f", {len(seeds)} seeds" if len(seeds) > 1 else "")
    tokens = sum(phase["tokens"] for phase in phases) / max(1, len(seeds)) if phases else None
    count, runs = len(phases) // max(1, len(seeds)), max(1, len(seeds))
    seconds = _total([phase.get("train_seconds") for phase in phases], runs)
    return Contender(
        summary["name"], about, summary["metrics"], _ends(folder), tokens=tokens, phases=count, seconds=seconds
    )


def _total(times: Sequence[float | None], runs: int = 1) -> float | None:
    """The sum for each of so many runs; None where one is not known."""
    known = [time for time in times if time is not None]
    return sum(known) / runs if times and len(known) == len(times) else None


def _ends(folder: Path) -> dict[int, str]:
    """The evaluations of a run's ends; none where the run's records are gone."""
    try:
        info = RunInfo.from_json((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return {}
    spec, records = info.parsed(), RunRecords(info.store, info.run)
    ends: dict[int, str] = {}
    for seed in spec.all_seeds:
        main = next(one for one in expand(spec, seed) if one.name == MAIN)
        record = records.read(step_name("evaluate", MAIN, main.phases[-1].index, seed))
        if record is not None:
            ends[seed] = record.uri
    return ends


def _sweep(folder: Path, number: int, trials: int) -> list[Contender]:
    written = _loaded(folder / SWEEP_FILE)
    contest_, objective = written["contest"], written["objective"]
    ended = [row for row in written["table"] if row["metrics"]]
    if number:
        rows = [row for row in ended if row["trial"] == number]
    else:
        leader = None if contest_ is None else contest_["leader"]
        rows = sorted(ended, key=lambda row: row["trial"] != leader)[:trials]
    if not rows:
        which = f"trial {number} of the sweep" if number else "no trial of the sweep"
        raise UserError(
            f"{which} in {folder} came to {'no' if number else 'a'} result", "run the sweep's command again"
        )
    counted = [] if contest_ is None else [str(seed) for seed in contest_["seeds"]]
    chosen = 0 if number else len(ended)
    times = {node["key"]: node["seconds"] for node in written["tree"]}
    contenders = []
    for row in rows:
        ends = {int(seed): uri for seed, uri in row["evaluations"].items() if seed in counted or not counted}
        ends = ends or {int(seed): uri for seed, uri in row["evaluations"].items()}
        name = f"{written['name']} trial {row['trial']}"
        about, tokens = described(row["params"]), row["tokens"]
        keys = row["keys"]
        cost = {"tokens": tokens, "phases": len(keys), "seconds": _total([times.get(key) for key in keys])}
        contenders.append(Contender(name, about, row["metrics"], ends, written["name"], chosen, **cost))
    if objective["on"] != "held_out":
        return [replace(one, about=f"{one.about}; chosen on {objective['on']}") for one in contenders]
    return contenders


def _answers(ends: dict[int, str]) -> dict[int, Answers]:
    found = {seed: load_answers(StepRecord("", "evaluations", "", uri, True, 0.0, 0.0)) for seed, uri in ends.items()}
    return {seed: answers for seed, answers in found.items() if answers is not None}


def compare(contenders: Sequence[Contender]) -> Compared:
    """Compare every two.

    Raises:
        UserError: If no measure was taken of all of them.
    """
    measure = next((each for each in MEASURES if all(each.read(one.metrics) for one in contenders)), None)
    if measure is None:
        lacking = [one.name for one in contenders if not any(each.read(one.metrics) for each in MEASURES)]
        what = f"{', '.join(lacking)} did not come to a result" if lacking else "they were not measured alike"
        raise UserError(f"nothing can be compared: {what}", "run it to its end, or leave it out")
    other = LOSS if measure is ACCURACY else ACCURACY
    pairs = [_pair(first, second, measure) for first, second in itertools.combinations(contenders, 2)]
    compared = [pair for pair in pairs if pair.comparison is not None]
    adjusted = iter(holm([pair.comparison.p for pair in compared if pair.comparison is not None]))
    pairs = [replace(pair, p_holm=next(adjusted)) if pair.comparison is not None else pair for pair in pairs]
    return Compared(
        contenders=list(contenders),
        measure=measure,
        levels=[_level(one, measure) for one in contenders],
        others=[_level(one, other) for one in contenders],
        pairs=pairs,
        notes=list(_notes(contenders, pairs)),
    )


def _level(one: Contender, measure: Measure) -> Level | None:
    if one.sweep and len(one.answers) > 1 and measure.read(one.metrics):  # a sweep's metrics are of its first seed
        return over_seeds(list(one.answers.values()), measure, "", CONFIDENCE)
    return measure.read(one.metrics)


def _pair(first: Contender, second: Contender, measure: Measure) -> Pair:
    for one in (first, second):
        if not one.answers:
            return Pair(first, second, said=f"the single answers of {one.name} are gone from its store")
    ours, theirs = _matched(first.answers, second.answers)
    if any(not _same_part(ours[0], each, measure) for each in [*ours, *theirs]):
        return Pair(first, second, said=_differing(ours[0], theirs[0]))
    aligned = shared([*ours, *theirs], measure, "")
    weights = aligned[0].weights(measure)
    if not len(weights) or not weights.sum() > 0:
        return Pair(first, second, said=f"no example has {measure.title} of both")
    numbers = [one.numerators(measure) for one in aligned]
    rows = [numbers[: len(ours)], numbers[len(ours) :]]
    found = contest(
        rows, weights, aligned[0].clusters, measure.higher_is_better, CONFIDENCE, _RESAMPLES, 17, measure is ACCURACY
    )
    gap = found.difference
    if gap is not None and found.leader == 1:
        gap = Comparison(-gap.difference, -gap.high, -gap.low, gap.p)
    return Pair(first, second, gap, found.chances[0], n=len(weights), seeds=len(ours))


def _matched(first: dict[int, Answers], second: dict[int, Answers]) -> tuple[list[Answers], list[Answers]]:
    """As many runs of each: of the seeds that both have, and then of others."""
    count = min(len(first), len(second))
    return tuple(  # type: ignore[return-value]  # two of them
        [one[seed] for seed in sorted(one, key=lambda seed: (seed not in other, seed))[:count]]
        for one, other in ((first, second), (second, first))
    )


def _same_part(one: Answers, other: Answers, measure: Measure) -> bool:
    """Whether two evaluations are of the same held-out examples, counted alike."""
    ours, theirs = (each.take(each.ids[each.member("")]) for each in (one, other))
    if not np.array_equal(ours.ids, theirs.ids):
        return False
    return measure is ACCURACY or np.array_equal(ours.tokens, theirs.tokens, equal_nan=True)


def _differing(one: Answers, other: Answers) -> str:
    ours, theirs = (set(each.ids[each.member("")].tolist()) for each in (one, other))
    if ours == theirs:
        return "not comparable: their tokenizers count the same answers differently"
    return f"not comparable: other held-out examples ({len(ours)} and {len(theirs)}, {len(ours & theirs)} in both)"


def _notes(contenders: Sequence[Contender], pairs: Iterable[Pair]) -> Iterable[str]:
    for sweep in dict.fromkeys(one.sweep for one in contenders if one.chosen > 1):
        chosen = [one for one in contenders if one.sweep == sweep and one.chosen > 1]
        number, were = chosen[0].chosen, "was" if len(chosen) == 1 else "were"
        names = ", ".join(one.name for one in chosen)
        yield f"{names} {were} chosen from {number} trials by results on these held-out examples, which flatters."
    compared = [pair for pair in pairs if pair.comparison is not None]
    if any(pair.seeds == 1 for pair in compared):
        yield "Where one run of each is compared, luck in training is not excluded."
    if len(compared) > 1:
        yield f"P-values are adjusted for {len(compared)} comparisons (Holm); intervals are not."
