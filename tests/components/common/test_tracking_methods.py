"""What DPO and GRPO count and show, in a real MLflow store."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.common.examples import write_rows
from components.common.records import RunInfo, RunRecords, StepRecord, step_name
from components.common.spec import Spec
from components.common.tracking import open_parent, sync
from components.common.tracking_connect import connect
from components.common.tracking_runs import find_runs

LEDGER = {"rows_in": 90, "expanded": 0, "examples": 80, "duplicates": 6, "rejected": 4, "unsampled": 0, "held_out": 8}
THEN = [{"method": "dpo", "data": [{"path": "pairs"}]}, {"method": "grpo", "data": [{"path": "prompts"}]}]
POINT = {"step": 1, "loss": 0.5, "learning_rate": 1e-3, "grad_norm": 0.5, "tokens": 100, "time": 1893553501.125}
ROLLOUT = {"step": 1, "prompt": "1+1?", "completion": "<b>two", "exact": 1.0, "advantage": 0.5}


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def info(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunInfo:
    monkeypatch.chdir(tmp_path)
    values = {
        "name": "study",
        "data": {"train": [{"path": "lab://instructions"}]},
        "curriculum": {"then": THEN},
        "controls": [],
    }
    spec = Spec.model_validate(values)
    made = RunInfo(
        "study-1", "study", spec.model_dump(mode="json"), "d", "store", "runs/study", "2030-01-02T03:04:05+00:00"
    )
    made.mlflow = open_parent(spec.tracking, made)
    return made


def phase(folder: Path, index: int, method: str, **point: float) -> StepRecord:
    """The record of a phase whose entry lies in the folder."""
    about = {"name": method, "curriculum": "main", "index": index, "seed": 17, "method": method, "parent_key": "base"}
    counts = {"examples": 36, "tokens": 4000, "steps": 1, "truncated": 0, "tiers": [], "tier": None, "settings": {}}
    uri = folder / "store" / "phases" / f"key-{index}"
    uri.mkdir(parents=True)
    learning = {"learning": [{**POINT, **point}]}
    step = step_name("train", "main", index, 17)
    return StepRecord(step, "phases", f"key-{index}", str(uri), False, 9.5, 1.5, {**about, **counts, **learning})


def prepared(index: int, method: str) -> StepRecord:
    """The record of the data that a phase has of its own."""
    about = {"ledger": LEDGER, "sources": [{"path": f"source of {method}"}], "name": method}
    step = step_name("prepare", "main", index, 17)
    return StepRecord(step, "prepared", f"own-{index}", f"/own/{index}", False, 1, 0, about)


def test_what_dpo_and_grpo_count_and_show_arrives(info: RunInfo, tmp_path: Path) -> None:
    records = RunRecords(tmp_path / "store", info.run)
    dpo = phase(tmp_path, 4, "dpo", **{"rewards/margins": 0.25, "rewards/accuracies": 0.75})
    rewards = {"reward": 0.5, "rewards/my.module:f/mean": 0.5, "frac_reward_zero_std": 0.125, "kl": 0.01}
    grpo = phase(tmp_path, 5, "grpo", **rewards, **{"completions/mean_length": 7.5})
    turns = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "two"}]
    write_rows(Path(dpo.uri) / "pairs.parquet", [{"id": "a", "messages": turns, "rejected": "three"}])
    pq.write_table(pa.Table.from_pylist([ROLLOUT]), Path(grpo.uri) / "rollouts.parquet")
    for record in (dpo, grpo, prepared(4, "dpo"), prepared(5, "grpo")):
        records.write(record)
    assert sync(info, records, None, [])
    client = connect(info.mlflow["uri"])
    experiment = client.get_experiment_by_name("phasetune").experiment_id

    def runs() -> dict[str, Any]:
        return {run.info.run_name: run for run in find_runs(client, experiment, info.run)}

    def table(run: Any, name: str) -> dict[str, Any]:
        listed = json.loads(run.data.tags["mlflow.loggedArtifacts"])
        assert listed == [{"path": f"{name}.json", "type": "table"}]
        read = client.load_table(experiment, f"{name}.json", run_ids=[run.info.run_id])
        return {column: list(read[column]) for column in read.columns}

    first, second = runs()["main/4 dpo"], runs()["main/5 grpo"]
    assert first.data.metrics["train/rewards/margins"] == 0.25
    assert first.data.metrics["train/rewards/accuracies"] == 0.75
    (equal,) = client.get_metric_history(second.info.run_id, "train/groups_all_equal")
    assert (equal.step, equal.timestamp, equal.value) == (1, 1893553501125, 0.125)
    assert second.data.metrics["train/completions/mean_length"] == 7.5
    assert second.data.metrics["train/rewards/my.module:f/mean"] == 0.5
    assert not {"train/step", "train/time"} & set(second.data.metrics)
    assert [item.dataset.name for item in second.inputs.dataset_inputs] == ["data of grpo"]
    parent = runs()["study"]
    assert {item.dataset.name for item in parent.inputs.dataset_inputs} == {"source of dpo", "source of grpo"}
    assert parent.data.metrics["data.dpo.held_out"] == 8
    assert table(first, "pairs") == {"prompt": ["1+1?"], "chosen": ["two"], "rejected": ["three"]}
    assert table(second, "rollouts") == {name: [value] for name, value in ROLLOUT.items()}

    grpo.info["steps"] = 5  # the record has changed, so all of it is sent again
    records.write(grpo)
    assert sync(info, records, None, [])
    assert table(runs()["main/5 grpo"], "rollouts") == {name: [value] for name, value in ROLLOUT.items()}
    assert len(client.get_metric_history(second.info.run_id, "train/reward")) == 1
