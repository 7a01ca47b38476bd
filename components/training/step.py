"""The training step of a run: one phase of one curriculum."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from components.common.curriculum import PhasePlan, expand, sequence
from components.common.digests import seed_for
from components.common.errors import SpecError
from components.common.examples import read_rows
from components.common.keys import phase_key, plan_json
from components.common.models import model_digest, model_folder
from components.common.records import step_name
from components.common.spec import Spec
from components.common.step import Reference, Step, errors_said

MAIN_INFO = ("examples", "sequence", "tokens", "response_tokens", "truncated", "steps", "learning")


def find_plan(spec: Spec, curriculum: str, index: int, seed: int) -> PhasePlan:
    """The plan of one phase.

    Raises:
        SpecError: If the spec has no such phase.
    """
    for candidate in expand(spec, seed):
        if candidate.name == curriculum and 1 <= index <= len(candidate.phases):
            return candidate.phases[index - 1]
    raise SpecError(f"the spec has no phase {index} in {curriculum!r}", "see `phasetune plan SPEC`")


def tier_files(folder: Path, tiers: int) -> dict[int, Path]:
    """The tiers' files of a split."""
    return {tier: folder / f"tier-{tier}.parquet" for tier in range(1, tiers + 1)}


def tier_ids(files: dict[int, Path]) -> dict[int, list[str]]:
    """The example ids of every tier."""
    return {tier: [row["id"] for row in read_rows(path, ["id"])] for tier, path in files.items()}


def fit_job(spec: Spec, plan: PhasePlan, files: dict[int, Path], seed: int, model: Path) -> dict[str, Any]:
    """What `fit` is asked to do, but for its output folder; see there."""
    return {
        "plan": plan_json(plan),
        "tiers": {str(tier): str(path) for tier, path in files.items()},
        "seed": seed,
        "training_seed": seed_for(seed, "training"),
        "model": str(model),
        "model_spec": spec.model.model_dump(mode="json"),
        "workers": spec.compute.workers,
        "gpus_per_worker": spec.compute.gpus_per_worker,
        "threads": spec.compute.threads or os.cpu_count() or 1,
        "label": f"train {plan.curriculum} {plan.index} ({plan.name})",
        "stream": None,
        "order_folder": None,
    }


@errors_said
def run(context: str, split: str, parent: str, curriculum: str, index: int, seed: int) -> str:
    """Train one phase; returns the reference of a `phases` entry.

    Args:
        context: The run.
        split: Reference of the split.
        parent: Reference of the phase before it, empty for the base model.
        curriculum: `main` or a control's name.
        index: The phase's place, from 1.
        seed: The seed of this repetition.
    """
    step = Step(context, step_name("train", curriculum, index, seed))
    spec, plan = step.spec, find_plan(step.spec, curriculum, index, seed)
    tiers, before = Reference.from_json(split), Reference.from_json(parent)
    if tiers is None:
        raise AssertionError("a phase needs a split")
    files = tier_files(tiers.folder, spec.splitting.tiers)
    parent_key = model_digest(spec.model.path, step.store.memory) if before is None else before.key
    model = model_folder(spec.model.path) if before is None else before.folder / "model"
    key = phase_key(spec, plan, sequence(plan, tier_ids(files), seed), parent_key, seed)

    def make(folder: Path) -> dict[str, Any]:
        job = {**fit_job(spec, plan, files, seed, model), "out": str(folder)}
        if step.info.mlflow.get("run_id"):
            about = {"name": plan.name, "key": key, "curriculum": curriculum, "index": index, "seed": seed}
            job["stream"] = {"info": step.info.to_json(), **about}
        result = step.heavy("components.training.fit:fit", job=job)
        return {name: result[name] for name in MAIN_INFO}

    entry, reused = step.find_or_make("phases", key, make)
    about = {
        "name": plan.name,
        "curriculum": curriculum,
        "index": index,
        "seed": seed,
        "method": plan.method,
        "parent_key": parent_key,
        "tiers": plan.tiers,
        "tier": plan.tiers[0] if len(plan.tiers) == 1 and plan.arrangement == "tiers" else None,
        "settings": plan_json(plan)["settings"],
    }
    return step.finish(entry, reused, {**about, **entry.info})
