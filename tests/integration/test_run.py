"""One spec from its data to its report, and what a second run finds."""

from __future__ import annotations

import json

import pytest

SUMMARY = {
    "run", "spec_digest", "verdict", "phases", "controls", "base", "data", "timing", "mlflow",
}  # fmt: skip
PHASE = {
    "name", "curriculum", "index", "method", "key", "parent_key", "tier", "examples", "tokens", "steps", "seconds",
    "reused", "metrics",
}  # fmt: skip
LEDGER = {"rows_in", "expanded", "examples", "duplicates", "rejected", "unsampled", "held_out"}


@pytest.fixture(scope="module")
def summary(full):
    return full.summary()


@pytest.fixture(scope="module")
def controls(summary):
    return {control["name"]: control for control in summary["controls"]}


def total(phases, name):
    return sum(phase[name] for phase in phases)


def all_phases(summary):
    return [*summary["phases"], *(phase for control in summary["controls"] for phase in control["phases"])]


def test_the_fixed_names(summary):
    assert summary.keys() >= SUMMARY
    assert summary["data"].keys() == LEDGER
    assert summary["base"].keys() == {"metrics"}
    assert summary["mlflow"].keys() == {"uri", "run_id"}
    assert all(phase.keys() >= PHASE for phase in all_phases(summary))
    assert all(control.keys() >= {"name", "phases", "metrics", "against_main"} for control in summary["controls"])
    assert all(
        control["against_main"].keys() >= {"metric", "difference", "low", "high", "p"}
        for control in summary["controls"]
    )
    assert all(item.keys() >= {"step", "seconds", "overhead_seconds"} for item in summary["timing"])


def test_nothing_is_missing(summary):
    assert summary["complete"] is True
    assert summary["missing"] == []


def test_the_phases_and_controls(summary, controls):
    assert [phase["name"] for phase in summary["phases"]] == ["tier-1", "tier-2", "tier-3"]
    assert [phase["index"] for phase in summary["phases"]] == [1, 2, 3]
    assert [phase["tier"] for phase in summary["phases"]] == [1, 2, 3]
    assert {phase["curriculum"] for phase in summary["phases"]} == {"main"}
    assert {phase["method"] for phase in summary["phases"]} == {"sft"}
    assert {name: len(control["phases"]) for name, control in controls.items()} == {
        "one_off": 1,
        "random_tiers": 3,
        "hardest_only": 1,
        "only_1_2": 2,
        "one_off_restarts": 3,
    }


def test_a_phase_starts_from_the_one_before_it(summary):
    first, second, third = summary["phases"]
    assert second["parent_key"] == first["key"]
    assert third["parent_key"] == second["key"]


def test_the_controls_see_as_much_as_the_main_run(summary, controls):
    tokens, steps = total(summary["phases"], "tokens"), total(summary["phases"], "steps")
    for name in ("one_off", "random_tiers", "one_off_restarts"):
        assert total(controls[name]["phases"], "tokens") == tokens
        assert abs(total(controls[name]["phases"], "steps") - steps) <= 3
        assert controls[name]["against_main"]["tokens_difference"] == 0


def test_the_controls_on_some_tiers_see_those(summary, controls):
    tokens = [phase["tokens"] for phase in summary["phases"]]
    assert [phase["tokens"] for phase in controls["hardest_only"]["phases"]] == tokens[2:]
    assert [phase["tokens"] for phase in controls["only_1_2"]["phases"]] == tokens[:2]


def test_equal_phases_are_trained_once(summary, controls):
    keys = [phase["key"] for phase in summary["phases"]]
    assert [phase["key"] for phase in controls["only_1_2"]["phases"]] == keys[:2]
    assert len({phase["key"] for phase in all_phases(summary)}) == 11
    assert sum(not phase["reused"] for phase in all_phases(summary)) == 11


def test_every_metric_has_its_interval(summary):
    names = {"loss.nats_per_token", "verifiable.accuracy"}
    names |= {f"loss.tier_{tier}.nats_per_token" for tier in (1, 2, 3)}
    names |= {f"verifiable.tier_{tier}.accuracy" for tier in (1, 2, 3)}
    for metrics in (summary["base"]["metrics"], *(phase["metrics"] for phase in all_phases(summary))):
        assert metrics.keys() >= {name + end for name in names for end in ("", ".low", ".high")}
        assert all(metrics[f"{name}.low"] <= metrics[name] <= metrics[f"{name}.high"] for name in names)


