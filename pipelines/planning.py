"""What a run would do, before it does it: inputs checked, phases with their keys, and what the store holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from components.common.curriculum import OWN, PhasePlan, expand, sequence, steps_of
from components.common.examples import read_rows
from components.common.keys import phase_key, scores_key, splits_key
from components.common.model_shape import ModelShape, model_shape
from components.common.models import base_folder, context_length, model_digest, model_folder
from components.common.pace import Pace, alike
from components.common.phase_data import own_data, required
from components.common.spec import Spec
from components.common.spec_phases import GrpoSettings
from components.common.store import Store
from components.training.step import phase_files, selection_digest, span_of
from pipelines.compute_check import Machine, check_compute, check_seen, check_targets, machine_of
from pipelines.memory_check import Case, Need, check_fits, largest_batch, needed

SCORING = "after scoring"
PREPARING = "after preparing"


@dataclass(frozen=True, slots=True)
class PlannedPhase:
    """A phase as far as it is known.

    Attributes:
        seed: Of the repetition.
        plan: The phase.
        key: Its key; None where it cannot be known yet.
        waits: Where the key is None: what it waits for, in words.
        examples: Examples it will see, repeats counted, or None.
        tokens: Tokens it will see, or None; an example longer than `max_length` counts as that, and one longer than
            the context in full.
        steps: Optimizer steps, or None; of pairs that are still to be made at most so many.
        stored: Whether the store has it.
        need: Its memory; None where the model's configuration does not tell.
        bound: Whether that is an upper bound, as the lengths of the examples are not known.
        seconds: Estimated from earlier phases of this model; None where there are none like it.
    """

    seed: int
    plan: PhasePlan
    key: str | None = None
    waits: str = ""
    examples: int | None = None
    tokens: int | None = None
    steps: int | None = None
    stored: bool = False
    need: Need | None = None
    bound: bool = False
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do: (name, key, is it stored) for the steps before the phases, and the phases."""

    steps: list[tuple[str, str, bool]]
    phases: list[PlannedPhase]


def check_inputs(
    spec: Spec,
    machine: Machine | None = None,
    folder_of: Callable[[str], Path | None] = base_folder,
    one_disk: bool = False,
) -> None:
    """See that the data, the models, the workers and the GPUs are there, and that every phase's batches fit.

    Args:
        spec: The spec.
        machine: What there is to train on; as `machine_of` where absent.
        folder_of: The local folder of a model; None where it is there, and not looked into.
        one_disk: Whether the folders that the spec names are in every pod.

    Raises:
        UserError: Naming what is missing.
    """
    from components.preparing.sources import resolve

    machine = machine or machine_of(spec)
    check_settings(spec, machine, one_disk)
    resolve(spec.data)
    for plan in _all_phases(spec):
        if plan.data:
            resolve(own_data(spec, plan))
    folder = folder_of(spec.model.path)
    if spec.scoring.model is not None:
        folder_of(spec.scoring.model)
    if folder is not None:
        check_model(spec, machine, folder)


def check_settings(spec: Spec, machine: Machine, one_disk: bool = False) -> None:
    """See what can be seen without data and models: workers, GPUs, packages, rewards, and places that RayJobs reach.

    Args:
        spec: The spec.
        machine: What there is to train on.
        one_disk: Whether the folders that the spec names are in every pod.

    Raises:
        UserError: Naming what is missing.
    """
    check_compute(spec, machine)
    if not one_disk:
        check_seen(spec)


def check_model(spec: Spec, machine: Machine, folder: Path) -> None:
    """See that the adapter's targets are layers of the model, and that every phase's batches fit.

    Args:
        spec: The spec.
        machine: What there is to train on.
        folder: Holds the model's `config.json` and its safetensors, of which the headers are enough.

    Raises:
        UserError: Naming what does not fit.
    """
    check_targets(spec, folder)
    shape = model_shape(folder)
    if shape is not None:
        for plan in {one.settings.model_dump_json(): one for one in _all_phases(spec)}.values():
            batch = largest_batch(spec, plan, spec.seed, context_length(folder))
            check_fits(Case(spec, plan, shape, batch), machine, lengths_known=False)


def _all_phases(spec: Spec) -> list[PhasePlan]:
    return [plan for curriculum in expand(spec, spec.all_seeds[0]) for plan in curriculum.phases]


