"""SFT, then DPO, then GRPO in one run: in small, and the ready spec in full."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.common.examples import read_examples
from components.common.records import RunRecords
from components.common.tracking_connect import connect
from components.common.tracking_runs import find_runs

SPEC = Path(__file__).resolve().parents[2] / "pipelines" / "specs" / "sft_dpo_rlvr.yaml"
SMALL = [
    "data.train.0.path=lab://instructions?count=300&families=pipeline&steps=2-4",
    "data.held_out.fraction=0.2",
    "curriculum.phases.1.data.0.path=lab://preferences?count=80&families=pipeline&steps=2-4&draw=1",
    "curriculum.phases.2.data.0.path=lab://instructions?count=80&families=pipeline&steps=2-4&draw=2",
    "curriculum.phases.2.steps=4",
    "curriculum.grpo.batch_size=4",
    "curriculum.grpo.samples=4",
    "evaluation.resamples=200",
    "compute.threads=1",
]


class Finished:
    """A finished run of the spec."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "runs" / "sft_dpo_rlvr"
        self.summary = json.loads((self.out / "summary.json").read_text(encoding="utf-8"))
        self.records = RunRecords(folder / "runs" / "store", self.summary["run"])


@pytest.fixture(scope="module")
def run(new_place):
    place = new_place("methods")
    place.run("run", SPEC, *(part for change in SMALL for part in ("--set", change)))
    return Finished(place.folder)


def check_what_every_run_has(run: Finished) -> None:
    """Phases of three methods, each beside the one before it, on examples that none of them saw."""
    summary = run.summary
    assert summary["complete"]
    assert [(phase["name"], phase["method"]) for phase in summary["phases"]] == [
        ("sft", "sft"), ("dpo", "dpo"), ("grpo", "grpo"),
    ]  # fmt: skip
    keys = [phase["key"] for phase in summary["phases"]]
    assert [phase["parent_key"] for phase in summary["phases"]][1:] == keys[:2]
    changes = {change["phase"]: change for change in summary["changes"] if change["metric"] == "verifiable.accuracy"}
    for before, after in (("sft", "dpo"), ("dpo", "grpo")):
        assert changes[after]["before"] == changes[before]["after"]
    for change in changes.values():
        assert change["low"] <= change["difference"] <= change["high"]
        assert change["difference"] == pytest.approx(change["after"] - change["before"])
    assert "GRPO: held-out accuracy" in summary["verdict"]
    held = list(read_examples(Path(run.records.read("prepare").uri) / "held_out.parquet"))
    for step in ("prepare.main.2.s1", "prepare.main.3.s1"):
        record = run.records.read(step)
        ledger = record.info["ledger"]
        own = list(read_examples(Path(record.uri) / "train.parquet"))
        assert len(own) + ledger["held_out"] == ledger["examples"] == ledger["rows_in"]
        assert ledger["held_out"] > 0
        assert not {example.group for example in own} & {example.group for example in held}
        assert not {example.prompt for example in own} & {example.prompt for example in held}


def test_three_methods_follow_each_other(run):
    check_what_every_run_has(run)
    seen = [phase["examples"] for phase in run.summary["phases"]]
    assert seen[2] == 16  # four steps of four prompts
    assert {row["step"] for row in run.summary["timing"]} == {
        "prepare", "score", "split.s1", "prepare.main.2.s1", "prepare.main.3.s1", "evaluate.base", "report",
        *(f"{what}.main.{index}.s1" for what in ("train", "evaluate") for index in (1, 2, 3)),
    }  # fmt: skip


def test_the_learning_of_each_method_is_in_the_records(run):
    dpo, grpo = (run.records.read(f"train.main.{index}.s1").info["learning"] for index in (2, 3))
    assert {"rewards/margins", "rewards/accuracies"} <= set(dpo[-1])
    assert len(grpo) == 4
    assert {"reward", "frac_reward_zero_std", "completions/mean_length"} <= set(grpo[-1])


def test_mlflow_holds_it(run):
    parent = run.summary["mlflow"]
    client = connect(parent["uri"])
    experiment = client.get_run(parent["run_id"]).info.experiment_id
    runs = {each.info.run_name: each for each in find_runs(client, experiment, run.summary["run"])}
    dpo, grpo = runs["main/2 dpo"], runs["main/3 grpo"]
    assert {"train/rewards/margins", "train/rewards/accuracies", "train/rewards/chosen"} <= set(dpo.data.metrics)
    assert {"train/reward", "train/groups_all_equal", "train/completions/mean_length"} <= set(grpo.data.metrics)
    table = json.loads(Path(client.download_artifacts(grpo.info.run_id, "rollouts.json")).read_text(encoding="utf-8"))
    assert {"step", "prompt", "completion", "verifier", "advantage"} <= set(table["columns"])
    assert len(table["data"]) >= 10
    assert [item.dataset.name for item in grpo.inputs.dataset_inputs] == ["data of grpo"]


def test_the_report_shows_it(run):
    page = (run.out / "report.html").read_text(encoding="utf-8")
    for heading in ("What each phase changed", "Data of the phases", "What the phases sampled"):
        assert heading in page
    assert "3. grpo (grpo): rollouts" in page


@pytest.mark.proof
@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_the_ready_spec_in_full(new_place):
    place = new_place("methods-in-full")
    place.run("run", SPEC, timeout=900)
    run = Finished(place.folder)
    check_what_every_run_has(run)
    change = {each["phase"]: each for each in run.summary["changes"] if each["metric"] == "verifiable.accuracy"}
    assert change["sft"]["low"] > 0.2
    assert change["grpo"]["n"] >= 300
    assert change["grpo"]["high"] > 0  # whatever it shows, it did not spoil what was learned