def test_training_teaches(summary, controls):
    before = summary["base"]["metrics"]
    after = controls["one_off"]["metrics"]
    assert before["verifiable.accuracy"] <= 0.05
    assert after["verifiable.accuracy"] >= 0.25
    assert after["loss.nats_per_token"] < before["loss.nats_per_token"]


def test_the_ledger_closes(summary):
    data = summary["data"]
    assert data["rows_in"] == 240
    left = data["examples"] + data["duplicates"] + data["rejected"] + data["unsampled"]
    assert data["rows_in"] + data["expanded"] == left
    assert 40 <= data["held_out"] <= 80


def test_every_example_is_in_one_tier(summary):
    assert total(summary["phases"], "examples") == summary["data"]["examples"] - summary["data"]["held_out"]


def test_the_store_holds_every_result(full, summary):
    entries = full.entries()
    assert {f"phases/{phase['key']}" for phase in all_phases(summary)} <= entries
    count = {kind: sum(entry.startswith(f"{kind}/") for entry in entries) for kind in ("scores", "splits", "phases")}
    assert count == {"scores": 1, "splits": 1, "phases": 11}
    assert sum(entry.startswith("evaluations/") for entry in entries) == 12
    assert full.weights().keys() == {phase["key"] for phase in all_phases(summary)}
    assert not list((full.folder / "runs" / "store" / ".staging").iterdir())


def test_a_model_is_a_folder_that_transformers_reads(full, summary):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = full.folder / "runs" / "store" / "phases" / summary["phases"][2]["key"] / "model"
    assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "llama"
    assert AutoTokenizer.from_pretrained(folder).chat_template


def test_the_verdict_says_what_was_compared(summary):
    assert summary["verdict"].startswith("3 phases, ascending: held-out accuracy ")
    assert "one-off at equal compute" in summary["verdict"]
    assert summary["verdict"].endswith("One seed: luck in training is not excluded.")


def test_every_step_says_its_time(summary):
    steps = {item["step"] for item in summary["timing"]}
    assert steps >= {"prepare", "score", "split.s5", "evaluate.base", "train.main.1.s5", "evaluate.one_off.1.s5"}
    assert all(0 <= item["overhead_seconds"] <= item["seconds"] for item in summary["timing"])


def test_the_report_is_one_file(full):
    page = (full.folder / "runs" / "small" / "report.html").read_text(encoding="utf-8")
    assert full.summary()["verdict"][:40] in page
    assert "data:image/png;base64," in page
    assert 'src="http' not in page
    assert "<script src" not in page


def test_nothing_but_the_results_is_left_in_the_folder(full):
    assert {path.name for path in (full.folder / "runs" / "small").iterdir()} == {
        "plots", "report.html", "run.json", "run.log", "summary.json",
    }  # fmt: skip


@pytest.fixture(scope="module")
def mlflow_runs(full, summary):
    """The runs of the run that `summary` is of, by name."""
    from mlflow import MlflowClient

    client = MlflowClient(summary["mlflow"]["uri"])
    experiment = client.get_experiment_by_name("phasetune")
    runs = client.search_runs([experiment.experiment_id], f"tags.`phasetune.run` = '{summary['run']}'")
    return client, {run.info.run_name: run for run in runs}


def test_mlflow_has_a_child_for_every_phase_and_control(mlflow_runs):
    _, runs = mlflow_runs
    assert set(runs) == {
        "small", "main/1 tier-1", "main/2 tier-2", "main/3 tier-3",
        "control: one_off", "one_off/1 all-tiers",
        "control: random_tiers", "random_tiers/1 random-1", "random_tiers/2 random-2", "random_tiers/3 random-3",
        "control: hardest_only", "hardest_only/1 tier-3",
        "control: only_1_2", "only_1_2/1 tier-1", "only_1_2/2 tier-2",
        "control: one_off_restarts",
        "one_off_restarts/1 mix-1", "one_off_restarts/2 mix-2", "one_off_restarts/3 mix-3",
    }  # fmt: skip
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    parent = runs["small"].info.run_id
    assert runs["main/1 tier-1"].data.tags["mlflow.parentRunId"] == parent
    assert runs["one_off/1 all-tiers"].data.tags["mlflow.parentRunId"] == runs["control: one_off"].info.run_id


def test_mlflow_has_the_metrics_by_step(mlflow_runs, controls):
    client, runs = mlflow_runs
    history = client.get_metric_history(runs["one_off/1 all-tiers"].info.run_id, "train/loss")
    steps = controls["one_off"]["phases"][0]["steps"]
    assert [point.step for point in sorted(history, key=lambda point: point.step)] == list(range(1, steps + 1))


