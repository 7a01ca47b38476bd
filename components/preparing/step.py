"""The preparing step of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from components.common.progress import Progress
from components.common.records import step_name
from components.common.step import Step, errors_said
from components.preparing.prepare import prepare
from components.preparing.sources import fingerprint


@errors_said
def run(context: str) -> str:
    """Prepare the run's data; returns the reference of a `prepared` entry."""
    step = Step(context, step_name("prepare"))
    data, seed = step.spec.data, step.spec.data_seed
    key = step.light(lambda: fingerprint(data, seed))

    def make(folder: Path) -> dict[str, Any]:
        progress = Progress("prepare", 0, "rows")
        ledger = step.light(lambda: prepare(data, seed, folder, lambda _source, rows: progress.update(rows)))
        return {"ledger": ledger.to_dict(), "sources": json.loads((folder / "sources.json").read_text("utf-8"))}

    entry, reused = step.find_or_make("prepared", key, make)
    return step.finish(entry, reused, {**entry.info, "rejected_file": f"{entry.uri}/rejected.jsonl"})
