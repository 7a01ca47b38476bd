"""The training step of a run: one phase of one curriculum."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from components.common.curriculum import OWN, PhasePlan, expand, find_plan, schedule_spans, sequence, steps_of
from components.common.digests import digest_lines, seed_for
from components.common.errors import DataError, UserError
from components.common.examples import read_examples, read_rows
from components.common.keys import phase_key
from components.common.models import model_digest, model_folder
from components.common.pace import alike, note_pace
from components.common.records import step_name
from components.common.selection import for_selection
from components.common.spec import Spec
from components.common.step import Reference, Step, errors_said
from components.common.store import Entry
from components.training.making import PhaseMaker


def tier_files(folder: Path, tiers: int) -> dict[int, Path]:
    """The tiers' files of a split."""
    return {tier: folder / f"tier-{tier}.parquet" for tier in range(1, tiers + 1)}


def tier_ids(files: dict[int, Path]) -> dict[int, list[str]]:
    """The example ids of every tier."""
    return {tier: [row["id"] for row in read_rows(path, ["id"])] for tier, path in files.items()}


def phase_files(split: Path, tiers: int, data: Path | None) -> dict[int, Path]:
    """The files of examples that a phase may draw from, by tier; `OWN` is its own data."""
    return {**tier_files(split, tiers), **({} if data is None else {OWN: data / "train.parquet"})}


def span_of(spec: Spec, plan: PhasePlan, files: dict[int, Path], seed: int) -> tuple[int, int] | None:
    """Where a phase stands on a schedule that it shares with others; None where it has one of its own."""
    plans = next(one.phases for one in expand(spec, seed) if one.name == plan.curriculum)
    chain = [place for place in range(len(plans)) if plans[place].settings.carry == "optimizer"]
    if plan.index - 1 not in {*chain, *(place - 1 for place in chain)}:
        return None
    members = {*chain, *(place - 1 for place in chain)}
    ids = tier_ids(files)
    steps = [
        steps_of(one.settings, len(sequence(one, ids, seed))) if place in members else 0
        for place, one in enumerate(plans)
    ]
    return schedule_spans(plans, steps)[plan.index - 1]


def keeps_optimizer(spec: Spec, plan: PhasePlan, seed: int) -> bool:
    """Whether the next phase of the curriculum goes on with this one's optimizer."""
    plans = next(one.phases for one in expand(spec, seed) if one.name == plan.curriculum)
    return plan.index < len(plans) and plans[plan.index].settings.carry == "optimizer"


def fit_job(spec: Spec, plan: PhasePlan, files: dict[int, Path], seed: int, model: Path) -> dict[str, Any]:
    """What `fit` is asked to do, but for its output folder; see there."""
    return {
        "plan": plan.to_json(),
        "tiers": {str(tier): str(path) for tier, path in files.items()},
        "seed": seed,
        "training_seed": seed_for(seed, "training"),
        "model": str(model),
        "model_spec": spec.model.model_dump(mode="json"),
        "compute": spec.compute.model_dump(mode="json"),
        "gpus_per_worker": spec.compute.gpus_per_worker,
        "threads": spec.compute.threads or os.cpu_count() or 1,
        "span": None,
        "carried": None,
        "sources": {"model": None, "carried": None},
        "keep_optimizer": False,
        "checkpoints": None,
        "selection": None,
        "evaluation": spec.evaluation.model_dump(mode="json"),
        "label": f"train {plan.curriculum} {plan.index} ({plan.name})",
        "stream": None,
        "order_folder": None,
    }


def selection_digest(plan: PhasePlan, held_out: Path) -> str | None:
    """Digest of the examples that the phase's checkpoint is selected on; None where it is the last one.

    Raises:
        DataError: If there are none.
    """
    if plan.settings.select == "last":
        return None
    examples = [e for e in read_examples(held_out) if for_selection(e)]
    if plan.settings.select == "best(accuracy)":
        examples = [example for example in examples if example.verifier is not None]
    if not examples:
        raise DataError(
            f"{plan.name}: `select: {plan.settings.select}` finds no held-out example to select on",
            "raise `data.held_out.fraction`, or take `select: last`",
        )
    return digest_lines(example.id for example in examples)


def _carried(step: Step, plan: PhasePlan, parent_key: str) -> Entry | None:
    """The optimizer that a phase goes on with; None where it begins anew."""
    if plan.settings.carry != "optimizer":
        return None
    found = step.store.whole("optimizers", parent_key)
    if found is None:
        raise UserError(
            f"the optimizer that {plan.name} carries on with is not in the store", "run the same command again"
        )
    return found


@errors_said
def run(context: str, split: str, parent: str, curriculum: str, index: int, seed: int, data: str = "") -> str:
    """Train one phase; returns the reference of a `phases` entry.

    Args:
        context: The run.
        split: Reference of the split.
        parent: Reference of the phase before it, empty for the base model.
        curriculum: `main` or a control's name.
        index: The phase's place, from 1.
        seed: The seed of this repetition.
        data: Reference of the phase's own prepared data; empty where it trains on tiers.
    """
    step = Step(context, step_name("train", curriculum, index, seed))
    spec, plan = step.spec, find_plan(step.spec, curriculum, index, seed)
    tiers, before, own = Reference.from_json(split), Reference.from_json(parent), Reference.from_json(data)
    if tiers is None or bool(plan.data) != (own is not None):
        raise AssertionError("a phase needs a split, and its own data where it has some")
    files = phase_files(tiers.folder, spec.splitting.tiers, None if own is None else own.folder)
    held_out = tiers.folder / "held_out.parquet"
    parent_key = model_digest(spec.model.path, step.store.memory) if before is None else before.key
    order, span = sequence(plan, tier_ids(files), seed), span_of(spec, plan, files, seed)
    key = phase_key(spec, plan, order, parent_key, seed, span, selection_digest(plan, held_out))
    kept = keeps_optimizer(spec, plan, seed)
    stream = {"name": plan.name, "key": key, "curriculum": curriculum, "index": index, "seed": seed}

    def job() -> dict[str, Any]:
        model = model_folder(spec.model.path) if before is None else before.folder / "model"
        carried = _carried(step, plan, parent_key)
        return {
            **fit_job(spec, plan, files, seed, model),
            # Of the parent too, so that no two phases of a run draw the same; equal keys have equal parents.
            "training_seed": seed_for(seed, f"training after {parent_key}"),
            "span": span,
            "keep_optimizer": kept,
            "carried": None if carried is None else str(carried.path),
            "sources": {
                "model": None if before is None else before.uri,
                "carried": None if carried is None else carried.uri,
            },
            "selection": str(held_out),
            "stream": {"info": step.info.to_json(), **stream} if step.info.mlflow.get("run_id") else None,
        }

    about = {"parent_key": parent_key, "name": plan.name, "method": plan.method, "alike": alike(spec, plan)}
    entry, reused = PhaseMaker(step, key, job, about).find_or_make(kept)
    if not reused:
        note_pace(step.store, spec, entry.info)
    asked = {
        "curriculum": curriculum,
        "index": index,
        "seed": seed,
        "tiers": plan.tiers,
        "tier": plan.tiers[0] if len(plan.tiers) == 1 and plan.arrangement == "tiers" else None,
        "settings": plan.settings.model_dump(mode="json"),
    }
    return step.finish(entry, reused, {**entry.info, **about, **asked})
