"""What a run would do, before it does it: inputs checked, phases with their keys, and what the store holds."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from components.common.curriculum import PhasePlan, expand, phase_specs, sequence
from components.common.errors import UserError
from components.common.examples import read_rows
from components.common.keys import phase_key, scores_key, splits_key
from components.common.models import model_digest, model_folder
from components.common.spec import Spec
from components.common.store import Store
from components.common.tracking import redact
from components.training.step import tier_files

LATER = "after scoring"


@dataclass(frozen=True, slots=True)
class PlannedPhase:
    """A phase as far as it is known.

    Attributes:
        seed: Of the repetition.
        plan: The phase.
        key: Its key, or None before there are scores.
        tokens: Tokens it will see, or None; an example longer than the context counts in full.
        steps: Optimizer steps, or None.
        stored: Whether the store has it.
    """

    seed: int
    plan: PhasePlan
    key: str | None = None
    tokens: int | None = None
    steps: int | None = None
    stored: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do: (name, key or None, is it stored) for the steps before the phases, and the phases."""

    steps: list[tuple[str, str, bool]]
    phases: list[PlannedPhase]


def check_compute(spec: Spec) -> None:
    """See that this machine has the workers and GPUs that the spec asks for: Ray would wait for them for ever.

    Raises:
        UserError: Naming what there is.
    """
    compute, cores = spec.compute, os.cpu_count() or 1
    gpus = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    if compute.workers * compute.gpus_per_worker > gpus:
        wanted = compute.workers * compute.gpus_per_worker
        raise UserError(
            f"compute asks for {wanted} GPU(s), and this machine has {gpus}",
            "lower `compute.workers`, or train on the CPU with `compute.gpus_per_worker: 0`",
        )
    if compute.workers > max(cores, 2):
        raise UserError(
            f"compute.workers is {compute.workers}, and this machine has {cores} cores", "lower `compute.workers`"
        )


def check_inputs(spec: Spec) -> None:
    """See that the data, the models, the workers and the GPUs are there.

    Raises:
        UserError: Naming what is missing.
    """
    from components.preparing.sources import resolve

    check_compute(spec)
    resolve(spec.data)
    model_folder(spec.model.path)
    if spec.scoring.model is not None:
        model_folder(spec.scoring.model)


def make_plan(spec: Spec) -> Plan:
    """The plan of a run, from its inputs and what the store holds; nothing is computed that a run would store."""
    from components.preparing.sources import fingerprint

    store = Store(spec.store)
    prepared = fingerprint(spec.data, spec.data_seed)
    base = model_digest(spec.model.path, store.memory)
    scorer = base if spec.scoring.model is None else model_digest(spec.scoring.model, store.memory)
    scores = scores_key(spec, prepared, base, scorer)
    steps = [
        ("prepare", prepared, store.find("prepared", prepared) is not None),
        ("score", scores, store.find("scores", scores) is not None),
    ]
    phases: list[PlannedPhase] = []
    for seed in spec.all_seeds:
        split = splits_key(spec, scores, seed)
        found = store.find("splits", split)
        steps.append((f"split, seed {seed}", split, found is not None))
        phases += _phases(spec, store, seed, base, None if found is None else found.path)
    return Plan(steps, phases)


def _phases(spec: Spec, store: Store, seed: int, base: str, split: Path | None) -> list[PlannedPhase]:
    if split is None:
        return [PlannedPhase(seed, plan) for curriculum in expand(spec, seed) for plan in curriculum.phases]
    tiers: dict[int, list[str]] = {}
    tokens: dict[str, int] = {}
    for tier, path in tier_files(split, spec.splitting.tiers).items():
        rows = list(read_rows(path, ["id", "tokens"]))
        tiers[tier] = [row["id"] for row in rows]
        tokens.update((row["id"], row["tokens"]) for row in rows)
    planned: list[PlannedPhase] = []
    for curriculum in expand(spec, seed):
        parent = base
        for plan in curriculum.phases:
            order = sequence(plan, tiers, seed)
            parent = phase_key(spec, plan, order, parent, seed)
            seen = sum(min(tokens[item], plan.settings.max_length) for item in order)
            steps = math.ceil(len(order) / plan.settings.batch_size)
            stored = store.find("phases", parent) is not None
            planned.append(PlannedPhase(seed, plan, parent, seen, steps, stored))
    return planned


def resolved_yaml(spec: Spec) -> str:
    """The resolved spec, with the shorthand of the curriculum expanded into its phases."""
    values = spec.model_dump(mode="json")
    values["tracking"]["uri"] = redact(spec.tracking.uri)
    curriculum = values["curriculum"]
    if curriculum["phases"] is None:
        phases = phase_specs(spec, spec.all_seeds[0])
        curriculum["phases"] = [phase.model_dump(mode="json", exclude_none=True) for phase in phases]
        # The list says it all; the two forms together would not be accepted.
        del curriculum["order"], curriculum["replay"]
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    return text


def show_plan(spec: Spec, console: Console) -> None:
    """Print the plan of a run."""
    check_inputs(spec)
    plan = make_plan(spec)
    console.print("# the resolved spec; `curriculum.phases` is the shorthand, expanded", highlight=False)
    console.print(resolved_yaml(spec), highlight=False, markup=False)
    first = Table("step", "key", "in the store", title="before the phases", title_justify="left", box=None)
    for name, key, stored in plan.steps:
        first.add_row(name, key[:12], "yes" if stored else "no")
    console.print(first)
    table = Table("curriculum", "phase", "key", "tokens", "steps", "in the store", box=None, pad_edge=False)
    table.title, table.title_justify = "phases and controls", "left"
    several = len(spec.all_seeds) > 1
    for item in plan.phases:
        name = item.plan.curriculum + (f" (seed {item.seed})" if several else "")
        known = [item.key[:12], f"{item.tokens:,}", str(item.steps)] if item.key else [LATER, "", ""]
        table.add_row(name, f"{item.plan.index} {item.plan.name}", *known, "yes" if item.stored else "no")
    console.print()
    console.print(table)
    done = sum(item.stored for item in plan.phases)
    left = {item.key: item for item in plan.phases if item.key and not item.stored}
    console.print(f"\n{len(plan.phases)} phases, {done} in the store", end="", highlight=False)
    if plan.phases and plan.phases[0].key:
        todo = sum(item.tokens or 0 for item in left.values())
        console.print(f"; to train: {len(left)} phases, {todo:,} tokens", end="", highlight=False)
    console.print()