def make_plan(spec: Spec, machine: Machine | None = None) -> Plan:
    """The plan of a run, from its inputs and what the store holds; nothing is computed that a run would store.

    Args:
        spec: The spec.
        machine: What there is to train on; as `machine_of` where absent.

    Raises:
        UserError: If a phase that is not stored cannot fit into the memory that there is.
    """
    from components.preparing.sources import fingerprint

    store = Store(spec.store)
    prepared = fingerprint(spec.data, spec.data_seed)
    base = model_digest(spec.model.path, store.memory)
    scorer = base if spec.scoring.model is None else model_digest(spec.scoring.model, store.memory)
    scores = scores_key(spec.at("scoring"), prepared, base, scorer)
    steps = [
        ("prepare", prepared, store.find("prepared", prepared) is not None),
        ("score", scores, store.find("scores", scores) is not None),
    ]
    folder = model_folder(spec.model.path)
    there = machine or machine_of(spec)
    shape, context = model_shape(folder), context_length(folder)
    planner = _Planner(spec, store, there, base, prepared, shape, context, Pace(store, base))
    phases: list[PlannedPhase] = []
    for seed in spec.all_seeds:
        split = splits_key(spec, scores, seed)
        found = store.find("splits", split)
        steps.append((f"split, seed {seed}", split, found is not None))
        phases += planner.phases(seed, None if found is None else found.path)
    steps[1:1] = list(planner.own.values())
    return Plan(steps, phases)


@dataclass(slots=True)
class _Planner:
    """Plans the phases of every seed."""

    spec: Spec
    store: Store
    machine: Machine
    base: str
    prepared: str
    shape: ModelShape | None
    context: int
    pace: Pace
    own: dict[str, tuple[str, str, bool]] = field(default_factory=dict)

    def phases(self, seed: int, split: Path | None) -> list[PlannedPhase]:
        planned: list[PlannedPhase] = []
        for curriculum in expand(self.spec, seed):
            parent, unknown = self.base, 0
            for plan in curriculum.phases:
                data = self._own_data(plan)
                waits = SCORING if split is None else ""
                if plan.data and data is None:
                    waits = waits or f"{PREPARING} its data"
                if unknown and not waits:
                    waits = f"after phase {unknown}"
                phase = self._phase(seed, plan, split, data, parent, waits)
                planned.append(phase)
                if phase.key is None:
                    unknown = unknown or plan.index
                else:
                    parent = phase.key
        return planned

    def _own_data(self, plan: PhasePlan) -> Path | None:
        """The folder of a phase's own prepared data, if the store has it."""
        from components.preparing.sources import fingerprint

        if not plan.data:
            return None
        key = fingerprint(own_data(self.spec, plan), self.spec.data_seed, required(plan), self.prepared)
        found = self.store.find("prepared", key)
        self.own.setdefault(key, (f"prepare {plan.name}", key, found is not None))
        return None if found is None else found.path

    def _phase(
        self, seed: int, plan: PhasePlan, split: Path | None, data: Path | None, parent: str, waits: str
    ) -> PlannedPhase:
        spec, settings = self.spec, plan.settings
        ids, tokens = self._examples(plan, split, data)
        order = sequence(plan, ids, seed) if ids else []
        steps = steps_of(settings, len(order)) if order else None
        if not order and isinstance(settings, GrpoSettings):
            steps = settings.steps
        seen = (
            sum(min(tokens[item], settings.max_length) for item in order) if tokens and plan.method == "sft" else None
        )
        key = None
        if not waits and split is not None:
            span = span_of(spec, plan, phase_files(split, spec.splitting.tiers, data), seed)
            chosen = selection_digest(plan, split / "held_out.parquet")
            key = phase_key(spec, plan, order, parent, seed, span, chosen)
        entry = None if key is None else self.store.find("phases", key)
        stored = entry is not None
        count = len(order) if order else None if steps is None else steps * settings.batch_size
        need = self._need(seed, plan, order, tokens, stored)
        seconds = None if stored else self.pace.seconds(alike(spec, plan), count, seen)
        if entry is not None:  # what it did, rather than what it would do
            count, seen, steps = (int(entry.info[name]) for name in ("sequence", "tokens", "steps"))
        return PlannedPhase(seed, plan, key, waits, count, seen, steps, stored, need, not tokens, seconds)

    def _examples(
        self, plan: PhasePlan, split: Path | None, data: Path | None
    ) -> tuple[dict[int, list[str]], dict[str, int]]:
        """The ids of the examples that a phase may see, by tier, and the tokens of each as far as they are known."""
        ids: dict[int, list[str]] = {}
        tokens: dict[str, int] = {}
        if data is not None:
            ids[OWN] = [row["id"] for row in read_rows(data / "train.parquet", ["id"])]
        elif split is not None and not plan.data:
            for tier, path in phase_files(split, self.spec.splitting.tiers, None).items():
                rows = list(read_rows(path, ["id", "tokens"]))
                ids[tier] = [row["id"] for row in rows]
                tokens.update((row["id"], row["tokens"]) for row in rows)
        return ids, tokens

    def _need(self, seed: int, plan: PhasePlan, order: list[str], tokens: dict[str, int], stored: bool) -> Need | None:
        if self.shape is None:
            return None
        batch = largest_batch(self.spec, plan, seed, self.context, order, tokens)
        case = Case(self.spec, plan, self.shape, batch)
        if stored:  # it did fit
            return needed(case, self.machine)
        return check_fits(case, self.machine, lengths_known=bool(tokens))
