"""Tracking against a real MLflow, whose store is an SQLite database."""

from __future__ import annotations

import json
import math
import multiprocessing
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from components.common.errors import UserError
from components.common.records import RunRecords, StepRecord
from components.common.spec import TrackingSpec
from components.common.tracking import PhaseStream, end_parent, open_parent, sync, ui_command
from components.common.tracking_connect import connect
from tests.components.common.tracked_runs import (
    LEDGER,
    STARTED_MS,
    SUMMARY,
    by_name,
    check_whole,
    contents,
    curve,
    learning,
    models,
    opened,
    record,
    report,
    run_info,
    write_records,
)

pytestmark = pytest.mark.usefixtures("mlflow_environment")


@pytest.fixture
def folder(mlflow_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    return tmp_path


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
