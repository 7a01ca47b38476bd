"""A run's records as one value: what was planned, what of it finished, what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from components.common.curriculum import MAIN, PhasePlan, expand
from components.common.phase_data import Place, preparing_places
from components.common.records import BASE, RunInfo, RunRecords, StepRecord, step_name
from components.common.spec import Spec

Metrics = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class PhaseResult:
    """One phase with one seed.

    Attributes:
        plan: What it was to do.
        seed: The seed it was trained with.
        train: Its training, None where that is missing.
        evaluation: Its evaluation, likewise.
    """

    plan: PhasePlan
    seed: int
    train: StepRecord | None
    evaluation: StepRecord | None

    @property
    def metrics(self) -> Metrics:
        """Metrics after the phase; empty where it was not evaluated."""
        return dict(self.evaluation.info["metrics"]) if self.evaluation else {}


@dataclass(frozen=True, slots=True)
class CurriculumResult:
    """One curriculum: `main` or a control.

    Attributes:
        name: Its name.
        phases: Its phases in order, by seed.
    """

    name: str
    phases: dict[int, tuple[PhaseResult, ...]]

    @property
    def title(self) -> str:
        """How sentences call it."""
        return curriculum_title(self.name)

    @property
    def first(self) -> tuple[PhaseResult, ...]:
        """The phases of the first seed."""
        return next(iter(self.phases.values()))

    def last(self, seed: int) -> PhaseResult:
        """The last phase with a seed."""
        return self.phases[seed][-1]

    def all_phases(self) -> Iterator[PhaseResult]:
        """Every phase of every seed."""
        for phases in self.phases.values():
            yield from phases

    def total(self, field: str) -> float | None:
        """A count of the training steps (`tokens`, `steps`, ...) added over the phases; of several seeds the mean.

        None where no seed has all of its phases.
        """
        sums = [
            sum(float(phase.train.info[field]) for phase in phases if phase.train)
            for phases in self.phases.values()
            if all(phase.train for phase in phases)
        ]
        return sum(sums) / len(sums) if sums else None


@dataclass(frozen=True, slots=True)
class Results:
    """All that a run left behind.

    Attributes:
        info: What the run is.
        spec: Its spec.
        prepare: The record of `prepare`, None where missing; so for `score` and `base`.
        score: The record of `score`.
        base: The evaluation of the base model.
        splits: The records of `split` by seed, those that there are.
        prepared: The records of the data that phases have of their own, by the phase that they are named after.
        curricula: The main curriculum and then the controls.
        records: The records that there are, in the run's order.
        missing: The names of the steps that there should be and are not.
    """

    info: RunInfo
    spec: Spec
    prepare: StepRecord | None
    score: StepRecord | None
    base: StepRecord | None
    splits: dict[int, StepRecord]
    prepared: dict[Place, StepRecord]
    curricula: tuple[CurriculumResult, ...]
    records: tuple[StepRecord, ...]
    missing: tuple[str, ...]

    @property
    def main(self) -> CurriculumResult:
        """The main curriculum."""
        return self.curricula[0]

    @property
    def controls(self) -> tuple[CurriculumResult, ...]:
        """The controls, in the spec's order."""
        return self.curricula[1:]

    @property
    def seeds(self) -> list[int]:
        """The seeds of the repetitions."""
        return self.spec.all_seeds

    @property
    def base_metrics(self) -> Metrics:
        """Metrics of the base model; empty where it was not evaluated."""
        return dict(self.base.info["metrics"]) if self.base else {}

    def own_data(self, phase: PhaseResult) -> StepRecord | None:
        """The record of the data that a phase has of its own."""
        place = preparing_places(self.spec).get((phase.plan.curriculum, phase.plan.index, phase.seed))
        return None if place is None else self.prepared.get(place)

    def verifiable_share(self) -> float:
        """Share of the ordinary held-out examples that a verifier judged; 1 where no evaluation says."""
        for record in self.records:
            if record.info.get("ordinary"):
                return float(record.info["verifiable"]) / float(record.info["ordinary"])
        return 1.0

    def metric_names(self) -> set[str]:
        """Every metric that was measured anywhere in the run."""
        names = set(self.base_metrics)
        for curriculum in self.curricula:
            for phase in curriculum.all_phases():
                names |= phase.metrics.keys()
        return names


def curriculum_title(name: str) -> str:
    """How sentences call a curriculum: `one_off` -> `one-off`, `only_1_2` -> `tiers 1 and 2 alone`."""
    known = {
        MAIN: "main",
        "one_off": "one-off",
        "random_tiers": "random tiers",
        "hardest_only": "hardest tier alone",
        "one_off_restarts": "one-off with restarts",
    }
    if name in known or not name.startswith("only_"):
        return known.get(name, name.replace("_", " "))
    tiers = name.removeprefix("only_").split("_")
    if len(tiers) == 1:
        return f"tier {tiers[0]} alone"
    return f"tiers {', '.join(tiers[:-1])} and {tiers[-1]} alone"


class _Reader:
    """Reads records and remembers which were there."""

    def __init__(self, records: RunRecords) -> None:
        self._records = records
        self.found: list[StepRecord] = []
        self.missing: list[str] = []

    def read(self, step: str) -> StepRecord | None:
        record = self._records.read(step)
        if record is None:
            self.missing.append(step)
        else:
            self.found.append(record)
        return record


def load_results(records: RunRecords) -> Results:
    """Read every record that the run's spec asks for."""
    info = records.info()
    spec = info.parsed()
    reader = _Reader(records)
    prepare, score = reader.read("prepare"), reader.read("score")
    splits = {seed: reader.read(step_name("split", seed=seed)) for seed in spec.all_seeds}
    base = reader.read(step_name("evaluate", BASE))
    places = dict.fromkeys(preparing_places(spec).values())
    prepared = {place: reader.read(step_name("prepare", *place)) for place in places}
    phases: dict[str, dict[int, tuple[PhaseResult, ...]]] = {}
    for seed in spec.all_seeds:
        for curriculum in expand(spec, seed):
            phases.setdefault(curriculum.name, {})[seed] = tuple(
                PhaseResult(
                    plan,
                    seed,
                    reader.read(step_name("train", plan.curriculum, plan.index, seed)),
                    reader.read(step_name("evaluate", plan.curriculum, plan.index, seed)),
                )
                for plan in curriculum.phases
            )
    return Results(
        info=info,
        spec=spec,
        prepare=prepare,
        score=score,
        base=base,
        splits={seed: record for seed, record in splits.items() if record},
        prepared={place: record for place, record in prepared.items() if record},
        curricula=tuple(CurriculumResult(name, by_seed) for name, by_seed in phases.items()),
        records=tuple(reader.found),
        missing=tuple(reader.missing),
    )
