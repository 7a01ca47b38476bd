"""The evaluation step of a run: the base model, or what a phase left."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from components.common.digests import canonical_json, digest_lines, seed_for
from components.common.errors import DataError
from components.common.examples import read_rows
from components.common.keys import evaluation_key
from components.common.models import model_digest
from components.common.pace import alike_evaluation, note_pace
from components.common.records import BASE, step_name
from components.common.spec import Spec
from components.common.step import Reference, Step, errors_said


def held_out_digest(path: Path) -> str:
    """Digest of the held-out examples with all that decides how they are counted: tier, group and slice."""
    columns = ["id", "tier", "group", "slice"]
    return digest_lines(canonical_json([row[name] for name in columns]) for row in read_rows(path, columns))


def measure_job(spec: Spec, model: str, held_out: Path, label: str) -> dict[str, Any]:
    """What `measure` is asked to do, but for its output folder; see there."""
    return {
        "model": model,
        "model_spec": spec.model.model_dump(mode="json"),
        "held_out": str(held_out),
        "evaluation": spec.evaluation.model_dump(mode="json"),
        "without_selection": spec.curriculum.selects,
        "max_length": spec.curriculum.sft.max_length,
        "seed": spec.data_seed,
        "bootstrap_seed": seed_for(spec.data_seed, "bootstrap"),
        "gpus": spec.compute.gpus_per_worker,
        "threads": spec.compute.threads or os.cpu_count() or 1,
        "label": label,
    }


@errors_said
def run(context: str, split: str, phase: str, curriculum: str, index: int, seed: int) -> str:
    """Evaluate one model on the held-out part; returns the reference of an `evaluations` entry.

    Args:
        context: The run.
        split: Reference of the split, which holds the held-out part with its tiers.
        phase: Reference of the phase, empty for the base model.
        curriculum: `main`, a control's name, or `base`.
        index: The phase's place, from 1; 0 for the base model.
        seed: The seed of this repetition.
    """
    step = Step(context, step_name("evaluate", curriculum, index, seed))
    spec, tiers, trained = step.spec.at("evaluation"), Reference.from_json(split), Reference.from_json(phase)
    if tiers is None:
        raise AssertionError("an evaluation needs a split")
    held_out = tiers.folder / "held_out.parquet"
    model_key = model_digest(spec.model.path, step.store.memory) if trained is None else trained.key
    key = evaluation_key(spec, model_key, held_out_digest(held_out))

    def make(folder: Path) -> dict[str, Any]:
        if not any(True for _ in read_rows(held_out, ["id"])):
            raise DataError(
                "the held-out part is empty, so nothing can be evaluated",
                "raise `data.held_out.fraction` or give `data.held_out.sources`",
            )
        model = spec.model.path if trained is None else str(trained.folder / "model")
        label = "evaluate base" if curriculum == BASE else f"evaluate {curriculum} {index}"
        job = {**measure_job(spec, model, held_out, label), "out": str(folder)}
        result: dict[str, Any] = step.heavy("components.evaluation.measure:measure", job=job)
        return result

    entry, reused = step.find_or_make("evaluations", key, make, heavy=spec)
    if not reused and "seconds" in entry.info:
        about = {"alike": alike_evaluation(spec), "train_seconds": entry.info["seconds"]}
        note_pace(step.store, spec, {**about, "sequence": entry.info["examples"]})
    about = {"curriculum": curriculum, "index": index, "seed": seed, "model_key": model_key}
    return step.finish(entry, reused, {**about, **entry.info})


def values_of(context: str, curriculum: str, index: int, seed: int) -> dict[str, float]:
    """The metrics that an evaluation recorded."""
    step = Step(context, step_name("evaluate", curriculum, index, seed))
    record = step.records.read(step.name)
    return {} if record is None else dict(record.info["metrics"])
