"""The scoring step of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from components.common.errand import INSIDE
from components.common.examples import given_difficulty
from components.common.keys import MODEL_METHODS, scores_key
from components.common.models import model_digest
from components.common.records import step_name
from components.common.spec import Spec
from components.common.statistics import spearman
from components.common.step import Reference, Step, errors_said


def measure_job(spec: Spec, files: dict[str, Path], scorer: str) -> dict[str, Any]:
    """What `measure` is asked to do, but for its output folder; see there.

    Args:
        spec: The run's spec.
        files: Files of examples by the name of their scores.
        scorer: Digest of the scorer's model.
    """
    model = spec.scoring.model or spec.model.path
    return {
        "about": {"model": model, "model_digest": scorer, **spec.scoring.model_dump(mode="json", exclude={"model"})},
        "files": {name: str(path) for name, path in files.items()},
        "scoring": spec.scoring.model_dump(mode="json"),
        "base": spec.model.path,
        "scorer": model,
        "model_spec": spec.model.model_dump(mode="json"),
        "max_length": spec.curriculum.sft.max_length,
        "gpus": spec.compute.gpus_per_worker,
        "workers": max(spec.compute.most_workers, _cores(spec)),
        "threads": spec.compute.threads or os.cpu_count() or 1,
        "for_training": True,
    }


def _cores(spec: Spec) -> int:
    """The workers that this machine alone has room for on its processor; of a cluster its spec tells."""
    alone = not spec.compute.gpus_per_worker and INSIDE not in os.environ
    return os.cpu_count() or 1 if alone else 1


def rank_correlations(scores: Path) -> dict[str, float | None]:
    """Spearman of the difficulty with the length in tokens, and with the difficulty that the data itself gives."""
    import numpy as np
    import pyarrow.parquet as pq

    with pq.ParquetFile(scores) as file:  # `read_table` would import pandas
        table = file.read(["difficulty", "tokens", "fields"])
    difficulty, tokens = (np.asarray(table[name], dtype=np.float64) for name in ("difficulty", "tokens"))
    given = np.array([given_difficulty(text) for text in table["fields"].to_pylist()], dtype=np.float64)
    known = np.isfinite(given)
    return {
        "spearman_length": spearman(difficulty, tokens),
        "spearman_given": spearman(difficulty[known], given[known]),
    }


@errors_said
def run(context: str, prepared: str) -> str:
    """Score the prepared examples, held-out ones too; returns the reference of a `scores` entry."""
    step = Step(context, step_name("score"))
    spec, examples = step.spec.at("scoring"), Reference.from_json(prepared)
    if examples is None:
        raise AssertionError("a score needs examples")
    base = model_digest(spec.model.path, step.store.memory)
    scorer = base if spec.scoring.model is None else model_digest(spec.scoring.model, step.store.memory)

    def make(folder: Path) -> dict[str, Any]:
        read = examples.folder
        files = {"scores": read / "train.parquet", "held_out_scores": read / "held_out.parquet"}
        job = {**measure_job(spec, files, scorer), "out": str(folder)}
        result = step.heavy("components.scoring.measure:measure", job=job)
        return {
            "method": spec.scoring.method,
            "model": spec.scoring.model or spec.model.path,
            "model_digest": scorer,
            "settings": spec.scoring.model_dump(mode="json"),
            "examples": result["examples"],
            "truncated": result["truncated"],
            **step.light(lambda: rank_correlations(folder / "scores.parquet")),
        }

    asks = spec if spec.scoring.method in MODEL_METHODS else None
    entry, reused = step.find_or_make("scores", scores_key(spec, examples.key, base, scorer), make, heavy=asks)
    return step.finish(entry, reused, entry.info)
