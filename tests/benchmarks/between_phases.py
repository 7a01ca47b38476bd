"""From "phase finished" to the next phase's first step, and where the time goes: two phases on the lab's model.

What lies between them is the end of the first phase's step, KFP, a new step process with its imports, and the start
of the second phase; an evaluation that KFP may put between the two is left out.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

SPEC = {
    "name": "between",
    "seed": 1,
    "model": {"path": "lab"},
    "data": {"train": [{"path": "lab://instructions?count=600"}], "held_out": {"fraction": 0.2}},
    "scoring": {"method": "length"},
    "splitting": {"tiers": 2},
    "curriculum": {"sft": {"epochs": 2, "learning_rate": 1.0e-3, "batch_size": 32, "max_length": 256}},
    "controls": [],
    "evaluation": {"suites": ["loss"], "resamples": 100},
}
PARTS = (
    ("the result is in the store -> its step has ended", "published", "ended"),
    ("KFP begins the step -> it has its key and asks", "begun", "fit"),
    ("the examples become tokens", "fit", "data"),
    ("Ray Train calls the worker", "data", "worker"),
    ("the model is loaded", "worker", "model"),
    ("the trainer is made", "model", "trainer"),
    ("the trainer comes to its first step, and makes it", "trainer", "first"),
)


def log_times(log: str, task: str) -> dict[str, float]:
    """When KFP began a task and saw its end, Unix time."""
    found = {}
    for name, what in (("begun", f"Executing task .*'{task}'"), ("ended", f"Task .*'{task}'.* finished")):
        match = re.search(rf"^(\d\d:\d\d:\d\d\.\d+) - INFO - {what}", log, re.MULTILINE)
        if match is None:
            raise SystemExit(f"the log does not tell of {task}")
        clock = datetime.strptime(match[1], "%H:%M:%S.%f").time()
        found[name] = datetime.combine(datetime.now().date(), clock).timestamp()
    return found


def one_run(folder: Path) -> dict[str, float]:
    """Seconds of each part."""
    (folder / "spec.json").write_text(json.dumps(SPEC))
    command = [str(Path(sys.executable).with_name("phasetune")), "run", "spec.json"]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    log = (folder / "runs/between/run.log").read_text()
    phases = json.loads((folder / "runs/between/summary.json").read_text())["phases"]
    manifests: list[dict[str, Any]] = [
        json.loads((folder / "runs/store/phases" / phase["key"] / "manifest.json").read_text()) for phase in phases
    ]
    second = manifests[1]["info"]
    step = statistics.median(
        b["time"] - a["time"] for a, b in zip(second["learning"], second["learning"][1:], strict=False)
    )
    times = {**second["marks"], "first": second["learning"][0]["time"], "published": manifests[0]["created"]}
    times |= {"ended": log_times(log, "train")["ended"], "begun": log_times(log, "train-2")["begun"]}
    parts = {what: times[end] - times[start] for what, start, end in PARTS}
    return {**parts, "in all": sum(parts.values()), "of this the step itself": step}


def main() -> None:
    """Print the figures."""
    runs = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as name:
            runs.append(one_run(Path(name)))
    for what in runs[0]:
        values = [run[what] for run in runs]
        print(f"{what:<52}{statistics.median(values):>7.2f} s   ({' '.join(f'{value:.2f}' for value in values)})")


if __name__ == "__main__":
    main()
