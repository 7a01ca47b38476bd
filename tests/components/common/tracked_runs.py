"""A run's records as steps leave them, and what MLflow holds of the run: for the tests of tracking."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from components.common.curriculum import expand
from components.common.records import RunInfo, RunRecords, StepRecord, step_name
from components.common.spec import Spec
from components.common.tracking import open_parent
from components.common.tracking_connect import connect
from components.common.tracking_runs import find_runs

STARTED = "2030-01-02T03:04:05+00:00"
STARTED_MS = 1893553445000
BEGUN = 1893553500.125
LEDGER = {"rows_in": 90, "expanded": 0, "examples": 80, "duplicates": 6, "rejected": 4, "unsampled": 0, "held_out": 8}


def run_info(uri: str = "sqlite:///mlflow.db", **changes: Any) -> RunInfo:
    """A run of the spec with these top-level keys: two phases, and two controls."""
    spec = Spec.model_validate(
        {
            "name": "study",
            "data": {"train": [{"path": "lab://instructions"}]},
            "splitting": {"tiers": 2},
            "controls": ["one_off", "random_tiers"],
            "tracking": {"uri": uri},
            **changes,
        }
    )
    return RunInfo(
        run="study-0001",
        name="study",
        spec=spec.model_dump(mode="json"),
        spec_digest="d" * 32,
        store="store",
        output_dir="runs/study",
        started=STARTED,
    )


def opened(info: RunInfo) -> RunInfo:
    """The run with its parent in MLflow."""
    info.mlflow = open_parent(info.parsed().tracking, info)
    return info


def learning(steps: int) -> list[dict[str, float]]:
    """A phase's learning curve of so many steps."""
    return [
        {
            "step": step,
            "loss": 2.5 - step / 8,
            "learning_rate": 1e-3 / step,
            "grad_norm": 0.5,
            "tokens": 100 * step,
            "time": BEGUN + step,
        }
        for step in range(1, steps + 1)
    ]


def record(curriculum: str, index: int, name: str, tiers: list[int], seed: int = 17, steps: int = 4) -> StepRecord:
    """The record of a step that has trained a phase."""
    key = f"key-{curriculum}-{index}-{seed}"
    info = {
        "name": name,
        "curriculum": curriculum,
        "index": index,
        "seed": seed,
        "method": "sft",
        "parent_key": "base",
        "tiers": tiers,
        "tier": tiers[0],
        "examples": 36,
        "tokens": 4000,
        "steps": steps,
        "truncated": 1,
        "settings": {"epochs": 2, "learning_rate": 0.001, "adam_betas": [0.9, 0.95], "micro_batch_size": None},
        "learning": learning(steps),
    }
    uri = f"/store/phases/{key}"
    return StepRecord(step_name("train", curriculum, index, seed), "phases", key, uri, False, 9.5, 1.5, info)


def write_records(info: RunInfo, folder: Path, steps: int = 4) -> RunRecords:
    """The records of every step of a run."""
    records = RunRecords(folder / "store", info.run)
    sources = [
        {"path": "lab://instructions", "format": "messages", "why": "", "rows": 90, "examples": 80, "rejected": 4}
    ]
    records.write(StepRecord("prepare", "prepared", "p", "/p", False, 1, 0, {"ledger": LEDGER, "sources": sources}))
    base = {"metrics": {"verifiable.accuracy": 0.05}}
    records.write(StepRecord("evaluate.base", "evaluations", "e", "/e", False, 1, 0, base))
    for seed in info.parsed().all_seeds:
        tiers = [{"tier": tier, "examples": 36, "tokens": 2000 * tier} for tier in (1, 2)]
        split = StepRecord(step_name("split", seed=seed), "splits", f"split-{seed}", "/splits", False, 1, 0)
        split.info = {"tiers": tiers, "cuts": [1.5], "spearman_difficulty_length": 0.5}
        records.write(split)
        for curriculum in expand(info.parsed(), seed):
            for plan in curriculum.phases:
                records.write(record(curriculum.name, plan.index, plan.name, plan.tiers, seed, steps))
                metrics = {"verifiable.accuracy": 0.25 * plan.index, "verifiable.tier_1.accuracy.low": 0.2}
                step = step_name("evaluate", curriculum.name, plan.index, seed)
                records.write(StepRecord(step, "evaluations", "e", "/e", False, 1, 0, {"metrics": metrics}))
    return records


SUMMARY = {
    "verdict": "no difference shown",
    "controls": [
        {
            "name": "one_off",
            "against_main": {"metric": "verifiable.accuracy", "difference": 0.25, "low": 0.1, "high": 0.4, "p": 0.01},
        }
    ],
}


def report(folder: Path) -> list[Path]:
    """The files of a report."""
    (folder / "report.html").write_text("<html></html>")
    (folder / "loss.png").write_bytes(b"png")
    return [folder / "report.html", folder / "loss.png"]


def by_name(info: RunInfo) -> dict[str, Any]:
    """The runs in MLflow that belong to a run, by name."""
    client = connect(info.mlflow["uri"])
    experiment = client.get_experiment_by_name("phasetune").experiment_id
    runs = find_runs(client, experiment, info.run)
    names = {run.info.run_name: run for run in runs}
    assert len(names) == len(runs)
    return names


def curve(info: RunInfo, run: Any, name: str = "train/loss") -> list[tuple[int, int, float]]:
    """Step, time and value of a metric's points."""
    history = connect(info.mlflow["uri"]).get_metric_history(run.info.run_id, name)
    return [(point.step, point.timestamp, point.value) for point in history]


def models(info: RunInfo) -> list[Any]:
    """The models that MLflow knows of."""
    client = connect(info.mlflow["uri"])
    return list(client.search_logged_models([client.get_experiment_by_name("phasetune").experiment_id]))


def contents(folder: Path, name: str = "mlflow.db") -> dict[str, int]:
    """The number of rows of each table."""
    with sqlite3.connect(folder / name) as database:
        tables = [row[0] for row in database.execute("select name from sqlite_master where type = 'table'")]
        return {table: database.execute(f'select count(*) from "{table}"').fetchone()[0] for table in tables}  # noqa: S608  # its own tables


def check_whole(info: RunInfo) -> None:
    """The whole run of `write_records` is in MLflow."""
    runs = by_name(info)
    assert sorted(runs) == [
        "control: one_off",
        "control: random_tiers",
        "main/1 tier-1",
        "main/2 tier-2",
        "one_off/1 all-tiers",
        "random_tiers/1 random-1",
        "random_tiers/2 random-2",
        "study",
    ]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    first = runs["main/1 tier-1"]
    assert curve(info, first) == [
        (1, 1893553501125, 2.375),
        (2, 1893553502125, 2.25),
        (3, 1893553503125, 2.125),
        (4, 1893553504125, 2.0),
    ]
    assert curve(info, first, "train/tokens")[-1] == (4, 1893553504125, 400.0)
    assert curve(info, first, "verifiable.accuracy") == [(1, 1893553504125, 0.25)]
    assert (first.info.start_time, first.info.end_time) == (1893553501125, 1893553504125)
    assert first.data.metrics["verifiable.tier_1.accuracy.low"] == 0.2
    assert first.data.params == {"epochs": "2", "learning_rate": "0.001", "adam_betas": "0.9, 0.95"}
