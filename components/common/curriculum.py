"""The curriculum: from the spec's shorthand to phases and controls, and from a phase to its sequence of examples.

A phase trains on an explicit *sequence* of example ids, its epochs laid end to end. The sequence is the promise
that tests hold the trainer to, and its digest is the data's part of the phase's key.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from components.common.digests import hash_order
from components.common.errors import SpecError
from components.common.spec import OnlyControl, Spec
from components.common.spec_base import Source
from components.common.spec_phases import SETTINGS, GenerateSpec, GrpoSettings, Method, PhaseSpec, Settings, SftSettings

MAIN = "main"
OWN = 0
"""Stands for the phase's own data where a tier's number is expected."""


@dataclass(frozen=True, slots=True)
class Portion:
    """What one tiered phase trains on.

    Attributes:
        tiers: Its tiers; `OWN` is the phase's own data.
        epochs: Passes over them.
        replay: Share of the phase's examples drawn from `seen`.
        seen: The tiers of the phases before it.
    """

    tiers: tuple[int, ...]
    epochs: int
    replay: float = 0.0
    seen: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PhasePlan:
    """One phase of one curriculum.

    Attributes:
        curriculum: `main`, or the control's name.
        index: Its place in the curriculum, from 1.
        name: What users read, e.g. `tier-1`.
        method: The training method.
        portions: What it trains on; several where all phases' data are mixed.
        arrangement: `tiers` keeps the tiers; `random` replaces them by random sets of the same sizes; `shuffled`
            mixes all portions; `chunk` takes the part numbered `chunk` (from 0) of that mix.
        settings: The resolved hyperparameters.
        chunk: See `arrangement`.
        pool: The tiers whose examples `random` deals anew: those that the curriculum trains on.
        data: The sources of the phase's own data; empty where it trains on tiers.
        generate: How the phase makes its preference pairs, if it does.
    """

    curriculum: str
    index: int
    name: str
    method: Method
    portions: tuple[Portion, ...]
    arrangement: Literal["tiers", "random", "shuffled", "chunk"]
    settings: Settings
    chunk: int = 0
    pool: tuple[int, ...] = ()
    data: tuple[Source, ...] = ()
    generate: GenerateSpec | None = None

    @property
    def tiers(self) -> list[int]:
        """The tiers whose examples it sees, sorted; none where it has data of its own."""
        return sorted({tier for portion in self.portions for tier in portion.tiers} - {OWN})

    def to_json(self) -> dict[str, Any]:
        """JSON values; `from_json` makes the plan of them again."""
        return {
            **asdict(replace(self, data=(), generate=None)),
            "settings": self.settings.model_dump(mode="json"),
            "data": [source.model_dump(mode="json") for source in self.data],
            "generate": None if self.generate is None else self.generate.model_dump(mode="json"),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> PhasePlan:
        """The inverse of `to_json`."""
        portions = [Portion(tuple(p["tiers"]), p["epochs"], p["replay"], tuple(p["seen"])) for p in value["portions"]]
        generate = value["generate"]
        return cls(
            **{
                **value,
                "portions": tuple(portions),
                "settings": SETTINGS[value["method"]].model_validate(value["settings"]),
                "pool": tuple(value["pool"]),
                "data": tuple(Source.model_validate(source) for source in value["data"]),
                "generate": None if generate is None else GenerateSpec.model_validate(generate),
            }
        )


@dataclass(frozen=True, slots=True)
class Curriculum:
    """The ordered phases of a run or of one of its controls."""

    name: str
    phases: tuple[PhasePlan, ...]


def control_name(control: str | OnlyControl) -> str:
    """The control's name in results: `one_off`, `only_1_2`, ..."""
    return control if isinstance(control, str) else "only_" + "_".join(str(tier) for tier in control.only)


def tier_order(spec: Spec, seed: int) -> list[int]:
    """The order of the tiers that the shorthand asks for."""
    every = list(range(1, spec.splitting.tiers + 1))
    order = spec.curriculum.order
    if isinstance(order, list):
        return list(order)
    if order == "ascending":
        return every
    if order == "descending":
        return every[::-1]
    return [int(tier) for tier in hash_order([str(tier) for tier in every], seed, "tier order")]


