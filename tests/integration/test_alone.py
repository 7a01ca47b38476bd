"""Every stage on its own, on files, as a user calls it."""

from __future__ import annotations

import json
import re
import socket

import pyarrow.parquet as pq
import pytest
import yaml

LEDGER = ["rows_in", "expanded", "examples", "duplicates", "rejected", "unsampled", "held_out"]


def rows(path):
    return pq.read_table(path).to_pylist()


@pytest.fixture(scope="module")
def lab(new_place):
    """A folder with lab data, scored and split."""
    place = new_place("alone")
    place.run("lab", "lab", "--count", "120", "--seed", "3")
    (data,) = [path for path in (place.folder / "lab").glob("*.jsonl") if "instructions" in path.name]
    place.run("score", data, "--method", "column", "--held-out", "0.25", "--out", "scores")
    place.run("split", "scores/scores.parquet", "--tiers", "3", "--cut", "quantiles", "--out", "tiers")
    return place


def test_score_writes_scores_and_a_ledger(lab):
    ledger = json.loads((lab.folder / "scores" / "ledger.json").read_text())
    assert list(ledger) == LEDGER
    assert (ledger["rows_in"], ledger["examples"]) == (120, 120)
    scored = rows(lab.folder / "scores" / "scores.parquet")
    assert len(scored) == 120 - ledger["held_out"]
    assert all(row["difficulty"] == json.loads(row["fields"])["difficulty"] for row in scored)


def test_split_writes_tiers_of_equal_size_and_a_report(lab):
    tiers = [rows(lab.folder / "tiers" / f"tier-{tier}.parquet") for tier in (1, 2, 3)]
    assert sum(map(len, tiers)) == len(rows(lab.folder / "scores" / "scores.parquet"))
    assert max(map(len, tiers)) - min(map(len, tiers)) <= 1
    assert max(row["difficulty"] for row in tiers[0]) < min(row["difficulty"] for row in tiers[1])
    report = json.loads((lab.folder / "tiers" / "split_report.json").read_text())
    assert [tier["examples"] for tier in report["tiers"]] == [len(tier) for tier in tiers]
    assert len(report["cuts"]) == 2


def test_a_second_score_finds_the_first(lab):
    (data,) = (lab.folder / "lab").glob("instructions*.jsonl")
    before = (lab.folder / "scores" / "scores.parquet").stat().st_mtime_ns
    ended = lab.run("score", data, "--method", "column", "--held-out", "0.25", "--out", "scores")
    assert ended.stdout == "found scores/scores.parquet: same data, same scorer\n"
    assert (lab.folder / "scores" / "scores.parquet").stat().st_mtime_ns == before


def test_evaluate_measures_a_model_on_the_split_s_held_out_part(lab):
    out = lab.run("evaluate", "tiers/held_out.parquet", "--out", "measured", "--max-new-tokens", "4").stdout
    metrics = json.loads((lab.folder / "measured" / "metrics.json").read_text())["metrics"]
    for name in ("loss.nats_per_token", "loss.tier_1.nats_per_token", "verifiable.accuracy"):
        assert metrics[f"{name}.low"] <= metrics[name] <= metrics[f"{name}.high"]
        assert f"{name} " in out
    assert len(rows(lab.folder / "measured" / "examples.parquet")) == len(rows(lab.folder / "tiers/held_out.parquet"))


def test_the_stages_one_after_another_are_a_run(lab):
    lab.run("train", "tiers/tier-1.parquet", "--set", "epochs=1", "--set", "learning_rate=2e-3", "--out", "first")
    further = ("--model", "first/model", "--set", "epochs=1", "--workers", "2")  # which brings Ray with it
    lab.run("train", "tiers/tier-2.parquet", *further, "--out", "second")
    lab.run("evaluate", "tiers/held_out.parquet", "--model", "second/model", "--out", "end", "--max-new-tokens", "4")
    assert json.loads((lab.folder / "second" / "phase.json").read_text())["model"] == str(lab.folder / "first/model")
    assert json.loads((lab.folder / "end" / "metrics.json").read_text())["metrics"]["loss.nats_per_token"] > 0


