"""The preparing step of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from components.common.curriculum import find_plan
from components.common.joining import begin
from components.common.phase_data import Required, own_data, required
from components.common.progress import Progress
from components.common.records import RunInfo, step_name
from components.common.spec import DataSpec
from components.common.step import Reference, Step, errors_said
from components.preparing.prepare import prepare
from components.preparing.sources import fingerprint


@errors_said
def run(context: str) -> str:
    """Prepare the run's data; returns the reference of a `prepared` entry. On a cluster this begins the run."""
    step = Step(begin(RunInfo.from_json(context)).to_json(), step_name("prepare"))
    return _prepared(step, step.spec.data, None, None, {})


@errors_said
def run_phase(context: str, prepared: str, curriculum: str, index: int, seed: int) -> str:
    """Prepare the data that a phase has of its own; returns the reference of a `prepared` entry.

    What the run's held-out part holds is on its held-out side, which no phase trains on.

    Args:
        context: The run.
        prepared: Reference of the run's data.
        curriculum: `main` or a control's name.
        index: The phase's place, from 1.
        seed: The seed of this repetition.
    """
    step = Step(context, step_name("prepare", curriculum, index, seed))
    plan, beside = find_plan(step.spec, curriculum, index, seed), Reference.from_json(prepared)
    if beside is None:
        raise AssertionError("a phase's data need the run's, whose held-out part they leave out")
    about = {"name": plan.name, "curriculum": curriculum, "index": index, "seed": seed, "method": plan.method}
    return _prepared(step, own_data(step.spec, plan), required(plan), beside, about)


def _prepared(
    step: Step, data: DataSpec, needs: Required | None, beside: Reference | None, about: dict[str, Any]
) -> str:
    seed = step.spec.data_seed
    key = step.light(lambda: fingerprint(data, seed, needs, "" if beside is None else beside.key))

    def make(folder: Path) -> dict[str, Any]:
        progress = Progress(step.name.split(".s")[0].replace(".", " "), 0, "rows")
        near = None if beside is None else beside.folder
        ledger = step.light(
            lambda: prepare(
                data, seed, folder, lambda _source, rows: progress.update(rows), required=needs, beside=near
            )
        )
        return {"ledger": ledger.to_dict(), "sources": json.loads((folder / "sources.json").read_text("utf-8"))}

    entry, reused = step.find_or_make("prepared", key, make)
    return step.finish(entry, reused, {**about, **entry.info, "rejected_file": f"{entry.uri}/rejected.jsonl"})
