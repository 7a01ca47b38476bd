"""What a stage run alone leaves in its folder: its own result, whole, and nothing of an earlier call."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from components.common.errors import SpecError, UserError
from components.common.spec import Spec
from pipelines.alone import _scored, train_alone, whole_folder
from pipelines.compute_check import check_compute
from pipelines.plan_page import resolved_yaml

TIERS = ["tier-*.parquet", "held_out.parquet"]


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def fill(out: Path, *files: str) -> None:
    with whole_folder(out, TIERS, last="split_report.json") as folder:
        for name in files:
            (folder / name).write_text("new")


def test_files_of_an_earlier_call_go(tmp_path):
    fill(tmp_path / "t", "tier-1.parquet", "tier-2.parquet", "tier-3.parquet", "held_out.parquet", "split_report.json")
    fill(tmp_path / "t", "tier-1.parquet", "tier-2.parquet", "split_report.json")
    assert names(tmp_path / "t") == ["split_report.json", "tier-1.parquet", "tier-2.parquet"]


def test_files_that_are_not_the_command_s_stay(tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "notes.txt").write_text("mine")
    fill(tmp_path / "t", "tier-1.parquet", "split_report.json")
    assert names(tmp_path / "t") == ["notes.txt", "split_report.json", "tier-1.parquet"]


def test_a_call_that_fails_changes_nothing(tmp_path):
    fill(tmp_path / "t", "tier-1.parquet", "split_report.json")
    with pytest.raises(ValueError, match="no"), whole_folder(tmp_path / "t", TIERS, last="split_report.json") as folder:
        (folder / "tier-1.parquet").write_text("half")
        raise ValueError("no")
    assert (tmp_path / "t" / "tier-1.parquet").read_text() == "new"
    assert names(tmp_path) == ["t"]


def test_a_score_is_found_only_where_all_of_it_is(tmp_path):
    (tmp_path / "scorer.json").write_text(json.dumps({"key": "k", "files": ["scores.parquet"]}))
    assert not _scored(tmp_path, "k")
    (tmp_path / "scores.parquet").write_text("x")
    assert _scored(tmp_path, "k")
    assert not _scored(tmp_path, "another")


def spec(**parts) -> Spec:
    return Spec.model_validate({"name": "x", "data": {"train": [{"path": "x"}]}, **parts})


def test_more_workers_than_cores_are_refused():
    with pytest.raises(UserError, match="is 100, and this machine"):
        check_compute(spec(compute={"workers": 100}))
    check_compute(spec(compute={"workers": 2}))


def test_the_plan_shows_no_password():
    shown = resolved_yaml(spec(tracking={"uri": "http://ann:hunter2@mlflow:5000"}))
    assert "hunter2" not in shown
    assert "http://***@mlflow:5000" in shown


@pytest.mark.parametrize(
    ("settings", "method", "message"),
    [
        ([], "rlhf", "--method 'rlhf' is not known"),
        (["samples=4"], "dpo", "samples"),
        (["select=best(loss)"], "grpo", "no held-out part to select a checkpoint on"),
    ],
)
def test_a_phase_alone_that_cannot_be_is_refused_before_any_work(tmp_path, settings, method, message):
    (tmp_path / "tier-1.parquet").touch()
    with pytest.raises(SpecError, match=message):
        train_alone([tmp_path / "tier-1.parquet"], "lab", settings, {}, 1, tmp_path / "out", Console(), method)
    assert not (tmp_path / "out").exists()