def test_a_phase_of_another_method_trains_alone(lab):
    lab.run("score", "lab://preferences?count=80", "--method", "column", "--out", "pairs")
    settings = ["--set", "learning_rate=1e-4", "--set", "batch_size=16"]
    out = lab.run("train", "pairs/scores.parquet", "--method", "dpo", *settings, "--out", "preferred").stdout
    assert "steps, " in out
    phase = json.loads((lab.folder / "preferred" / "phase.json").read_text())
    assert (phase["method"], phase["settings"]["loss"], phase["settings"]["batch_size"]) == ("dpo", "sigmoid_norm", 16)
    assert phase["steps"] == -(-phase["examples"] // 16)
    assert (lab.folder / "preferred" / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("method", ["ifd", pytest.param("loss", marks=[pytest.mark.proof, pytest.mark.soak])])
def test_a_model_scores(lab, method):
    (data,) = (lab.folder / "lab").glob("instructions*.jsonl")
    lab.run("score", data, "--method", method, "--out", method)
    held_out = json.loads((lab.folder / method / "ledger.json").read_text())["held_out"]
    scored = rows(lab.folder / method / "scores.parquet")
    assert len(scored) == 120 - held_out  # the wordings that are kept for a test of their own
    assert all(row["difficulty"] > 0 for row in scored)
    about = json.loads((lab.folder / method / "scorer.json").read_text())
    assert (about["method"], about["model"]) == (method, "lab")


PUBLIC = [
    ("self_instruct_seed_tasks.jsonl", 175, 0),
    ("alpaca_gpt4_difficulty_stage3.jsonl", 6889, 9),
]
FURTHER = [
    ("cherry_alpaca_ifd_5_percent.json", 3111, 0),
    ("gsm8k_test.jsonl", 1319, 0),
    ("adversarial_qa_context.jsonl", 200, 0),
]


@pytest.mark.parametrize(
    ("name", "rows_in", "rejected"),
    [*PUBLIC, *(pytest.param(*one, marks=[pytest.mark.proof, pytest.mark.soak]) for one in FURTHER)],
)
def test_public_data_is_read_scored_and_split(place, shared_data, name, rows_in, rejected):
    place.run("score", shared_data / name, "--method", "length", "--out", "scores")
    ledger = json.loads((place.folder / "scores" / "ledger.json").read_text())
    assert (ledger["rows_in"], ledger["rejected"]) == (rows_in, rejected)
    assert rows_in + ledger["expanded"] == ledger["examples"] + ledger["duplicates"] + rejected
    place.run("split", "scores/scores.parquet", "--tiers", "4", "--cut", "tokens", "--out", "tiers")
    report = json.loads((place.folder / "tiers" / "split_report.json").read_text())
    assert sum(tier["examples"] for tier in report["tiers"]) == ledger["examples"]
    shares = [tier["tokens"] / report["tokens"] for tier in report["tiers"]]
    assert all(0.15 < share < 0.35 for share in shares)


def test_several_files_are_one_data_set(place, shared_data):
    files = [shared_data / "self_instruct_seed_tasks.jsonl", shared_data / "gsm8k_test.jsonl"]
    place.run("score", *files, "--method", "length", "--out", "scores")
    assert json.loads((place.folder / "scores" / "ledger.json").read_text())["rows_in"] == 175 + 1319
    assert len(json.loads((place.folder / "scores" / "sources.json").read_text())) == 2


def test_report_writes_the_page_again(full, tmp_path):
    page = full.folder / "runs" / "small" / "report.html"
    before = json.loads((full.folder / "runs" / "small" / "summary.json").read_text())
    page.unlink()
    out = full.run("report", "runs/small").stdout
    assert page.exists()
    assert before["verdict"] in out
    assert full.summary()["phases"] == before["phases"]


def test_validate_says_that_a_spec_is_good(full):
    assert full.run("validate", "small.yaml").stdout == "small.yaml is valid: small\n"


def test_compile_refuses_and_allows_places_of_this_machine(place):
    spec = place.spec()
    refused = place.run("compile", spec, code=2).stderr
    assert "store: " in refused and "tracking.uri: sqlite:///mlflow.db" in refused and "--allow-local" in refused
    assert not (place.folder / "pipeline.yaml").exists()
    place.run("compile", spec, "--allow-local", "-o", "local.yaml")
    assert "prepare" in (place.folder / "local.yaml").read_text()


def planned(out):
    """The rows of the plan's table of phases: curriculum, phase, key, method, tokens, steps, memory, time, stored."""
    lines = out.split("phases and controls")[1].splitlines()[2:]
    return [re.split(r"\s{2,}", line.strip()) for line in lines if re.match(r"\S+ .*(yes|no)\s*$", line)]


def test_a_plan_before_there_are_scores(place):
    out = place.run("plan", place.spec({"controls": ["one_off"]})).stdout
    assert [row[:3] + row[-1:] for row in planned(out)] == [
        ["main", "1 tier-1", "after scoring", "no"],
        ["main", "2 tier-2", "after scoring", "no"],
        ["main", "3 tier-3", "after scoring", "no"],
        ["one_off", "1 all-tiers", "after scoring", "no"],
    ]
    assert "4 phases, 0 in the store" in out
    assert not (place.folder / "runs").exists()


def test_a_plan_after_the_run_says_what_it_did(full):
    summary = full.summary()
    phases = [*summary["phases"], *(phase for control in summary["controls"] for phase in control["phases"])]
    rows = planned(full.run("plan", "small.yaml").stdout)
    assert [row[:6] + row[7:] for row in rows] == [
        [
            phase["curriculum"],
            f"{phase['index']} {phase['name']}",
            phase["key"][:12],
            "sft",
            f"{phase['tokens']:,}",
            str(phase["steps"]),
            "-",
            "yes",
        ]
        for phase in phases
    ]


def test_the_plan_s_spec_is_the_same_run(full, tmp_path):
    out = full.run("plan", "small.yaml").stdout
    text = out.split("before the phases")[0]
    assert [phase["name"] for phase in yaml.safe_load(text)["curriculum"]["phases"]] == ["tier-1", "tier-2", "tier-3"]
    (tmp_path / "resolved.yaml").write_text(text)
    again = full.run("plan", tmp_path / "resolved.yaml").stdout
    assert planned(again) == planned(out)
    assert full.run("validate", tmp_path / "resolved.yaml").stdout.endswith("is valid: small\n")


def test_a_port_in_use(full):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        said = full.run("ui", "runs/small", "--port", str(port), code=1).stderr
    assert said.startswith(f"error: port {port} is in use")
    assert f"--port {port + 1}" in said
    assert "Traceback" not in said


def test_a_plan_of_another_learning_rate_shares_the_tiers_and_no_phase(full):
    out = full.run("plan", "small.yaml", "--set", "curriculum.sft.learning_rate=3e-3").stdout
    assert {row[-1] for row in planned(out)} == {"no"}
    assert "13 phases, 0 in the store; to train: 11 phases" in out
