"""The MLflow runs of one sweep: their names and tags, how they are found, made and filled.

```
parent                       phasetune.kind=sweep
  1: tiers 2, order 2-1      phasetune.kind=trial
    main/1 tier-2            phasetune.kind=phase, only where this sweep trained it
```
Whatever is repeated changes nothing, so a sweep that was interrupted goes on in the same runs. Nothing here waits for
a server that is away: what MLflow raises is the caller's to judge.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from components.common.errors import redact
from components.common.records import RunInfo
from components.common.tracking_entities import URI
from components.common.tracking_runs import (
    ATTACHED,
    KEY,
    KIND,
    PARENT,
    RECORD,
    RUN,
    RunTree,
    find_experiment,
    flat_parameters,
    learning_metrics,
    send,
)
from components.common.tracking_send import final_metrics, mark_of

SWEEP, SWEEP_DIGEST, SWEEP_RUN = "phasetune.sweep", "phasetune.sweep_digest", "phasetune.sweep_run"
TRIAL, STATE, REUSED = "phasetune.trial", "phasetune.state", "phasetune.reused."
NOTE = "mlflow.note.content"
"""What MLflow's pages show as a run's description."""
_TABLES = "mlflow.loggedArtifacts"
_TABLE_FILE = "trials.json"
_COUNTS = ("examples", "tokens", "steps", "truncated")
Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True, slots=True)
class SweepAbout:
    """What identifies a sweep.

    Attributes:
        name: The sweep's name.
        run: The id of this run of it.
        digest: Of everything that determines its trials: a run that goes on with an earlier one has the same.
        experiment: MLflow's experiment.
        params: The parent's parameters.
    """

    name: str
    run: str
    digest: str
    experiment: str
    params: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TrialAbout:
    """A trial as MLflow shows it.

    Attributes:
        info: The run that its steps are told about.
        name: What users read.
        params: Its parameters, flat.
    """

    info: RunInfo
    name: str
    params: Mapping[str, str]

    @property
    def identity(self) -> str:
        """Equal for the same trial of a repeated sweep."""
        return mark_of(dict(self.params))


@dataclass(frozen=True, slots=True)
class TrialEnd:
    """What a trial came to.

    Attributes:
        status: MLflow's word for how it ended.
        state: The sweep's.
        phases: The metrics after each phase that was evaluated, by the phase's number; what decides goes first.
        totals: What was counted.
        keys: The keys of the main curriculum's phases, in order.
        tags: Further tags.
    """

    status: Status
    state: str
    phases: Mapping[int, Mapping[str, float]]
    totals: Mapping[str, float]
    keys: Sequence[str]
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PhaseMade:
    """A phase that the sweep trained.

    Attributes:
        trial: The trial it was trained for.
        place: Curriculum, index and seed.
        name: What users read.
        key: Of its result.
        uri: Where that is.
        about: What the manifest records: counts, the learning curve.
        settings: Its hyperparameters.
        seconds: Wall time; None where nobody saw its end.
        metrics: Of its evaluation; None where it has none yet.
    """

    trial: TrialAbout
    place: tuple[str, int, int]
    name: str
    key: str
    uri: str
    about: Mapping[str, Any]
    settings: Mapping[str, Any]
    seconds: float | None
    metrics: Mapping[str, float] | None


@dataclass(frozen=True, slots=True)
class SweepEnd:
    """What a sweep came to.

    Attributes:
        status: MLflow's word for how it ended.
        metrics: Its counts.
        verdict: One or a few sentences.
        note: What its page shows, in Markdown.
        table: The trials, the best first.
        files: What it left: sweep.json, sweep.html.
    """

    status: Status
    metrics: Mapping[str, float]
    verdict: str = ""
    note: str = ""
    table: Sequence[Mapping[str, Any]] = ()
    files: Sequence[Path] = ()


class SweepRuns:
    """The runs of one sweep: looked up once, made where they are missing.

    Args:
        client: An `MlflowClient`.
        parent: The sweep's run.
    """

    def __init__(self, client: Any, parent: Any) -> None:
        self.client = client
        self.parent = parent
        self.experiment_id: str = parent.info.experiment_id
        self.run: str = parent.data.tags[RUN]
        """The id of the sweep's run; of the one that began it, where this one goes on with it."""
        found = _search(client, self.experiment_id, {SWEEP_RUN: self.run, KIND: "trial"})
        self._trials = {run.data.tags.get(TRIAL): run for run in found}
        self._phases: dict[str, _Place | None] = {}
        self._sent: dict[str, str] = {}

    @classmethod
    def open(cls, client: Any, uri: str, about: SweepAbout) -> Self:
        """The runs of a sweep: below MLFLOW_RUN_ID's run, else of one that did not come to its end, else new ones.

        Args:
            client: An `MlflowClient`.
            uri: The store's resolved URI.
            about: The sweep.
        """
        tags = {RUN: about.run, KIND: "sweep", SWEEP: about.name, SWEEP_DIGEST: about.digest}
        given = os.environ.get("MLFLOW_RUN_ID")
        if given:
            parent, tags = client.get_run(given), {**tags, ATTACHED: "true"}
        else:
            experiment = find_experiment(client, about.experiment, uri)
            # Made with its tags: a sweep that is killed just afterwards finds it again, and makes no second one.
            parent = _unfinished(client, experiment, about) or client.create_run(
                experiment, _now(), tags=tags, run_name=about.name
            )
        if parent.data.tags.get(SWEEP_DIGEST) == about.digest:
            tags[RUN] = parent.data.tags[RUN]
        missing = {name: value for name, value in tags.items() if parent.data.tags.get(name) != value}
        params = {name: value for name, value in about.params.items() if name not in parent.data.params}
        if missing or params:
            send(client, parent.info.run_id, [], params, missing)
        if parent.info.status != "RUNNING" and ATTACHED not in tags:
            client.update_run(parent.info.run_id, status="RUNNING")
        return cls(client, client.get_run(parent.info.run_id))

    def begin_trial(self, about: TrialAbout) -> str:
        """The id of a trial's run, made where there is none; its phases nest below it."""
        run = self._trial(about)
        if run.info.status != "RUNNING":
            self.client.update_run(run.info.run_id, status="RUNNING")
            self._trials[about.identity] = self.client.get_run(run.info.run_id)
        return str(run.info.run_id)

    def _trial(self, about: TrialAbout) -> Any:
        run = self._trials.get(about.identity)
        if run is None:
            tags = {RUN: about.info.run, KIND: "trial", SWEEP_RUN: self.run, TRIAL: about.identity}
            tags |= {PARENT: self.parent.info.run_id, "phasetune.spec_digest": about.info.spec_digest}
            run = self.client.create_run(self.experiment_id, _now(), tags=tags, run_name=about.name)
            self._trials[about.identity] = run
        return run

    def end_trial(self, about: TrialAbout, end: TrialEnd) -> None:
        """Log what a trial came to, and which runs trained the phases that were not trained for it."""
        run = self._trial(about)
        reused = {}
        for index, key in enumerate(end.keys, 1):
            place = self._trained(key)
            if place is None or place.above != run.info.run_id:
                reused[f"{REUSED}{index}"] = key if place is None else place.run_id
        tags = {STATE: end.state, **end.tags, **reused}
        mark = mark_of(end.status, tags, {str(index): dict(of) for index, of in end.phases.items()})
        if mark in (run.data.tags.get(RECORD), self._sent.get(about.identity)):
            return
        last, began, latest = max(end.phases, default=0), run.info.start_time, run.data.metrics
        # MLflow's charts begin with the metric that was logged first.
        metrics: list[Any] = []
        for index, values in end.phases.items():
            metrics += final_metrics(values, began, latest if index == last else {}, index)
        metrics += final_metrics(end.totals, began, latest)
        params = {name: value for name, value in about.params.items() if name not in run.data.params}
        self.client.set_terminated(run.info.run_id, end.status)
        # The mark goes last: a copy that broke off is then made again.
        send(self.client, run.info.run_id, metrics, params, {**tags, RECORD: mark})
        self._sent[about.identity] = mark

    def phase(self, made: PhaseMade) -> None:
        """Log a phase below its trial, with its learning curve; a repetition adds its evaluation."""
        mark = mark_of(made.key, None if made.metrics is None else dict(made.metrics))
        if self._sent.get(made.key) == mark:
            return
        above = self._trial(made.trial)
        points = made.about.get("learning") or []
        began, ended = (round(points[end]["time"] * 1000) if points else _now() for end in (0, -1))
        tree = RunTree(self.client, made.trial.info, above)
        run = tree.phase(*made.place, made.key, made.name, lambda: began)
        run_id, index = run.info.run_id, made.place[1]
        self._phases[made.key] = _Place(run_id, above.info.run_id)
        self._sent[made.key] = mark
        if run.data.tags.get(RECORD) == mark:
            return
        counts = {f"phase.{name}": made.about.get(name) for name in _COUNTS} | {"phase.seconds": made.seconds}
        metrics = learning_metrics(points, tree.logged(run))
        metrics += final_metrics(counts, ended, run.data.metrics, index)
        metrics += final_metrics(made.metrics or {}, ended, run.data.metrics, index)
        settings = flat_parameters(made.settings)
        params = {name: value for name, value in settings.items() if name not in run.data.params}
        tags = {"phasetune.method": str(made.about.get("method", "")), URI: redact(made.uri), RECORD: mark}
        if run.info.status != "FINISHED":
            self.client.set_terminated(run_id, "FINISHED", ended)
        send(self.client, run_id, metrics, params, tags)

    def _trained(self, key: str) -> _Place | None:
        """The run that trained a phase, of this sweep or before it; None where it is not in the experiment.

        A run that took the phase from the store has the same key, and says so.
        """
        if key not in self._phases:
            found = _search(self.client, self.experiment_id, {KEY: key, KIND: "phase"})
            made = [run for run in found if "reused_from" not in run.data.tags]
            self._phases[key] = _Place(made[0].info.run_id, made[0].data.tags.get(PARENT, "")) if made else None
        return self._phases[key]

    def end(self, end: SweepEnd) -> None:
        """Log the sweep's end: its counts, its verdict, the table of its trials and its files; its status last."""
        run_id = self.parent.info.run_id
        for phase in _search(self.client, self.experiment_id, {KIND: "phase"}, "attributes.status = 'RUNNING'"):
            if phase.data.tags.get(PARENT) in {run.info.run_id for run in self._trials.values()}:
                self.client.set_terminated(phase.info.run_id, "KILLED")
        tags = {"phasetune.verdict": end.verdict, NOTE: end.note} if end.verdict else {}
        if end.table:
            columns = list(dict.fromkeys(name for row in end.table for name in row))
            data = [[row.get(name) for name in columns] for row in end.table]
            table = json.dumps({"columns": columns, "data": data}, ensure_ascii=False)
            self.client.log_text(run_id, table, _TABLE_FILE)
            tags[_TABLES] = json.dumps([{"path": _TABLE_FILE, "type": "table"}])
        for path in end.files:
            self.client.log_artifact(run_id, str(path))
        send(self.client, run_id, final_metrics(end.metrics, _now(), {}), {}, tags)
        if ATTACHED not in self.parent.data.tags:
            self.client.set_terminated(run_id, end.status)


@dataclass(frozen=True, slots=True)
class _Place:
    """A phase's run, and the run above it."""

    run_id: str
    above: str


def _now() -> int:
    return round(time.time() * 1000)


def _unfinished(client: Any, experiment: str, about: SweepAbout) -> Any | None:
    """The parent of an earlier run of the sweep: the one with this id, else the newest that did not come to its end."""
    known = _search(client, experiment, {RUN: about.run, KIND: "sweep"})
    if known:
        return known[-1]
    open_ones = _search(
        client, experiment, {SWEEP: about.name, SWEEP_DIGEST: about.digest}, "attributes.status != 'FINISHED'"
    )
    return open_ones[-1] if open_ones else None


def _search(client: Any, experiment: str, tags: Mapping[str, str], more: str = "") -> list[Any]:
    """The runs with these tags, the oldest first; no value has quotes."""
    wanted = [f"tags.`{name}` = '{value}'" for name, value in tags.items()] + ([more] if more else [])
    found: list[Any] = []
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment], " and ".join(wanted), max_results=1000, order_by=["start_time ASC"], page_token=token
        )
        found += page
        token = page.token
        if not token:
            return found
