"""The quickstart: what the lab model learns, and that it knew something before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

SPEC = Path(__file__).resolve().parents[2] / "pipelines" / "specs" / "quickstart.yaml"
RUN = ("run", SPEC, "--set", "controls=[one_off]")
"""As it ships but for the three phases of the other control, which nothing here is about."""
TIERS = [f"verifiable.tier_{tier}.accuracy" for tier in (1, 2, 3)]

pytestmark = pytest.mark.proof


@pytest.fixture(scope="module")
def quickstart(new_place):
    place = new_place("quickstart")
    place.run(*RUN, timeout=580)
    return place


@pytest.fixture(scope="module")
def summary(quickstart):
    return quickstart.summary("quickstart")


@pytest.fixture(scope="module")
def one_off(summary):
    (control,) = [control for control in summary["controls"] if control["name"] == "one_off"]
    return control


def test_the_base_model_cannot_answer_yet(summary):
    assert max(summary["base"]["metrics"][tier] for tier in TIERS) <= 0.05


def test_all_at_once_reaches_the_lab_s_thresholds(one_off):
    easy, middle, hard = (one_off["metrics"][tier] for tier in TIERS)
    assert easy >= 0.65
    assert middle >= 0.40
    assert 0.10 <= hard <= 0.55
    assert easy - middle >= 0.08
    assert middle - hard >= 0.08


def test_the_difficulty_follows_the_steps_of_the_problem(quickstart):
    (split,) = (quickstart.folder / "runs" / "store" / "splits").iterdir()
    assert json.loads((split / "split_report.json").read_text())["spearman_difficulty_given"] > 0.3


@pytest.mark.soak
def test_the_same_training_of_random_weights_learns_little(quickstart, lab_model):
    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    set_seed(1)
    shutil.copytree(lab_model, quickstart.folder / "random")
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(lab_model)).save_pretrained(
        quickstart.folder / "random"
    )
    (split,) = (quickstart.folder / "runs" / "store" / "splits").iterdir()
    info = json.loads((quickstart.folder / "runs" / "quickstart" / "run.json").read_text())
    settings = [f"--set={name}={json.dumps(value)}" for name, value in info["spec"]["curriculum"]["sft"].items()]
    tiers = [split / f"tier-{tier}.parquet" for tier in (1, 2, 3)]
    quickstart.run("train", *tiers, *settings, "--model", "random", "--out", "trained", timeout=580)
    tokens = str(info["spec"]["evaluation"]["max_new_tokens"])
    model = ("--model", "trained/model", "--max-new-tokens", tokens)
    quickstart.run("evaluate", split / "held_out.parquet", *model, "--out", "measured", timeout=580)
    metrics = json.loads((quickstart.folder / "measured" / "metrics.json").read_text())["metrics"]
    assert metrics[TIERS[0]] <= 0.20


def test_a_second_run_finds_everything(quickstart, summary):
    before = quickstart.entries()
    quickstart.run(*RUN)
    assert quickstart.entries() == before
    again = quickstart.summary("quickstart")
    assert [item["step"] for item in again["timing"] if not item["reused"]] == ["report"]
    assert again["verdict"] == summary["verdict"]
