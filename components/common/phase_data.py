"""Data of phases that have their own: what a row must have for the phase's method, and which task prepares them.

Phases of the main run, of controls and of seeds that name the same sources share one result, and so one task.
"""

from __future__ import annotations

from dataclasses import dataclass

from components.common.curriculum import PhasePlan, expand
from components.common.spec import DataSpec, HeldOut, Spec
from components.common.spec_phases import GrpoSettings
from components.common.verifiers import VERIFIERS

Place = tuple[str, int, int]
"""A phase: its curriculum, its place there from 1, and the seed."""


@dataclass(frozen=True, slots=True)
class Required:
    """What a row must have beside its turns; a row that lacks it is a malformed one.

    Attributes:
        phase: Whose data it is, for the reasons; never part of a key.
        rejected: A rejected reply.
        verifier: A verifier of its own, with an answer.
        usable: Verifiers that must be able to use its answer.
    """

    phase: str = ""
    rejected: bool = False
    verifier: bool = False
    usable: tuple[str, ...] = ()

    @property
    def content(self) -> list[object]:
        """What of it decides which rows stay."""
        return [self.rejected, self.verifier, list(self.usable)]


NOTHING = Required()


def required(plan: PhasePlan) -> Required:
    """What the rows of a phase's own data must have."""
    phase = f"the {plan.method} phase {plan.name}"
    if plan.method == "dpo":
        if plan.generate is None:
            return Required(phase, rejected=True)
        ranks = plan.generate.verifier
        return Required(phase, verifier=ranks is None, usable=() if ranks is None else (ranks,))
    if isinstance(plan.settings, GrpoSettings):
        rewards = plan.settings.rewards
        return Required(phase, verifier=not rewards, usable=tuple(name for name in rewards if name in VERIFIERS))
    return Required(phase)


def own_data(spec: Spec, plan: PhasePlan) -> DataSpec:
    """A phase's sources, to be divided as the run's own are."""
    held_out = HeldOut(fraction=spec.data.held_out.fraction)
    return spec.data.model_copy(update={"train": list(plan.data), "held_out": held_out})


def preparing_places(spec: Spec) -> dict[Place, Place]:
    """For every phase with data of its own: the phase under whose name they are prepared, the first with the same."""
    first: dict[object, Place] = {}
    places: dict[Place, Place] = {}
    for seed in spec.all_seeds:
        for curriculum in expand(spec, seed):
            for plan in curriculum.phases:
                if plan.data:
                    place = (curriculum.name, plan.index, seed)
                    same = (tuple(source.model_dump_json() for source in plan.data), str(required(plan).content))
                    places[place] = first.setdefault(same, place)
    return places
