"""A small sweep whose phases are made up: data, scores and splits are real, a phase is a file, an evaluation is told.

What a sweep decides can be seen without training: `Hands` take the place of the slots and do every piece at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from components.common.curriculum import find_plan
from components.common.examples import read_rows
from components.common.records import RunInfo
from components.common.session_call import resolve
from components.common.spec import Spec
from components.common.step import Reference
from components.common.store import Store
from pipelines.sweep_chains import Task
from pipelines.sweep_run import SweepRun, Trial
from pipelines.sweep_slots import Outcome
from pipelines.sweep_spec import Sweep, load_sweep

BASE: dict[str, Any] = {
    "name": "base",
    "seed": 5,
    "data": {"train": [{"path": "lab://instructions?count=60", "name": "lab"}], "held_out": {"fraction": 0.3}},
    "scoring": {"method": "column"},
    "curriculum": {"sft": {"epochs": 1, "batch_size": 16, "max_length": 128}},
    "tracking": {"enabled": False},
    "compute": {"threads": 1},
}

TOKENS = 700
"""That every made-up phase says it was trained on."""

Skill = Callable[[str, Spec, int], float]
"""By the phases so far (such as `2-1`), the trial's spec and its seed: the share of right answers it comes to."""


def by_order(wanted: Mapping[str, float]) -> Skill:
    """The shares of right answers by the order of the tiers; 0.5 where it is not told."""
    return lambda order, spec, seed: wanted.get(order, 0.5)


@dataclass
class Hands:
    """Slots that do a piece of work when it is waited for, in this process.

    Attributes:
        store: Gets the results.
        count: Pieces at a time.
        skill: What an evaluation comes to.
        trouble: Called with every piece before it is done; what it raises is how the piece ends.
        done: The labels of what was done, in order.
    """

    store: Store
    count: int = 2
    skill: Skill = field(default_factory=lambda: by_order({}))
    trouble: Callable[[Task], None] = lambda task: None
    done: list[str] = field(default_factory=list)
    _waiting: list[tuple[Task, dict[str, Any]]] = field(default_factory=list)

    @property
    def free(self) -> int:
        return self.count - len(self._waiting)

    def start(self, task: Task, arguments: dict[str, Any]) -> None:
        assert self.free > 0
        self._waiting.append((task, arguments))

    def wait(self, seconds: float) -> list[Outcome]:
        task, arguments = self._waiting.pop(0)
        try:
            self.trouble(task)
            self._do(task, arguments)
        except Exception as error:
            return [Outcome(task, 1.0, error)]
        self.done.append(task.label)
        return [Outcome(task, 1.0)]

    def _do(self, task: Task, arguments: dict[str, Any]) -> None:
        if task.kind not in ("phases", "evaluations"):
            resolve(task.target)(**arguments)
            return
        info: dict[str, Any] = {}
        with self.store.make(task.kind, task.work.key, info) as folder:
            if task.kind == "phases":
                info["tokens"] = TOKENS
                (folder / "model").write_text(task.label)
            else:
                info.update(self._evaluate(folder, arguments))

    def _evaluate(self, folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        from components.evaluation.measure import SCHEMA

        spec, seed = RunInfo.from_json(arguments["context"]).parsed(), arguments["seed"]
        split = Reference.from_json(arguments["split"])
        rows = sorted(read_rows(split.folder / "held_out.parquet", ["id", "tier"]), key=lambda row: row["id"])
        places = range(1, arguments["index"] + 1)
        names = [find_plan(spec, arguments["curriculum"], place, seed).name for place in places]
        right = round(self.skill("-".join(name.removeprefix("tier-") for name in names), spec, seed) * len(rows))
        told = [
            {"id": row["id"], "cluster": None, "tier": row["tier"], "slice": None, "nll": 2.0, "tokens": 1}
            | {"correct": place < right, "response": "r", "expected": "e", "prompt": "p"}
            for place, row in enumerate(rows)
        ]
        pq.write_table(pa.Table.from_pylist(told, SCHEMA), folder / "examples.parquet")
        metrics = {"verifiable.accuracy": right / len(rows), "loss.nats_per_token": 2.0}
        return {"metrics": metrics, "examples": len(rows)}


@dataclass
class World:
    """A folder with a base spec, sweeps over it, and a store that holds the data and scores."""

    folder: Path

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    def sweep(self, space: Mapping[str, Any], base: Mapping[str, Any] | None = None, **more: Any) -> Sweep:
        """A sweep that has been read."""
        values = {**BASE, "store": str(self.folder / "store"), **(base or {})}
        (self.folder / "base.yaml").write_text(yaml.safe_dump(values))
        file = self.folder / "sweep.yaml"
        file.write_text(yaml.safe_dump({"name": "s", "base": "base.yaml", "space": dict(space), **more}))
        return load_sweep(file)

    def trials(self, sweep: Sweep, params: Sequence[Mapping[str, Any]], seed: int | None = None) -> list[Trial]:
        """Trials of it, numbered from 1."""
        found = []
        for number, one in enumerate(params, 1):
            spec = sweep.resolved(one, seed)
            run = f"run-{number}-s{spec.seed}"
            info = RunInfo(run, "s", spec.model_dump(mode="json"), "", spec.store, str(self.folder), "now", {}, {})
            found.append(Trial(number, dict(one), spec.seed, spec, info))
        return found

    def run(self, hands: Hands, every: bool = False) -> tuple[SweepRun, list[str]]:
        """A run whose work those hands do, and what its listener was told, such as `done train main 1 (tier-2)`."""
        heard: list[str] = []
        run = SweepRun(hands.store, hands, every, lambda what, task, trial, _: heard.append(f"{what} {task.label}"))
        return run, heard


def finish(run: SweepRun) -> None:
    """Step until nothing is under way."""
    while run.step():
        pass