def phase_specs(spec: Spec, seed: int) -> list[PhaseSpec]:
    """The tiers' phases as a user could write them in `curriculum.phases`: the shorthand, expanded."""
    if spec.curriculum.phases is not None:
        return list(spec.curriculum.phases)
    order = tier_order(spec, seed)
    return [
        PhaseSpec(name=f"tier-{tier}", tiers=[tier], replay=spec.curriculum.replay if place else 0.0)
        for place, tier in enumerate(order)
    ]


def phase_name(phase: PhaseSpec) -> str:
    """What users read: the name given, else after the tiers (`tier-1-2`), else the method."""
    tiers = "tier-" + "-".join(str(tier) for tier in phase.tiers)
    return phase.name or (tiers if phase.method == "sft" and phase.tiers else phase.method)


def _name(phase: PhaseSpec, random: bool) -> str:
    name = phase_name(phase)
    return name.replace("tier-", "random-") if random else name


def _tiered(
    curriculum: str, spec: Spec, phases: Sequence[PhaseSpec], random: bool, before: Sequence[PhasePlan] = ()
) -> list[PhasePlan]:
    plans: list[PhasePlan] = []
    seen = [tier for plan in before for tier in plan.tiers]
    for place, phase in enumerate(phases, len(before) + 1):
        settings = phase.resolved(spec.curriculum.shared(phase.method))
        if place == 1:  # there is nothing to carry over yet
            settings = settings.model_copy(update={"carry": "none"})
        replayed = tuple(sorted(set(seen) - set(phase.tiers)))
        tiers = tuple(phase.tiers) or (OWN,)
        portion = Portion(tiers, settings.epochs, phase.replay if replayed else 0.0, replayed)
        plan = PhasePlan(curriculum, place, _name(phase, random), phase.method, (portion,), "tiers", settings)
        plans.append(replace(plan, data=tuple(phase.data), generate=phase.generate))
        seen += phase.tiers
    if random:
        pool = tuple(sorted(set(seen)))
        plans = [replace(plan, arrangement="random", pool=pool) for plan in plans]
    return plans


def _agreed(shared: SftSettings, plans: Sequence[PhasePlan]) -> SftSettings:
    """The shared settings, but what all phases override alike: a control at other settings would compare nothing."""
    first = plans[0].settings
    same = [
        name
        for name in SftSettings.model_fields
        if name != "carry" and all(getattr(plan.settings, name) == getattr(first, name) for plan in plans)
    ]
    return shared.model_copy(update={name: getattr(first, name) for name in same})


def _restarted(settings: Settings) -> Settings:
    return settings.model_copy(update={"carry": "none"})


def _control(control: str | OnlyControl, spec: Spec, phases: list[PhaseSpec]) -> list[PhasePlan]:
    name, shared = control_name(control), spec.curriculum.sft
    main = _tiered(name, spec, phases, random=False)
    portions = tuple(portion for plan in main for portion in plan.portions)
    if control == "random_tiers":
        return _tiered(name, spec, phases, random=True)
    if control == "one_off":
        return [PhasePlan(name, 1, "all-tiers", "sft", portions, "shuffled", _restarted(_agreed(shared, main)))]
    if control == "one_off_restarts":
        return [
            PhasePlan(name, plan.index, f"mix-{plan.index}", "sft", portions, "chunk", _restarted(plan.settings), place)
            for place, plan in enumerate(main)
        ]
    hardest = max(tier for phase in phases for tier in phase.tiers)
    wanted = {hardest} if control == "hardest_only" else set(control.only)  # type: ignore[union-attr]  # the names are exhausted
    kept = [phase for phase in phases if set(phase.tiers) & wanted]
    alone = [phase.model_copy(update={"tiers": [t for t in phase.tiers if t in wanted]}) for phase in kept]
    return _tiered(name, spec, alone, random=False)


def expand(spec: Spec, seed: int) -> list[Curriculum]:
    """The main curriculum and its controls, in the spec's order, each with the phases of `then` at its end."""
    phases = phase_specs(spec, seed)
    plans = {MAIN: _tiered(MAIN, spec, phases, random=False)}
    for control in spec.controls:
        plans[control_name(control)] = _control(control, spec, phases)
    return [
        Curriculum(name, (*plan, *_tiered(name, spec, spec.curriculum.then, random=False, before=plan)))
        for name, plan in plans.items()
    ]


def find_plan(spec: Spec, curriculum: str, index: int, seed: int) -> PhasePlan:
    """The plan of one phase.

    Raises:
        SpecError: If the spec has no such phase.
    """
    for candidate in expand(spec, seed):
        if candidate.name == curriculum and 1 <= index <= len(candidate.phases):
            return candidate.phases[index - 1]
    raise SpecError(f"the spec has no phase {index} in {curriculum!r}", "see `phasetune plan SPEC`")


