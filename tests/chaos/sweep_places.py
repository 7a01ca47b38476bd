"""Sweeps that faults happen to, and what they must come to all the same."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

BASE: dict[str, Any] = {
    "name": "base",
    "seed": 5,
    "model": {"path": "lab"},
    "data": {"train": [{"path": "lab://instructions?count=120", "name": "lab"}], "held_out": {"fraction": 0.2}},
    "scoring": {"method": "column"},
    "splitting": {"tiers": 2, "cut": "quantiles"},
    "curriculum": {"sft": {"epochs": 6, "learning_rate": 1.0e-3, "batch_size": 16, "max_length": 256}},
    "evaluation": {"max_new_tokens": 3, "resamples": 100},
    "tracking": {"enabled": False},
    "compute": {"threads": 1, "checkpoint_every": 5},
}
SWEEPS: dict[str, dict[str, Any]] = {
    "grid": {"space": {"splitting.tiers": [1, 2], "curriculum.order": "permutations"}},
    "random": {
        "space": {
            "curriculum.order": "permutations",
            "curriculum.sft.learning_rate": {"log_uniform": [1e-3, 3e-3]},
        },
        "search": {"method": "random", "trials": 3},
    },
}
LONGEST = 600.0
"""Seconds after which a sweep that does not end is a failure; nothing is measured by it."""
PHASES = 5
"""Distinct ones of the grid."""


@dataclass(frozen=True)
class SweepPlace:
    """A user's folder with a sweep."""

    place: Any

    def write(self, kind: str = "grid", base: dict[str, Any] | None = None, **more: Any) -> None:
        """What `start` runs."""
        (self.place.folder / "base.yaml").write_text(yaml.safe_dump({**BASE, **(base or {})}))
        values = {"name": "sweep", "base": "base.yaml", **SWEEPS[kind], **more}
        (self.place.folder / "sweep.yaml").write_text(yaml.safe_dump(values, sort_keys=False))

    def start(self) -> Any:
        """Start the sweep in a process group of its own."""
        return self.place.start("sweep", "sweep.yaml")

    def finish(self, process: Any = None) -> str:
        """What the sweep said, which must end well and leave nothing unfinished."""
        out = self._ended(process or self.start())
        self.place.nothing_unfinished()
        return str(out)

    def finish_with_failures(self) -> str:
        """The same of one in which trials fail: their phases keep their last checkpoints."""
        return self._ended(self.start())

    def _ended(self, process: Any) -> str:
        """What a sweep said, which says little: waiting for its end does not fill a pipe."""
        process.wait(timeout=LONGEST)
        out, _ = self.place.ended(process, 0)
        return str(out)

    def results(self) -> dict[str, Any]:
        """What sweep.json holds."""
        return dict(json.loads((self.place.folder / "runs" / "sweep" / "sweep.json").read_text()))

    def log(self) -> str:
        """What is in sweep.log."""
        return (self.place.folder / "runs" / "sweep" / "sweep.log").read_text(errors="replace")

    def table(self) -> dict[str, Any]:
        """What does not depend on what happened: every trial's metrics, keys and state, and the verdict."""
        found = self.results()
        rows = {json.dumps(row["params"]): [row["metrics"], row["keys"], row["state"]] for row in found["table"]}
        return {"verdict": found["verdict"], "merged": found["merged_trials"], **rows}

    def phases(self) -> int:
        """Phases that are in the store."""
        return sum(name.endswith("/manifest.json") for name in self.place.names("phases"))

    def holders(self) -> list[psutil.Process]:
        """The processes that hold the lease of a phase at this moment."""
        from components.common.store import Store

        objects = Store(self.place.store).objects
        found = []
        for key in {name.split("/")[2] for name in self.place.names("leases/phases")}:
            register = objects.look(f"leases/phases/{key}")
            about = {} if register is None else json.loads(register[0])
            found += [one for one in self.place.processes() if one.pid == (about.get("holder") or {}).get("pid")]
        return found

    def staged(self, pid: int) -> list[Path]:
        """The folders in which a process makes results."""
        return list(self.place.store.glob(f".staging/*-{pid}-*"))

    def watchers(self) -> list[psutil.Process]:
        """Tune's trials."""
        return list(self.place.named("ray::ImplicitFunc"))

    def training(self, process: Any) -> psutil.Process:
        """Wait until a phase has been trained and another one is under way; returns who holds its lease."""

        def under_way() -> psutil.Process | None:
            # A finished phase's lease is still held for a moment, when its folder is in its place already.
            return next((one for one in self.holders() if self.staged(one.pid)), None) if self.phases() else None

        holder: psutil.Process = self.place.until(process, under_way, "a phase that is under way")
        return holder
