"""Make MLflow agree with the records of a run, now or at any later time.

Repeating it changes nothing: a child whose record is unchanged is known by the digest in its tag and costs no call.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from components.common.curriculum import MAIN, expand
from components.common.digests import digest_file
from components.common.errors import redact
from components.common.phase_data import preparing_places
from components.common.phase_tables import read_phase_tables
from components.common.records import BASE, RunInfo, RunRecords, StepRecord, step_name
from components.common.tracking_connect import connect, reachable, warn
from components.common.tracking_entities import URI, checkpoint_model, source_datasets, tier_datasets
from components.common.tracking_runs import (
    ARTIFACTS,
    ATTACHED,
    MAX_TAG,
    RECORD,
    RunTree,
    flat_parameters,
    learning_metrics,
    metric_name,
    open_run,
    send,
    started_ms,
)

_TABLES = "mlflow.loggedArtifacts"  # the tag by which MLflow's pages know an artifact for a table
_COUNTS = ("examples", "tokens", "steps", "truncated")


def sync(info: RunInfo, records: RunRecords, summary: dict[str, Any] | None, artifacts: Sequence[Path]) -> bool:
    """Copy a run's records to MLflow: children, metrics, parameters, datasets, checkpoints and artifacts.

    Args:
        info: The run; where it names no parent (the server was away), the parent is found or made.
        records: The run's records; steps that have none yet are left for the next time.
        summary: `summary.json`; where given, the run is taken to be complete.
        artifacts: Files (the report, the plots) that the parent run holds.

    Returns:
        False, after a warning, where MLflow is away or refuses; it never raises for that.
    """
    uri = info.mlflow.get("uri", "")
    if not uri:
        return True
    again = "the run's records are complete, and a later report sends them"
    if not reachable(uri):
        warn(f"MLflow does not answer at {uri}; {again}")
        return False
    try:
        client = connect(uri)
        given = info.mlflow.get("run_id", "")
        tree = RunTree(client, info, client.get_run(given) if given else open_run(client, info, uri))
        _Copy(tree, uri, records, summary).send(artifacts)
    except Exception as error:  # also those of artifact stores: no failure of a copy fails the run
        warn(f"MLflow at {uri} does not hold the whole run ({type(error).__name__}: {error}); {again}")
        return False
    return True


def mark_of(*parts: Any) -> str:
    """A digest of records; unlike `digest`, it takes NaN."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _metrics_of(record: StepRecord | None) -> dict[str, float]:
    return dict(record.info["metrics"]) if record is not None else {}


def final_metrics(
    values: Mapping[str, Any], at: int, latest: Mapping[str, float], step: int = 0, model_id: str | None = None
) -> list[Any]:
    """Final values as metrics.

    `at` (milliseconds) comes from the records, so that a repetition logs the same points. A value that differs from
    the `latest` is logged at the present time, else MLflow would not take it for the newer one.
    """
    from mlflow.entities import Metric

    metrics = []
    for name, value in values.items():
        safe = metric_name(name)
        if value is not None and latest.get(safe) != float(value):
            moment = round(time.time() * 1000) if safe in latest else at
            metrics.append(Metric(safe, float(value), moment, step, model_id=model_id))
    return metrics


