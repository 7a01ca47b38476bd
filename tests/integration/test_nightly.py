"""The compiled pipeline's tasks, run one after the other as Kubeflow's pods run them: tonight and tomorrow night.

One compiled pipeline serves every run of a schedule. Each run reads the data as they are then, and makes only what
they change.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.common.errors import DataError
from components.common.records import RunInfo, RunRecords
from components.common.spec import Spec
from pipelines.following import PLACEHOLDER, context_of, labels_of, record_name
from pipelines.phased import compile_pipeline
from pipelines.planning import make_plan


def rows(first: int, count: int, difficulty: float) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Say the number after {n}.", "completion": str(n + 1), "difficulty": difficulty}
        for n in range(first, first + count)
    ]


TONIGHT = [*rows(0, 24, 1.0), *rows(100, 24, 2.0), *rows(200, 24, 3.0)]
MORE = rows(300, 12, 3.4)


def write(file: Path, content: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    write(tmp_path / "rows.jsonl", TONIGHT)
    return Spec.model_validate(
        {
            "name": "nightly",
            "seed": 3,
            "data": {"train": [{"path": str(tmp_path / "rows.jsonl")}], "held_out": {"fraction": 0.2}},
            "scoring": {"method": "column"},
            "splitting": {"tiers": 3, "cut": "thresholds", "thresholds": [1.5, 2.5]},
            "curriculum": {"sft": {"epochs": 1, "batch_size": 8, "max_length": 64}},
            "controls": [],
            "evaluation": {"suites": ["loss"], "resamples": 100, "max_examples": 2},
            "tracking": {"enabled": False},
            "compute": {"threads": 1},
            "store": str(tmp_path / "store"),
        }
    )


@pytest.fixture
def pipeline(spec: Spec, tmp_path: Path) -> dict[str, Any]:
    """The compiled pipeline, as Kubeflow has it."""
    compile_pipeline(spec, tmp_path / "pipeline.yaml", allow_local=True)
    document, _ = yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text())
    return document


def run(pipeline: dict[str, Any], run_id: str, folder: Path) -> Exception | None:
    """Run a pipeline's tasks, as far as they come, and its exit handler in any case; returns why one failed."""
    groups = [part["dag"]["tasks"] for part in (pipeline["components"]["comp-exit-handler-1"], pipeline["root"])]
    waiting, outputs, failure = dict(groups[0]), {}, None
    try:
        while waiting:
            ready = [name for name, one in waiting.items() if not set(one.get("dependentTasks", [])) & set(waiting)]
            for name in ready:
                outputs[name] = call(pipeline, waiting.pop(name), outputs, run_id, folder)
    except Exception as error:
        failure = error
    call(pipeline, groups[1]["report"], outputs, run_id, folder)
    return failure


def call(pipeline: dict[str, Any], task: dict[str, Any], outputs: dict[str, str], run_id: str, folder: Path) -> str:
    """Call a task's component with its inputs, as Kubeflow's launcher does."""
    import importlib

    from kfp import dsl

    stages = {"prepare": "preparing", "score": "scoring", "split": "splitting", "train": "training",
              "evaluate": "evaluation", "report": "reporting"}  # fmt: skip
    name = task["componentRef"]["name"].removeprefix("comp-").rstrip("0123456789").rstrip("-")
    component = getattr(importlib.import_module(f"components.{stages[name.split('-')[0]]}.component"), name)
    given: dict[str, Any] = {}
    for key, value in task["inputs"]["parameters"].items():
        if "runtimeValue" in value:
            constant = value["runtimeValue"]["constant"]
            given[key] = constant.replace(PLACEHOLDER, run_id) if isinstance(constant, str) else int(constant)
        else:
            given[key] = outputs[value["taskOutputParameter"]["producerTask"]]
    artifacts = {"checkpoint": dsl.Model, "metrics": dsl.Metrics, "page": dsl.HTML}
    for key, kind in artifacts.items():
        if key in component.python_func.__annotations__:
            given[key] = kind(name=key, uri=str(folder / f"{key}-{run_id}"), metadata={})
    return str(component.python_func(**given))


def reused(pipeline: dict[str, Any], spec: Spec, run_id: str) -> dict[str, bool]:
    """Whether each step of a run found its result."""
    records = RunRecords(spec.store, f"nightly-{run_id}")
    found = {label: records.read(record_name(label)) for label in labels_of(pipeline).values()}
    return {label: record.reused for label, record in found.items() if record is not None}


def test_new_rows_change_the_key_of_their_own_tier_s_phase_alone(pipeline, spec, tmp_path):
    keys = []
    for night, content in enumerate((TONIGHT, [*TONIGHT, *MORE])):
        write(tmp_path / "rows.jsonl", content)
        outputs: dict[str, str] = {}
        for name in ("prepare", "score", "split"):
            task = pipeline["components"]["comp-exit-handler-1"]["dag"]["tasks"][name]
            outputs[name] = call(pipeline, task, outputs, f"night-{night}", tmp_path)
        keys.append([phase.key for phase in make_plan(spec).phases])
    assert None not in keys[0] + keys[1]
    assert [before == after for before, after in zip(*keys, strict=True)] == [True, True, False]


@pytest.mark.proof
def test_new_rows_of_the_hardest_tier_leave_the_other_phases_alone(pipeline, spec, tmp_path):
    assert run(pipeline, "night-1", tmp_path) is None
    assert not any(reused(pipeline, spec, "night-1").values())
    assert run(pipeline, "night-2", tmp_path) is None  # the data are the same
    again = reused(pipeline, spec, "night-2")
    again.pop("report")
    assert len(again) == 10 and all(again.values())
    write(tmp_path / "rows.jsonl", [*TONIGHT, *MORE])
    assert run(pipeline, "night-3", tmp_path) is None
    changed = reused(pipeline, spec, "night-3")
    assert {label: changed[label] for label in changed if label.startswith("train ")} == {
        "train main 1 tier-1 seed 3": True,
        "train main 2 tier-2 seed 3": True,
        "train main 3 tier-3 seed 3": False,
    }
    for label in ("prepare", "score", "split seed 3"):
        assert not changed[label]


def test_the_exit_handler_reports_a_run_that_failed(pipeline, spec, tmp_path):
    (tmp_path / "rows.jsonl").write_text("no rows at all\n" * 5)
    failure = run(pipeline, "night-1", tmp_path)
    assert isinstance(failure, DataError)
    page = (tmp_path / "page-night-1").read_text(encoding="utf-8")
    assert "The run FAILED: prepare, score, split.s3, evaluate.base" in page
    told = RunInfo.from_json(context_of(pipeline).replace(PLACEHOLDER, "night-1"))
    assert RunRecords(spec.store, told.run).info().started  # the report knows the run though its first step failed
