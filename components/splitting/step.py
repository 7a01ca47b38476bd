"""The splitting step of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.common.keys import splits_key
from components.common.records import step_name
from components.common.step import Reference, Step, errors_said
from components.splitting.split import split


@errors_said
def run(context: str, scores: str, seed: int) -> str:
    """Split the scored examples; returns the reference of a `splits` entry."""
    step = Step(context, step_name("split", seed=seed))
    scored = Reference.from_json(scores)
    if scored is None:
        raise AssertionError("a split needs scores")

    def make(folder: Path) -> dict[str, Any]:
        read = scored.folder
        examples, held_out = read / "scores.parquet", read / "held_out_scores.parquet"
        report: dict[str, Any] = step.light(lambda: split(examples, held_out, step.spec.splitting, seed, folder))
        return report

    entry, reused = step.find_or_make("splits", splits_key(step.spec, scored.key, seed), make)
    return step.finish(entry, reused, entry.info)