def _named(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{name}": value for name, value in values.items()}


def _differences(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: numbers.get(name) for name in ("difference", "low", "high", "p")}


class _Copy:
    """One pass of `sync`: phases, controls, parent, artifacts; the parent's status last."""

    def __init__(self, tree: RunTree, uri: str, records: RunRecords, summary: dict[str, Any] | None) -> None:
        self.tree, self.client, self.uri = tree, tree.client, uri
        self.records, self.summary = records, summary
        self.spec = tree.info.parsed()
        self.places = preparing_places(self.spec)
        self.started = started_ms(tree.info)
        controls = (summary or {}).get("controls", [])
        self.against_main: dict[str, dict[str, Any]] = {
            control["name"]: control["against_main"] for control in controls if control.get("against_main")
        }

    def send(self, artifacts: Sequence[Path]) -> None:
        done = [
            (curriculum.name, plan.index, seed, record)
            for seed in self.spec.all_seeds
            for curriculum in expand(self.spec, seed)
            for plan in curriculum.phases
            if (record := self.records.read(step_name("train", curriculum.name, plan.index, seed))) is not None
        ]
        for place in done:
            self.phase(*place)
        for curriculum, seed in dict.fromkeys((name, seed) for name, _, seed, _ in done if name != MAIN):
            last = max(index for name, index, of, _ in done if (name, of) == (curriculum, seed))
            self.control(curriculum, last, seed)
        self.parent(max((index for name, index, _, _ in done if name == MAIN), default=0))
        self.artifacts(artifacts)
        if self.summary is not None:
            self.finish(self.tree.parent)

    def phase(self, curriculum: str, index: int, seed: int, record: StepRecord) -> None:
        result = self.records.read(step_name("evaluate", curriculum, index, seed))
        points: list[dict[str, Any]] = record.info.get("learning") or []
        dated = bool(points) and not record.reused
        begun, ended = (round(points[end]["time"] * 1000) if dated else self.started for end in (0, -1))
        run = self.tree.phase(curriculum, index, seed, record.key, record.info["name"], lambda: begun)
        mark = mark_of(asdict(record), result and asdict(result))
        if run.data.tags.get(RECORD) == mark:
            return
        own = self.own_data(curriculum, index, seed)
        datasets = tier_datasets(record, self.records.read(step_name("split", seed=seed)), seed, own)
        if datasets:
            self.client.log_inputs(run.info.run_id, datasets)
        model = checkpoint_model(self.client, self.uri, run, record, f"{self.tree.info.name}-{curriculum}-{index}")
        latest, counts = run.data.metrics, {name: record.info.get(name) for name in _COUNTS}
        metrics = learning_metrics(points, self.tree.logged(run))
        metrics += final_metrics(_named("phase", {**counts, "seconds": record.seconds}), ended, latest, index)
        metrics += final_metrics(_metrics_of(result), ended, latest, index, model.model_id)
        tags = {"phasetune.method": str(record.info["method"]), URI: redact(record.uri), RECORD: mark}
        tags |= self.tables(run, record)
        if record.reused:
            tags["reused_from"] = f"{record.key} {redact(record.uri)}"
        settings = flat_parameters(record.info.get("settings", {}))
        params = {name: value for name, value in settings.items() if name not in run.data.params}
        self.finish(run, ended)
        # The record's digest goes last: a copy that broke off is then made again.
        send(self.client, run.info.run_id, metrics, params, tags)

    def own_data(self, curriculum: str, index: int, seed: int) -> StepRecord | None:
        """The record of the preparation of a phase's own data."""
        place = self.places.get((curriculum, index, seed))
        return None if place is None else self.records.read(step_name("prepare", *place))

    def tables(self, run: Any, record: StepRecord) -> dict[str, str]:
        """Log what the phase shows of its rollouts and pairs; a repetition replaces it. Returns the tag for it."""
        tables = read_phase_tables(record.uri)
        for name, table in tables.items():
            self.client.log_text(run.info.run_id, table.to_json(), f"{name}.json")
        listed = [{"path": f"{name}.json", "type": "table"} for name in tables]
        return {_TABLES: json.dumps(listed)} if listed else {}

    def control(self, curriculum: str, last: int, seed: int) -> None:
        result = self.records.read(step_name("evaluate", curriculum, last, seed))
        against = self.against_main.get(curriculum, {})
        mark = mark_of(result and asdict(result), against)
        run = self.tree.control(curriculum, seed, lambda: self.started)
        if run.data.tags.get(RECORD) == mark:
            return
        latest = run.data.metrics
        metrics = final_metrics(_metrics_of(result), self.started, latest, last)
        metrics += final_metrics(_named("against_main", _differences(against)), self.started, latest)
        tags = {"against_main.metric": str(against["metric"])} if against else {}
        self.finish(run)
        send(self.client, run.info.run_id, metrics, {}, {**tags, RECORD: mark})

    def parent(self, last: int) -> None:
        """Main's metrics after each phase (of the first seed), the base's, the differences, the ledger, the verdict."""
        run, seed = self.tree.parent, self.spec.all_seeds[0]
        results = [self.records.read(step_name("evaluate", MAIN, index, seed)) for index in range(1, last + 1)]
        phases = [_metrics_of(result) for result in results]
        prepared = self.records.read("prepare")
        others = _named("base", _metrics_of(self.records.read(step_name("evaluate", BASE))))
        if prepared is not None:
            others |= _named("data", prepared.info.get("ledger", {}))
        owned = {place: self.records.read(step_name("prepare", *place)) for place in self.places.values()}
        for record in owned.values():
            if record is not None:
                others |= _named(f"data.{record.info['name']}", record.info.get("ledger", {}))
        for control, numbers in self.against_main.items():
            others |= _named(f"against_main.{control}", _differences(numbers))
        verdict = str((self.summary or {}).get("verdict", ""))[:MAX_TAG]
        mark = mark_of(phases, others, verdict)
        if run.data.tags.get(RECORD) == mark:
            return
        metrics = final_metrics(others, self.started, run.data.metrics)
        for index, values in enumerate(phases, 1):
            metrics += final_metrics(values, self.started, run.data.metrics if index == last else {}, index)
        sources = [one for each in (prepared, *owned.values()) if each is not None for one in source_datasets(each)]
        if sources:
            self.client.log_inputs(run.info.run_id, sources)
        tags = {"phasetune.verdict": verdict} if verdict else {}
        send(self.client, run.info.run_id, metrics, {}, {**tags, RECORD: mark})

    def artifacts(self, paths: Sequence[Path]) -> None:
        files = [path for path in paths if path.is_file()]
        if len(files) < len(paths):
            warn(f"not sent to MLflow, as they are no files: {[str(path) for path in paths if path not in files]}")
        mark, parent = mark_of({path.name: digest_file(path) for path in files}), self.tree.parent
        if not files or parent.data.tags.get(ARTIFACTS) == mark:
            return
        for path in files:
            self.client.log_artifact(parent.info.run_id, str(path))
        self.client.set_tag(parent.info.run_id, ARTIFACTS, mark)

    def finish(self, run: Any, ended: int | None = None) -> None:
        """Status FINISHED, unless it is so already or the run belongs to whoever gave us MLFLOW_RUN_ID."""
        if run.info.status != "FINISHED" and ATTACHED not in run.data.tags:
            self.client.set_terminated(run.info.run_id, "FINISHED", ended)