def test_mlflow_has_the_final_metrics_and_parameters_on_the_parent(mlflow_runs, summary):
    parent = mlflow_runs[1]["small"]
    assert parent.info.run_id == summary["mlflow"]["run_id"]
    assert parent.data.metrics["verifiable.accuracy"] == summary["phases"][-1]["metrics"]["verifiable.accuracy"]
    assert parent.data.params["curriculum.order"] == "ascending"
    assert parent.data.params["curriculum.sft.learning_rate"] == "0.002"
    assert parent.data.tags["phasetune.verdict"] == summary["verdict"]
    assert [item.dataset.name for item in parent.inputs.dataset_inputs] == ["lab://instructions?count=240"]


def test_mlflow_has_the_report_the_plots_and_the_models(mlflow_runs, summary):
    client, runs = mlflow_runs
    artifacts = {item.path for item in client.list_artifacts(summary["mlflow"]["run_id"])}
    assert artifacts >= {"report.html", "summary.json", "learning.png", "difficulty.png", "controls.png"}
    models = client.search_logged_models([runs["small"].info.experiment_id])
    assert len(models) == 11  # equal phases share theirs


TRAP = """import os, pathlib
pathlib.Path(os.environ["TRAP"]).touch()
raise ImportError("a step that found its result imported this")
"""


@pytest.fixture(scope="module")
def again(full, summary):
    """The same spec a second time, with packages in the way of torch, transformers, trl and ray that note an import."""
    before = full.entries()
    packages = full.folder / "packages"
    for name in ("torch", "transformers", "trl", "ray"):
        (packages / name).mkdir(parents=True)
        (packages / name / "__init__.py").write_text(TRAP)
    full.run("run", "small.yaml", PYTHONPATH=str(packages), TRAP=str(full.folder / "imported"))
    return before, full.summary()


def test_a_second_run_finds_everything(full, summary, again):
    before, second = again
    assert full.entries() == before
    assert all(phase["reused"] for phase in all_phases(second))
    assert {item["step"]: item["reused"] for item in second["timing"] if not item["reused"]} == {"report": False}
    assert second["run"] != summary["run"]
    assert second["verdict"] == summary["verdict"]
    assert [phase["metrics"] for phase in all_phases(second)] == [phase["metrics"] for phase in all_phases(summary)]


def test_a_second_run_imports_nothing_heavy(full, again):
    assert not (full.folder / "imported").exists()


def test_another_name_and_tracking_find_everything(full, summary, again):
    before = full.entries()
    full.run("run", full.spec({"tracking": {"enabled": False}}, name="other"))
    assert full.entries() == before
    assert all(phase["reused"] for phase in full.summary("other")["phases"])
    assert [phase["key"] for phase in full.summary("other")["phases"]] == [phase["key"] for phase in summary["phases"]]
    assert full.summary("other")["mlflow"] == {"uri": "", "run_id": ""}


def test_another_learning_rate_trains_anew_on_the_same_tiers(full, again):
    before = full.entries()
    overrides = ("--set", "curriculum.sft.learning_rate=1e-3", "--set", "name=rate")
    full.run("run", full.spec({"tracking": {"enabled": False}}, name="other"), *overrides)
    added = full.entries() - before
    assert sorted(entry.split("/")[0] for entry in added) == ["evaluations"] * 3 + ["phases"] * 3
    reused = {item["step"] for item in full.summary("rate")["timing"] if item["reused"]}
    assert reused == {"prepare", "score", "split.s5", "evaluate.base"}


def test_a_verdict_over_seeds_says_so(place):
    changes = {"seeds": [1, 2], "controls": ["one_off"], "splitting": {"tiers": 2}, "tracking": {"enabled": False}}
    changes["data"] = {"train": [{"path": "lab://instructions?count=120"}], "held_out": {"fraction": 0.25}}
    place.run("run", place.spec(changes))
    summary = place.summary()
    assert [(phase["seed"], phase["index"]) for phase in summary["phases"]] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert len({phase["key"] for phase in summary["phases"]}) == 4
    assert "2 seeds" in summary["verdict"]
    assert "luck in training is not excluded" not in summary["verdict"]


def test_a_run_says_what_it_does(full, again):
    log = json.loads((full.folder / "runs" / "small" / "run.json").read_text())
    assert log["name"] == "small"
    assert log["versions"]["torch"]