def _purpose(epoch: int) -> str:
    return "order" if epoch == 0 else f"order:{epoch}"


def _shuffled(ids: list[str], seed: int, epoch: int) -> list[str]:
    """The ids in hash order; a repeated id is placed by its occurrence, so that repeats spread."""
    if len(set(ids)) == len(ids):
        return hash_order(ids, seed, _purpose(epoch))
    seen: Counter[str] = Counter()
    numbered: dict[str, str] = {}
    for item in ids:
        seen[item] += 1
        numbered[item if seen[item] == 1 else f"{item}#{seen[item]}"] = item
    return [numbered[name] for name in hash_order(numbered, seed, _purpose(epoch))]


def _members(portion: Portion, tiers: Mapping[int, Sequence[str]], seed: int) -> list[str]:
    own = [item for tier in portion.tiers for item in tiers[tier]]
    if not portion.replay:
        return own
    seen = [item for tier in portion.seen for item in tiers[tier]]
    count = min(len(seen), round(len(own) * portion.replay / (1 - portion.replay)))
    return own + hash_order(seen, seed, "replay")[:count]


def _random_tiers(tiers: Mapping[int, Sequence[str]], among: Sequence[int], seed: int) -> dict[int, list[str]]:
    pool = hash_order([item for tier in among for item in tiers[tier]], seed, "random tiers")
    drawn: dict[int, list[str]] = {}
    for tier in among:
        drawn[tier], pool = pool[: len(tiers[tier])], pool[len(tiers[tier]) :]
    return drawn


def sequence(plan: PhasePlan, tiers: Mapping[int, Sequence[str]], seed: int) -> list[str]:
    """The example ids that the phase's trainer sees, in order, all epochs laid end to end.

    Args:
        plan: The phase.
        tiers: The ids of every tier (training part), in any order.
        seed: The run's seed.

    Returns:
        One id for each example seen; an id repeats once for each epoch and replay.
    """
    dealt = _random_tiers(tiers, plan.pool, seed) if plan.arrangement == "random" else tiers
    members = [_members(portion, dealt, seed) for portion in plan.portions]
    if isinstance(plan.settings, GrpoSettings):
        return _prompts(plan.settings, [item for ids in members for item in ids], seed)
    most = max(portion.epochs for portion in plan.portions)
    everything: list[str] = []
    for epoch in range(most):
        passing = [item for p, ids in zip(plan.portions, members, strict=True) if p.epochs > epoch for item in ids]
        everything += _shuffled(passing, seed, epoch)
    if plan.arrangement != "chunk":
        return everything
    sizes = [len(ids) * portion.epochs for portion, ids in zip(plan.portions, members, strict=True)]
    start = sum(sizes[: plan.chunk])
    return everything[start : start + sizes[plan.chunk]]


def _prompts(settings: GrpoSettings, ids: list[str], seed: int) -> list[str]:
    """Whole steps of prompts: passes in ever new orders, cut where the last step is full."""
    if not ids:
        return []
    steps = settings.steps or math.ceil(settings.epochs * len(ids) / settings.batch_size)
    wanted = steps * settings.batch_size
    passes = (_shuffled(ids, seed, epoch) for epoch in range(math.ceil(wanted / len(ids))))
    return list(itertools.islice(itertools.chain.from_iterable(passes), wanted))


def steps_of(settings: Settings, sequence_length: int) -> int:
    """Optimizer steps of a phase."""
    return math.ceil(sequence_length / settings.batch_size)


def schedule_spans(plans: Sequence[PhasePlan], steps: Sequence[int]) -> list[tuple[int, int]]:
    """Where each phase stands on its learning-rate schedule: (steps before it, steps of the whole schedule).

    A phase that carries the optimizer goes on with its parent's schedule, so the first of such a chain already knows
    how long the schedule is.

    Args:
        plans: The phases of one curriculum.
        steps: Optimizer steps of each.
    """
    spans: list[tuple[int, int]] = []
    for place in range(len(plans)):
        first = place
        while first and plans[first].settings.carry == "optimizer":
            first -= 1
        last = place
        while last + 1 < len(plans) and plans[last + 1].settings.carry == "optimizer":
            last += 1
        spans.append((sum(steps[first:place]), sum(steps[first : last + 1])))
    return spans
