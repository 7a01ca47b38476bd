"""What the steps of one run leave behind for its report: one small JSON file a step, under the store.

`runs/<run>/run.json` says what the run is; `runs/<run>/<step>.json` what a step did. Records are named, never
listed: the report knows from the spec which steps there should be, and says which are missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from components.common.curriculum import MAIN
from components.common.errors import Damaged
from components.common.objects import open_objects
from components.common.objects_json import json_object
from components.common.spec import Spec

RUNS = "runs"
"""Where the records lie in the store."""
BASE = "base"


@dataclass(slots=True)
class StepRecord:
    """What one step did.

    Attributes:
        step: Its name; see `step_name`.
        kind: The store's kind of its result.
        key: The result's key.
        uri: Where the result is.
        reused: Whether the result was found rather than made.
        seconds: Wall time of the step, from the start of its process.
        overhead_seconds: Of these, what was not the work: starting processes, importing, Ray.
        info: What the step says about its result; the fields are documented at the step.
    """

    step: str
    kind: str
    key: str
    uri: str
    reused: bool
    seconds: float
    overhead_seconds: float
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class RunInfo:
    """What a run is.

    Attributes:
        run: Its id, unique.
        name: The spec's name.
        spec: The resolved spec, as JSON values.
        spec_digest: Digest of the resolved spec.
        store: The store's place.
        output_dir: Where report.html and summary.json go; empty on a cluster.
        started: ISO 8601 time, UTC; empty in the context of a compiled pipeline, see `joining`.
        mlflow: {"uri", "run_id"}; empty strings where tracking is off.
        versions: Package versions by name.
        machine: {"platform", "cpu", "cores", "memory_gib", "gpus"}.
    """

    run: str
    name: str
    spec: dict[str, Any]
    spec_digest: str
    store: str
    output_dir: str
    started: str
    mlflow: dict[str, str] = field(default_factory=lambda: {"uri": "", "run_id": ""})
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def on_cluster(self) -> bool:
        """Whether Kubeflow's pods run it: such a run has no folder for its report."""
        return not self.output_dir

    def to_json(self) -> str:
        """One line of JSON; what travels between the steps as their context.

        Kubeflow and Argo put values in place of `{{...}}`, and Kubernetes of `$(...)`, wherever they stand in a task.
        So what the spec has of either is spelt otherwise; only `run` may hold a placeholder of ours.
        """
        run = f'"run": {json.dumps(self.run)}'
        return _sealed(json.dumps(asdict(self), sort_keys=True)).replace(_sealed(run), run)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`."""
        return cls(**json.loads(text))

    def parsed(self) -> Spec:
        """The spec as a model."""
        return Spec.model_validate(self.spec)


def _sealed(text: str) -> str:
    """The same JSON without `$` and `{{`: both stand within strings only."""
    return text.replace("$", "\\u0024").replace("{{", "{\\u007b")


def step_name(stage: str, curriculum: str = "", index: int = 0, seed: int | None = None) -> str:
    """The name of a step's record.

    `prepare`, `prepare.main.4.s17` (a phase's own data), `score`, `split.s17`,
    `train.main.1.s17`, `evaluate.base`, `evaluate.one_off.1.s17`, `report`.
    """
    if stage in ("score", "report") or (stage == "prepare" and not index):
        return stage
    if stage == "split":
        return f"split.s{seed}"
    if curriculum == BASE:
        return "evaluate.base"
    return f"{stage}.{curriculum or MAIN}.{index}.s{seed}"


class RunRecords:
    """The records of one run, under the store.

    Args:
        store: The store's place: a folder or `s3://bucket/prefix`.
        run: The run's id.
    """

    def __init__(self, store: str | Path, run: str) -> None:
        self._objects = open_objects(store)
        self._run = run

    def _name(self, step: str) -> str:
        return f"{RUNS}/{self._run}/{step}.json"

    def _write(self, name: str, text: str) -> None:
        self._objects.write(self._name(name), text.encode())

    def open(self, info: RunInfo) -> None:
        """Record what the run is."""
        self._write("run", info.to_json())

    def info(self) -> RunInfo:
        """What the run is.

        Raises:
            FileNotFoundError: If there is no such run.
            Damaged: If its record is not what was written.
        """
        data = self._objects.read(self._name("run"))
        if data is None:
            raise FileNotFoundError(f"there is no record of the run {self._run} in {self._objects.place}")
        with self._readable("run"):
            return RunInfo(**json_object(data))

    def write(self, record: StepRecord) -> None:
        """Record a step; a repeated step replaces its record."""
        self._write(record.step, json.dumps(asdict(record), sort_keys=True))

    def read(self, step: str) -> StepRecord | None:
        """A step's record, or None where the step has not finished.

        Raises:
            Damaged: If it is not what was written.
        """
        data = self._objects.read(self._name(step))
        with self._readable(step):
            return None if data is None else StepRecord(**json_object(data))

    @contextmanager
    def _readable(self, step: str) -> Iterator[None]:
        try:
            yield
        except (ValueError, TypeError) as error:  # no JSON, or the names of another version
            where = f"{self._objects.place}/{self._name(step)}"
            raise Damaged(
                f"the record {where} is damaged: {error}", "run the same command again: it writes new ones"
            ) from None
