"""Tracking against a real MLflow: an SQLite store made once, and a real server."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.common.curriculum import expand
from components.common.errors import UserError
from components.common.records import RunInfo, RunRecords, StepRecord, step_name
from components.common.spec import Spec, TrackingSpec
from components.common.tracking import (
    PhaseStream,
    TrackingWarning,
    end_parent,
    open_parent,
    sync,
    ui_command,
)
from components.common.tracking_connect import connect
from components.common.tracking_runs import find_runs

STARTED = "2030-01-02T03:04:05+00:00"
STARTED_MS = 1893553445000
BEGUN = 1893553500.125
LEDGER = {"rows_in": 90, "expanded": 0, "examples": 80, "duplicates": 6, "rejected": 4, "unsampled": 0, "held_out": 8}


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1"
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables: making them takes seconds."""
    file = tmp_path_factory.mktemp("template") / "mlflow.db"
    connect(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def folder(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(template, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start_server(template: Path, folder: Path, port: int) -> subprocess.Popen[bytes]:
    shutil.copy(template, folder / "server.db")
    store = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", f"{folder}/artifacts"]
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *store, *where], env=environment, stdout=log, stderr=log
        )
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return server
        except OSError:
            assert server.poll() is None, (folder / "server.log").read_text()
            time.sleep(0.2)
    raise AssertionError("the server did not start")


def run_info(uri: str = "sqlite:///mlflow.db", **changes: Any) -> RunInfo:
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
    info.mlflow = open_parent(info.parsed().tracking, info)
    return info


def learning(steps: int) -> list[dict[str, float]]:
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
    (folder / "report.html").write_text("<html></html>")
    (folder / "loss.png").write_bytes(b"png")
    return [folder / "report.html", folder / "loss.png"]


def by_name(info: RunInfo) -> dict[str, Any]:
    client = connect(info.mlflow["uri"])
    experiment = client.get_experiment_by_name("phasetune").experiment_id
    runs = find_runs(client, experiment, info.run)
    names = {run.info.run_name: run for run in runs}
    assert len(names) == len(runs)
    return names


def curve(info: RunInfo, run: Any, name: str = "train/loss") -> list[tuple[int, int, float]]:
    history = connect(info.mlflow["uri"]).get_metric_history(run.info.run_id, name)
    return [(point.step, point.timestamp, point.value) for point in history]


def models(info: RunInfo) -> list[Any]:
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


def test_a_run_is_found_back_whole(folder: Path) -> None:
    info = opened(run_info())
    assert info.mlflow["uri"] == f"sqlite:///{folder}/mlflow.db"
    assert sync(info, write_records(info, folder), SUMMARY, report(folder))
    check_whole(info)
    runs = by_name(info)
    client = connect(info.mlflow["uri"])
    parent, first, control = runs["study"], runs["main/1 tier-1"], runs["control: one_off"]

    assert parent.info.run_id == info.mlflow["run_id"]
    assert parent.info.start_time == STARTED_MS
    tags = {name: value for name, value in parent.data.tags.items() if name.startswith("phasetune.")}
    assert len(tags.pop("phasetune.record")) == len(tags.pop("phasetune.artifacts")) == 32
    assert tags == {
        "phasetune.run": "study-0001",
        "phasetune.kind": "run",
        "phasetune.spec_digest": "d" * 32,
        "phasetune.verdict": "no difference shown",
    }
    assert parent.data.metrics == {
        "verifiable.accuracy": 0.5,
        "verifiable.tier_1.accuracy.low": 0.2,
        "base.verifiable.accuracy": 0.05,
        "against_main.one_off.difference": 0.25,
        "against_main.one_off.low": 0.1,
        "against_main.one_off.high": 0.4,
        "against_main.one_off.p": 0.01,
        **{f"data.{name}": float(value) for name, value in LEDGER.items()},
    }
    assert [(step, value) for step, _, value in curve(info, parent, "verifiable.accuracy")] == [(1, 0.25), (2, 0.5)]
    wanted = {"seed": "17", "curriculum.order": "ascending", "splitting.tiers": "2", "splitting.cut": "quantiles"}
    wanted |= {"scoring.method": "ifd", "controls": "one_off, random_tiers", "model.path": "lab"}
    wanted |= {"curriculum.sft.epochs": "2", "curriculum.sft.batch_size": "128", "compute.workers": "1"}
    assert wanted.items() <= parent.data.params.items()
    assert not [name for name in parent.data.params if name.startswith(("tracking", "secrets"))]
    assert sorted(file.path for file in client.list_artifacts(parent.info.run_id)) == ["loss.png", "report.html"]
    assert (folder / "mlartifacts" / parent.info.run_id / "artifacts" / "report.html").read_text() == "<html></html>"

    tags = {name: value for name, value in first.data.tags.items() if not name.endswith((".record", ".user"))}
    assert tags == {
        "mlflow.parentRunId": parent.info.run_id,
        "mlflow.runName": "main/1 tier-1",
        "phasetune.run": "study-0001",
        "phasetune.kind": "phase",
        "phasetune.key": "key-main-1-17",
        "phasetune.curriculum": "main",
        "phasetune.index": "1",
        "phasetune.seed": "17",
        "phasetune.method": "sft",
        "phasetune.control": "false",
        "phasetune.uri": "/store/phases/key-main-1-17",
    }
    assert control.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert control.data.tags["phasetune.kind"] == "control"
    assert control.data.tags["against_main.metric"] == "verifiable.accuracy"
    assert control.data.metrics["against_main.difference"] == 0.25
    assert control.data.metrics["verifiable.accuracy"] == 0.25
    assert runs["one_off/1 all-tiers"].data.tags["mlflow.parentRunId"] == control.info.run_id
    assert runs["one_off/1 all-tiers"].data.tags["phasetune.control"] == "true"


def test_datasets_and_checkpoints_are_references(folder: Path) -> None:
    info = opened(run_info())
    assert sync(info, write_records(info, folder), SUMMARY, [])
    runs = by_name(info)
    inputs = {name: [entry.dataset for entry in run.inputs.dataset_inputs] for name, run in runs.items()}
    assert sorted(dataset.name for dataset in inputs["one_off/1 all-tiers"]) == ["tier-1", "tier-2"]
    assert [dataset.name for dataset in inputs["random_tiers/1 random-1"]] == ["random-1"]
    assert [dataset.name for dataset in inputs["study"]] == ["lab://instructions"]
    (second,) = inputs["main/2 tier-2"]
    assert (second.name, json.loads(second.source)) == ("tier-2", {"uri": "/splits"})
    assert json.loads(second.profile) == {"tier": 2, "examples": 36, "tokens": 4000}
    assert second.digest in {dataset.digest for dataset in inputs["one_off/1 all-tiers"]}

    made = {model.tags["phasetune.key"]: model for model in models(info)}
    assert len(made) == 5
    model = made["key-main-1-17"]
    assert model.name == "study-main-1-key-main"
    assert model.status.value == "READY"
    assert model.source_run_id == runs["main/1 tier-1"].info.run_id
    assert model.tags["phasetune.uri"] == "/store/phases/key-main-1-17/model"
    assert model.params["learning_rate"] == "0.001"
    assert {(metric.key, metric.value) for metric in model.metrics} >= {("verifiable.accuracy", 0.25)}
    assert [output.model_id for output in runs["main/1 tier-1"].outputs.model_outputs] == [model.model_id]
    assert not list(folder.rglob("*.safetensors"))


def test_a_second_sync_changes_nothing(folder: Path) -> None:
    info = opened(run_info())
    records = write_records(info, folder)
    assert sync(info, records, SUMMARY, report(folder))
    before = contents(folder)
    assert sync(info, records, SUMMARY, report(folder))
    assert contents(folder) == before
    # Without the digests in the tags everything is sent again, as after a copy that broke off: still no duplicate.
    client = connect(info.mlflow["uri"])
    for run in by_name(info).values():
        client.delete_tag(run.info.run_id, "phasetune.record")
    assert sync(info, records, SUMMARY, report(folder))
    assert contents(folder) == before


def test_an_evaluation_that_comes_later_is_added(folder: Path) -> None:
    info = opened(run_info(controls=[]))
    records = RunRecords(folder / "store", info.run)
    records.write(record("main", 1, "tier-1", [1]))
    assert sync(info, records, None, [])
    runs = by_name(info)
    assert sorted(runs) == ["main/1 tier-1", "study"]
    assert (runs["study"].info.status, runs["main/1 tier-1"].info.status) == ("RUNNING", "FINISHED")
    metrics = {"verifiable.accuracy": 0.5}
    records.write(StepRecord("evaluate.main.1.s17", "evaluations", "e", "/e", False, 1, 0, {"metrics": metrics}))
    assert sync(info, records, None, [])
    phase = by_name(info)["main/1 tier-1"]
    assert phase.data.metrics["verifiable.accuracy"] == 0.5
    assert len(curve(info, phase)) == 4


def test_a_reused_phase_says_where_it_is_from(folder: Path) -> None:
    info = opened(run_info(controls=[]))
    records = write_records(info, folder)
    assert sync(info, records, None, [])
    again = opened(run_info(controls=[]))
    again.run = "study-0002"
    again.mlflow = open_parent(again.parsed().tracking, again)
    records = RunRecords(folder / "store", again.run)
    reused = record("main", 1, "tier-1", [1])
    reused.reused = True
    records.write(reused)
    assert sync(again, records, None, [])
    phase = by_name(again)["main/1 tier-1"]
    assert phase.data.tags["reused_from"] == "key-main-1-17 /store/phases/key-main-1-17"
    assert phase.info.start_time == STARTED_MS
    assert len(models(again)) == 2
    origin = by_name(info)["main/1 tier-1"]
    assert phase.outputs.model_outputs[0].model_id == origin.outputs.model_outputs[0].model_id


def test_seeds_have_children_of_their_own(folder: Path) -> None:
    info = opened(run_info(seeds=[1, 2], controls=["one_off"]))
    assert sync(info, write_records(info, folder), SUMMARY, [])
    runs = by_name(info)
    assert len(runs) == 9
    assert runs["main/1 tier-1 (seed 2)"].data.tags["phasetune.key"] == "key-main-1-2"
    control = runs["control: one_off (seed 2)"]
    assert runs["one_off/1 all-tiers (seed 2)"].data.tags["mlflow.parentRunId"] == control.info.run_id


def test_long_curves_and_odd_values_arrive(folder: Path) -> None:
    info = opened(run_info(controls=[]))
    records = RunRecords(folder / "store", info.run)
    long = record("main", 1, "tier-1", [1], steps=600)
    long.info["learning"][0]["loss"] = math.nan
    long.info["settings"] = {f"setting_{number}": "x" * 7000 for number in range(120)}
    records.write(long)
    metrics = {"verifiable.accuracy": None, "loss.nats per token (%)": 1.0}
    records.write(StepRecord("evaluate.main.1.s17", "evaluations", "e", "/e", False, 1, 0, {"metrics": metrics}))
    assert sync(info, records, None, [])
    phase = by_name(info)["main/1 tier-1"]
    points = curve(info, phase)
    assert len(points) == 600
    assert math.isnan(points[0][2])
    assert len(phase.data.params) == 120
    assert len(phase.data.params["setting_0"]) == 6000
    assert phase.data.metrics["loss.nats per token ___"] == 1.0


def test_live_metrics_are_not_sent_twice_and_a_retry_continues(folder: Path) -> None:
    info = opened(run_info(controls=["one_off"]))
    points = learning(4)
    killed = PhaseStream(info, "all-tiers", "key-one_off-1-17", "one_off", 1, 17, patience=0.0)
    for point in points[:2]:
        killed.log({**point, "time": point["time"] - 100})
    killed.close()
    child = by_name(info)["one_off/1 all-tiers"]
    assert child.info.status == "RUNNING"
    assert curve(info, child) == [(1, 1893553401125, 2.375), (2, 1893553402125, 2.25)]
    end_parent(info, "KILLED")
    assert {run.info.status for run in by_name(info).values()} == {"KILLED"}

    retried = PhaseStream(info, "all-tiers", "key-one_off-1-17", "one_off", 1, 17, patience=0.0)
    for point in points:
        retried.log(point)
    retried.close()
    continued = by_name(info)["one_off/1 all-tiers"]
    assert (continued.info.run_id, continued.info.status) == (child.info.run_id, "RUNNING")
    expected = [(1, 1893553401125, 2.375), (2, 1893553402125, 2.25), (3, 1893553503125, 2.125), (4, 1893553504125, 2.0)]
    assert curve(info, continued) == expected

    records = RunRecords(folder / "store", info.run)
    records.write(record("one_off", 1, "all-tiers", [1, 2]))
    assert sync(info, records, SUMMARY, [])
    synced = by_name(info)["one_off/1 all-tiers"]
    assert (synced.info.run_id, synced.info.status) == (child.info.run_id, "FINISHED")
    assert curve(info, synced) == expected


def test_a_forked_process_logs_from_a_thread_of_its_own(folder: Path) -> None:
    info = opened(run_info())
    stream = PhaseStream(info, "tier-1", "k", "main", 1, 17, patience=0.0)
    stream.log(learning(1)[0])
    time.sleep(1.0)  # a fork amid a thread's work is not what is tested

    def log_more() -> None:
        stream.log(learning(2)[1])
        stream.close()

    process = multiprocessing.get_context("fork").Process(target=log_more)
    process.start()
    process.join(30)
    assert process.exitcode == 0
    stream.close()
    assert [step for step, _, _ in curve(info, by_name(info)["main/1 tier-1"])] == [1, 2]


def test_a_short_phase_leaves_its_curve_to_sync(folder: Path) -> None:
    info = opened(run_info())
    stream = PhaseStream(info, "tier-1", "k", "main", 1, 17)
    stream.log(learning(1)[0])
    stream.close()
    assert list(by_name(info)) == ["study"]


@pytest.mark.timeout(180)
def test_a_server_holds_the_same_and_catches_up(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    port = free_port()
    info = run_info(f"http://me:hidden@127.0.0.1:{port}")
    with pytest.warns(TrackingWarning, match="does not answer") as warned:
        opened(info)
    assert (len(warned), info.mlflow) == (1, {"uri": f"http://127.0.0.1:{port}", "run_id": ""})
    absent = PhaseStream(info, "tier-1", "key-main-1-17", "main", 1, 17, patience=0.0)
    absent.log(learning(1)[0])
    absent.close()
    records = write_records(info, tmp_path)
    with pytest.warns(TrackingWarning, match="does not answer"):
        assert not sync(info, records, SUMMARY, report(tmp_path))

    server = start_server(template, tmp_path, port)
    try:
        assert sync(info, records, SUMMARY, report(tmp_path))
        check_whole(info)
        parent = by_name(info)["study"]
        names = [file.path for file in connect(info.mlflow["uri"]).list_artifacts(parent.info.run_id)]
        assert sorted(names) == ["loss.png", "report.html"]
        before = contents(tmp_path, "server.db")
        assert sync(info, records, SUMMARY, report(tmp_path))
        assert contents(tmp_path, "server.db") == before
        assert len(models(info)) == 5
        assert opened(info).mlflow["run_id"] == parent.info.run_id
        assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "hidden"
        assert b"hidden" not in (tmp_path / "server.db").read_bytes()
    finally:
        server.terminate()
        server.wait(20)
    with pytest.warns(TrackingWarning, match="not recorded"):
        end_parent(info, "FAILED")
    lost = PhaseStream(info, "tier-1", "key-main-1-17", "main", 1, 17, patience=0.0)
    with pytest.warns(TrackingWarning, match="live metrics"):
        lost.log(learning(1)[0])
        lost.close()
    lost.log(learning(1)[0])


def test_a_server_that_never_replies_counts_as_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        info = run_info(f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.warns(TrackingWarning, match="does not answer"):
            assert opened(info).mlflow["run_id"] == ""


def test_the_run_of_the_environment_is_the_parent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = connect(f"sqlite:///{folder}/mlflow.db")
    owned = client.create_run(client.create_experiment("phasetune"))
    monkeypatch.setenv("MLFLOW_RUN_ID", owned.info.run_id)
    info = opened(run_info(controls=[]))
    assert info.mlflow["run_id"] == owned.info.run_id
    monkeypatch.delenv("MLFLOW_RUN_ID")
    records = RunRecords(folder / "store", info.run)
    records.write(record("main", 1, "tier-1", [1]))
    assert sync(info, records, SUMMARY, [])
    end_parent(info, "FINISHED")
    parent = client.get_run(owned.info.run_id)
    assert (parent.data.tags["phasetune.attached"], parent.info.status) == ("true", "RUNNING")
    monkeypatch.setenv("MLFLOW_RUN_ID", "f" * 32)
    with pytest.raises(UserError, match="MLFLOW_RUN_ID names a run that is not there"):
        open_parent(info.parsed().tracking, info)


def test_a_deleted_experiment_is_named(folder: Path) -> None:
    client = connect(f"sqlite:///{folder}/mlflow.db")
    client.delete_experiment(client.create_experiment("phasetune"))
    with pytest.raises(UserError, match="mlflow experiments restore -x 1"):
        opened(run_info())


def test_what_is_no_database_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow.db").write_text("not a database, but long enough to look like a file of some kind" * 20)
    with pytest.raises(UserError, match="refuses the run"):
        opened(run_info())


def test_an_older_database_is_not_touched(folder: Path) -> None:
    with sqlite3.connect(folder / "mlflow.db") as database:
        database.execute("update alembic_version set version_num = '451aebb31d03'")
    with pytest.raises(UserError, match="mlflow db upgrade sqlite:///"):
        opened(run_info())


def test_tracking_that_is_off_does_nothing(tmp_path: Path) -> None:
    info = run_info()
    info.mlflow = open_parent(TrackingSpec(enabled=False), info)
    assert info.mlflow == {"uri": "", "run_id": ""}
    assert sync(info, RunRecords(tmp_path, info.run), None, [])
    end_parent(info, "FAILED")


def test_the_pages_are_served_on_this_machine_only(folder: Path) -> None:
    command = ui_command(TrackingSpec())
    assert command[1:4] == ["-m", "mlflow", "ui"]
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--backend-store-uri") + 1] == f"sqlite:///{folder}/mlflow.db"
    assert command[command.index("--default-artifact-root") + 1] == f"{folder}/mlartifacts"
    with pytest.raises(UserError, match="open http://host in a browser"):
        ui_command(TrackingSpec(uri="http://host"))
    with pytest.raises(UserError, match="there is no MLflow database"):
        ui_command(TrackingSpec(uri="sqlite:///other.db"))
