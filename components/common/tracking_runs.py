"""The MLflow runs of one phasetune run: their names and tags, how they are found, made and filled.

```
parent                      phasetune.kind=run
  main/1 tier-1             phasetune.kind=phase
  control: one_off          phasetune.kind=control
    one_off/1 all-tiers     phasetune.kind=phase
```
Runs are found by their tags, so that a repeated step continues its run and nothing is made twice.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

from components.common.curriculum import MAIN
from components.common.errors import UserError, redact
from components.common.records import RunInfo
from components.common.tracking_connect import database_file

RUN, KIND, KEY, RECORD = "phasetune.run", "phasetune.kind", "phasetune.key", "phasetune.record"
PARENT, ATTACHED, ARTIFACTS = "mlflow.parentRunId", "phasetune.attached", "phasetune.artifacts"
CURRICULUM, INDEX, SEED = "phasetune.curriculum", "phasetune.index", "phasetune.seed"
LEARNING = "train/"
"""Before the names of a learning curve's metrics, which are else the trainer's (TRL's) own."""
_CLEARER = {"frac_reward_zero_std": "groups_all_equal"}
_NO_METRICS = frozenset({"step", "time"})
_FORBIDDEN = re.compile(r"[^/\w.\- :]")
MAX_PARAM, MAX_TAG = 6000, 8000  # characters; MLflow's limits


def started_ms(info: RunInfo) -> int:
    """When the run started, milliseconds since the epoch."""
    return round(datetime.fromisoformat(info.started).timestamp() * 1000)


def flat_parameters(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as MLflow parameters under the names that `--set` takes; null and empty ones are left out.

    A list of scalars reads `1.5, 3.5`, any other list is JSON.
    """
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flat_parameters(value, f"{prefix}{name}.")
        elif value is not None and value != []:
            flat[prefix + name] = redact(_text(value))[:MAX_PARAM]
    return flat


def _text(value: Any) -> str:
    if isinstance(value, list | tuple) and not any(isinstance(item, dict | list) for item in value):
        return ", ".join(_text(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)


def run_parameters(info: RunInfo) -> dict[str, str]:
    """The parent's parameters: the spec, flat, without what is not the experiment's own (tracking, secrets)."""
    return flat_parameters({name: value for name, value in info.spec.items() if name not in ("tracking", "secrets")})


def find_experiment(client: Any, name: str, uri: str, artifact_root: Path | None = None) -> str:
    """The id of an experiment, which is made where there is none.

    Args:
        client: An `MlflowClient`.
        name: The experiment's.
        uri: The store's resolved URI.
        artifact_root: Where a new experiment of an SQLite store keeps artifacts; beside the database where None.

    Raises:
        UserError: If it was deleted.
    """
    from mlflow.exceptions import MlflowException

    for _ in range(2):
        found = client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage != "active":
                raise UserError(
                    f"tracking.experiment: {name!r} was deleted from MLflow",
                    f"restore it with `mlflow experiments restore -x {found.experiment_id}`, or name another",
                )
            return str(found.experiment_id)
        try:
            database = database_file(uri)
            root = None if database is None else artifact_root or artifact_folder(database)
            location = None if root is None else root.absolute().as_uri()
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another run made it between the two calls
                raise
    raise UserError(f"tracking.experiment: {name!r} can be neither found nor made", "name another experiment")


def open_run(client: Any, info: RunInfo, uri: str, artifact_root: Path | None = None) -> Any:
    """The parent run, with its tags and parameters: MLFLOW_RUN_ID's, else the one with the run's tag, else a new one.

    Args:
        client: An `MlflowClient`.
        info: The run.
        uri: The store's resolved URI.
        artifact_root: Where a new experiment of an SQLite store keeps artifacts; beside the database where None.
    """
    tags = {RUN: info.run, KIND: "run", "phasetune.spec_digest": info.spec_digest}
    given = os.environ.get("MLFLOW_RUN_ID")
    if given:
        parent, tags = _attached(client, given, info), {**tags, ATTACHED: "true"}
    else:
        experiment = find_experiment(client, info.parsed().tracking.experiment, uri, artifact_root)
        # Made with its tags: a step that is killed just afterwards finds it again, and makes no second one.
        parent = find_parent(client, experiment, info.run) or client.create_run(
            experiment, started_ms(info), tags=tags, run_name=info.name
        )
    params = {name: value for name, value in run_parameters(info).items() if name not in parent.data.params}
    missing = {name: value for name, value in tags.items() if parent.data.tags.get(name) != value}
    if params or missing:
        send(client, parent.info.run_id, [], params, missing)
    return client.get_run(parent.info.run_id)


def _attached(client: Any, given: str, info: RunInfo) -> Any:
    """The run that MLFLOW_RUN_ID names; on a cluster the topmost above it.

    Kubeflow gives each task, and each group of tasks, a run of its own below the pipeline's.
    """
    run = client.get_run(given)
    while info.on_cluster and PARENT in run.data.tags:
        run = client.get_run(run.data.tags[PARENT])
    return run


def find_parent(client: Any, experiment_id: str, run: str) -> Any | None:
    """The parent of a phasetune run, None where there is none yet."""
    return next((one for one in find_runs(client, experiment_id, run) if one.data.tags.get(KIND) == "run"), None)


def artifact_folder(database: Path) -> Path:
    """Where the artifacts of an SQLite store lie: beside the database."""
    return database.parent / "mlartifacts"


def find_runs(client: Any, experiment_id: str, run: str) -> list[Any]:
    """The MLflow runs of one phasetune run: parent, phases and controls."""
    found: list[Any] = []
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment_id], f"tags.`{RUN}` = '{run}'", max_results=1000, order_by=["start_time ASC"], page_token=token
        )
        found += page
        token = page.token
        if not token:
            return found


def child_tags(info: RunInfo, kind: str, curriculum: str, seed: int, index: int = 0, key: str = "") -> dict[str, str]:
    """The tags that identify a child run, beside its parent."""
    tags = {
        RUN: info.run,
        KIND: kind,
        CURRICULUM: curriculum,
        SEED: str(seed),
        "phasetune.control": str(curriculum != MAIN).lower(),
    }
    return {**tags, INDEX: str(index), KEY: key} if kind == "phase" else tags


def child_name(info: RunInfo, curriculum: str, seed: int, index: int = 0, name: str = "") -> str:
    """`main/1 tier-1` of a phase, `control: one_off` of a control; with the seed where the run has several."""
    title = f"{curriculum}/{index} {name}" if index else f"control: {curriculum}"
    return title if len(info.spec.get("seeds") or []) < 2 else f"{title} (seed {seed})"


class RunTree:
    """The MLflow runs of one phasetune run: looked up once, made where they are missing.

    Args:
        client: An `MlflowClient`.
        info: The run.
        parent: The parent run.
    """

    def __init__(self, client: Any, info: RunInfo, parent: Any) -> None:
        self.client = client
        self.info = info
        self.parent = parent
        self.experiment_id: str = parent.info.experiment_id
        self.runs = find_runs(client, self.experiment_id, info.run)

    def child(self, tags: Mapping[str, str], name: str, parent_id: str, started: Callable[[], int]) -> Any:
        """The child run with these tags; `started` gives its start (milliseconds) where it must be made."""
        wanted = {**tags, PARENT: parent_id}
        for run in self.runs:
            if all(run.data.tags.get(tag) == value for tag, value in wanted.items()):
                return run
        run = self.client.create_run(self.experiment_id, started(), tags=wanted, run_name=name)
        self.runs.append(run)
        return run

    def control(self, curriculum: str, seed: int, started: Callable[[], int]) -> Any:
        """The run under which the phases of a curriculum nest: the parent, or the control's own."""
        if curriculum == MAIN:
            return self.parent
        tags = child_tags(self.info, "control", curriculum, seed)
        return self.child(tags, child_name(self.info, curriculum, seed), self.parent.info.run_id, started)

    def phase(self, curriculum: str, index: int, seed: int, key: str, name: str, started: Callable[[], int]) -> Any:
        """The child of a phase."""
        above = self.control(curriculum, seed, started).info.run_id
        tags = child_tags(self.info, "phase", curriculum, seed, index, key)
        return self.child(tags, child_name(self.info, curriculum, seed, index, name), above, started)

    def logged(self, run: Any) -> set[tuple[str, int, float]]:
        """The points of the learning curves that the run already holds, as (metric, step, value)."""
        names = [name for name in run.data.metrics if name.startswith(LEARNING)]
        history = [m for name in names for m in self.client.get_metric_history(run.info.run_id, name)]
        return {(m.key, m.step, m.value) for m in history}


def metric_name(name: str) -> str:
    """A metric's name with what MLflow does not allow in it replaced."""
    return _FORBIDDEN.sub("_", name)


def learning_metrics(points: Sequence[Mapping[str, Any]], logged: set[tuple[str, int, float]]) -> list[Any]:
    """Learning points as MLflow metrics at their own times, without those in `logged`, which grows by them.

    A point is known by its step and value, not by its time: a repeated attempt that computes the same curve adds
    nothing to it.
    """
    from mlflow.entities import Metric

    metrics: list[Any] = []
    for point in points:
        for name, value in point.items():
            if name in _NO_METRICS or not isinstance(value, int | float):
                continue
            known = (metric_name(LEARNING + _CLEARER.get(name, name)), int(point["step"]), float(value))
            if known not in logged:
                logged.add(known)
                metrics.append(Metric(known[0], known[2], round(point["time"] * 1000), known[1]))
    return metrics


def send(client: Any, run_id: str, metrics: Sequence[Any], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
    """Log in as few calls as MLflow's limits allow; the tags go with the last, so that they mean all is there."""
    from mlflow.entities import Param, RunTag

    entries = [Param(name, value[:MAX_PARAM]) for name, value in params.items()]
    chunks = [metrics[start : start + 800] for start in range(0, len(metrics), 800)]
    parts = [entries[start : start + 100] for start in range(0, len(entries), 100)]
    batches: list[tuple[Sequence[Any], Sequence[Any]]] = list(zip_longest(chunks, parts, fillvalue=[])) or [([], [])]
    labels = [RunTag(name, value[:MAX_TAG]) for name, value in tags.items()]
    for place, (some, few) in enumerate(batches, 1):
        client.log_batch(run_id, list(some), list(few), labels if place == len(batches) else [])
