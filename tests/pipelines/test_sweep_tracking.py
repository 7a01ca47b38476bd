"""A sweep in MLflow: its tree of runs in a real SQLite store, whatever becomes of the sweep or of MLflow."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import yaml

from components.common.errors import DataError, UserError
from components.common.tracking_connect import connect
from pipelines.sweep_spec import load_sweep
from pipelines.sweep_tracking import TRACKING_FILE
from tests.pipelines import sweep_world
from tests.pipelines.sweep_tracked import SPACE, Tracked

pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module", autouse=True)
def _environment():
    """MLflow's variables are put back, and the page, which takes a second, is not drawn: others look at it."""
    before = dict(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.sweep_results.write_page", lambda _, folder: (folder / "sweep.html").write_text("p"))
        yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def finished(scored_world, mlflow_template, tmp_path_factory):
    """A sweep that has been run once; tests look at it."""
    folder = tmp_path_factory.mktemp("finished")
    for kind in ("prepared", "scores"):
        shutil.copytree(scored_world.store.root / kind, folder / "store" / kind)
    shutil.copy(mlflow_template, folder / "mlflow.db")
    made = Tracked(sweep_world.World(folder), f"sqlite:///{folder}/mlflow.db")
    made.run()
    return made


@pytest.fixture
def tracked(world, mlflow_template):
    shutil.copy(mlflow_template, world.folder / "mlflow.db")
    return Tracked(world, f"sqlite:///{world.folder}/mlflow.db")


def parent_of(run):
    return run.data.tags["mlflow.parentRunId"]


ONE, TWO, THREE = "1: tiers 1, order 1", "2: tiers 2, order 1-2", "3: tiers 2, order 2-1"


def test_a_sweep_has_a_run_with_a_run_for_each_trial_and_each_phase_below(finished):
    (sweep,), trials, phases = finished.runs("sweep").values(), finished.runs("trial"), finished.runs("phase")
    assert set(trials) == {ONE, TWO, THREE}
    assert {parent_of(trial) for trial in trials.values()} == {sweep.info.run_id}
    assert {parent_of(phase) for phase in phases} == {trial.info.run_id for trial in trials.values()}
    assert sorted(phase.info.run_name for phase in phases) == [
        "main/1 tier-1", "main/1 tier-1", "main/1 tier-2", "main/2 tier-1", "main/2 tier-2",
    ]  # fmt: skip
    assert {run.info.status for run in [sweep, *trials.values(), *phases]} == {"FINISHED"}
    assert "warning" not in finished.said


def test_the_sweeps_run_shows_the_verdict_the_counts_and_the_table(finished):
    (sweep,) = finished.runs("sweep").values()
    written = json.loads((finished.folder / "sweep.json").read_text())
    assert sweep.data.tags["phasetune.verdict"] == written["verdict"]
    assert written["sentences"][0] in sweep.data.tags["mlflow.note.content"]
    assert sweep.data.metrics["phases_trained"] == sweep.data.metrics["phases_requested"] == 5
    assert sweep.data.metrics["trials"] == 3
    assert sweep.data.metrics["verifiable.accuracy"] == written["contest"]["candidates"][2]["value"]
    assert sweep.data.params["space.splitting.tiers"] == "1, 2"
    client = connect(finished.uri)
    files = {item.path for item in client.list_artifacts(sweep.info.run_id)}
    assert files == {"sweep.json", "sweep.html", "trials.json"}
    table = json.loads(Path(client.download_artifacts(sweep.info.run_id, "trials.json")).read_text())
    assert table["columns"][:4] == ["trial", "splitting.tiers", "curriculum.order", "verifiable.accuracy"]
    assert [row[0] for row in table["data"]] == [3, 2, 1]


def test_a_trial_has_flat_parameters_and_its_metrics_after_its_last_phase(finished):
    trial = finished.runs("trial")[THREE]
    wanted = {"tiers": "2", "order": "2-1", "scorer": "column", "methods": "sft", "seed": "5", "trial": "3",
              "epochs": "1", "batch_size": "16"}  # fmt: skip
    assert {name: trial.data.params.get(name) for name in wanted} == wanted
    assert float(trial.data.params["lr"]) > 0
    written = json.loads((finished.folder / "sweep.json").read_text())
    metrics = next(row["metrics"] for row in written["table"] if row["trial"] == 3)
    assert {name: trial.data.metrics[name] for name in metrics} == metrics
    assert trial.data.metrics["phases"] == 2
    assert trial.data.metrics["tokens"] == 180
    (point,) = connect(finished.uri).get_metric_history(trial.info.run_id, "verifiable.accuracy")
    assert point.step == 2


def test_a_phase_has_its_curve_and_its_evaluation(finished):
    last = next(phase for phase in finished.runs("phase") if phase.info.run_name == "main/2 tier-1")
    history = connect(finished.uri).get_metric_history(last.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 2.0), (2, 1.5)]
    assert last.data.metrics["verifiable.accuracy"] == finished.runs("trial")[THREE].data.metrics["verifiable.accuracy"]
    assert last.data.metrics["phase.tokens"] == 90
    assert last.data.params["epochs"] == "1"


def test_a_phase_is_told_its_trials_run_before_it_begins(finished):
    assert len(finished.hands.contexts) == 5
    for phase in finished.runs("phase"):
        told = finished.hands.contexts[phase.data.tags["phasetune.key"]]
        assert told["mlflow"] == {"uri": finished.uri, "run_id": parent_of(phase)}
        assert told["run"] == phase.data.tags["phasetune.run"]


def test_a_shared_phase_is_one_run_and_linked_from_the_other_trials(tracked):
    tracked.run(tracked.sweep({"splitting.tiers": [3], "curriculum.order": "permutations"}))
    phases, trials = tracked.runs("phase"), tracked.runs("trial")
    assert len({phase.data.tags["phasetune.key"] for phase in phases}) == len(phases) == 3 + 6 + 6
    linked = {run.data.tags["phasetune.reused.1"] for run in trials.values() if "phasetune.reused.1" in run.data.tags}
    firsts = {phase.info.run_id for phase in phases if phase.data.tags["phasetune.index"] == "1"}
    assert linked == firsts
    assert not any("phasetune.reused.3" in run.data.tags for run in trials.values())


def test_a_second_run_is_another_one_without_phases_and_links_to_the_first(tracked):
    tracked.run()
    before = {phase.info.run_id for phase in tracked.runs("phase")}
    tracked.run()
    phases = tracked.runs("phase")
    sweeps = list(tracked.runs("sweep").values())
    assert {phase.info.run_id for phase in phases} == before
    assert len(sweeps) == 2
    client = connect(tracked.uri)
    second = client.search_runs([sweeps[1].info.experiment_id], f"tags.mlflow.parentRunId = '{sweeps[1].info.run_id}'")
    assert len(second) == 3
    keys = {phase.info.run_id: phase.data.tags["phasetune.key"] for phase in phases}
    for trial in second:
        links = {name: run for name, run in trial.data.tags.items() if name.startswith("phasetune.reused.")}
        assert set(links) == {f"phasetune.reused.{place}" for place in range(1, int(trial.data.params["tiers"]) + 1)}
        assert set(links.values()) <= set(keys)


def test_a_phase_that_no_run_in_the_experiment_trained_is_linked_by_its_key(tracked):
    tracked.run(tracked.sweep(base={"tracking": {"enabled": False}}))
    tracked.run()
    trial = tracked.runs("trial")[ONE]
    written = json.loads((tracked.folder / "sweep.json").read_text())
    keys = next(row["keys"] for row in written["table"] if row["trial"] == 1)
    assert [trial.data.tags["phasetune.reused.1"]] == keys
    assert tracked.runs("phase") == []


def test_a_sweep_that_is_not_tracked_leaves_nothing(tracked):
    tracked.run(tracked.sweep(base={"tracking": {"enabled": False, "uri": tracked.uri, "experiment": "x"}}))
    assert tracked.runs("sweep") == {}
    assert not (tracked.folder / TRACKING_FILE).exists()


def stop_at(label, error):
    def trouble(task):
        if task.label == label:
            raise error

    return trouble


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), "KILLED"), (UserError("full", "free"), "FAILED")])
@pytest.mark.parametrize("folder", ["kept", "lost"])
def test_an_interrupted_sweep_goes_on_in_the_same_runs(tracked, error, status, folder):
    def trouble(task):
        if task.label == "train main 2 (tier-1)":
            raise error

    tracked.hands.trouble = trouble
    tracked.hands.wait = interrupted(tracked.hands)
    with pytest.raises(type(error)):
        tracked.run()
    (sweep,), trials = tracked.runs("sweep").values(), tracked.runs("trial")
    assert sweep.info.status == status
    assert trials[THREE].info.status == "KILLED"
    del tracked.hands.wait
    tracked.hands.trouble = lambda task: None
    if folder == "lost":
        (tracked.folder / TRACKING_FILE).unlink()
    tracked.run()
    (again,), after = tracked.runs("sweep").values(), tracked.runs("trial")
    assert again.info.run_id == sweep.info.run_id
    assert {name: run.info.run_id for name, run in after.items()}.items() >= {
        name: run.info.run_id for name, run in trials.items()
    }.items()
    phases = tracked.runs("phase")
    assert len(phases) == 5
    assert {run.info.status for run in [again, *after.values(), *phases]} == {"FINISHED"}
    history = connect(tracked.uri).get_metric_history(phases[0].info.run_id, "train/loss")
    assert len(history) == 2


def test_a_phase_that_ends_while_the_sweep_is_stopped_is_among_those_it_trained(tracked):
    plain = type(tracked.hands).wait

    def wait(seconds):
        ended = plain(tracked.hands, seconds)
        if ended[0].task.label == "train main 2 (tier-1)":
            tracked.hands._waiting.clear()
            raise KeyboardInterrupt
        return ended

    tracked.hands.wait = wait
    with pytest.raises(KeyboardInterrupt):
        tracked.run()
    del tracked.hands.wait
    tracked.run()
    phases = tracked.runs("phase")
    assert len(phases) == len({phase.data.tags["phasetune.key"] for phase in phases}) == 5
    assert {phase.info.status for phase in phases} == {"FINISHED"}
    last = next(phase for phase in phases if phase.info.run_name == "main/2 tier-1")
    assert last.data.metrics["verifiable.accuracy"] == tracked.runs("trial")[THREE].data.metrics["verifiable.accuracy"]


def interrupted(hands):
    """Lets what is no failure of the work through."""
    plain = type(hands).wait

    def wait(seconds):
        task = hands._waiting[0][0]
        try:
            hands.trouble(task)
        except (KeyboardInterrupt, UserError):
            hands._waiting.clear()
            raise
        return plain(hands, seconds)

    return wait


def test_trials_that_fail_are_failed_with_their_reason_and_the_others_finish(tracked):
    tracked.hands.trouble = stop_at("train main 2 (tier-1)", DataError("it diverged", "lower the rate"))
    tracked.run()
    (sweep,), trials = tracked.runs("sweep").values(), tracked.runs("trial")
    assert trials[THREE].info.status == "FAILED"
    assert "it diverged" in trials[THREE].data.tags["phasetune.reason"]
    assert {trials[ONE].info.status, trials[TWO].info.status, sweep.info.status} == {"FINISHED"}


def test_a_sweep_whose_trials_all_fail_is_failed(tracked):
    tracked.hands.trouble = stop_at("train main 1 (tier-1)", DataError("it diverged", "lower the rate"))
    tracked.run(tracked.sweep({"splitting.tiers": [1]}))
    (sweep,) = tracked.runs("sweep").values()
    assert sweep.info.status == "FAILED"


def test_a_spent_budget_ends_the_run_and_a_larger_one_goes_on_with_it(tracked):
    tracked.run(phases=2)
    (sweep,) = tracked.runs("sweep").values()
    assert sweep.info.status == "KILLED"
    tracked.run(tracked.sweep(budget={"phases": 200}))
    (again,) = tracked.runs("sweep").values()
    assert (again.info.run_id, again.info.status) == (sweep.info.run_id, "FINISHED")
    assert len(tracked.runs("phase")) == 5


def test_another_space_is_another_sweep(tracked):
    tracked.run(phases=2)
    tracked.run(tracked.sweep({**SPACE, "curriculum.sft.epochs": [1, 2]}))
    assert [run.info.status for run in tracked.runs("sweep").values()] == ["KILLED", "FINISHED"]


def test_a_merged_trial_is_named_by_the_one_that_it_turned_out_to_be(tracked):
    tracked.run(tracked.sweep({"splitting.tiers": [2], "curriculum.order": ["ascending", [1, 2]]}))
    trials = tracked.runs("trial")
    assert list(trials) == ["1: tiers 2, order ascending"]
    (trial,) = trials.values()
    assert json.loads(trial.data.tags["phasetune.merged"]) == [{"splitting.tiers": 2, "curriculum.order": [1, 2]}]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_that_is_away_costs_one_warning_and_the_next_run_sends_all(tracked):
    there, tracked.uri = tracked.uri, f"http://127.0.0.1:{free_port()}"
    tracked.run()
    assert tracked.said.count("warning") == 1
    assert f"MLflow does not answer at {tracked.uri}" in tracked.said
    assert "the same command sends the rest" in tracked.said
    assert (tracked.folder / "sweep.json").exists()
    tracked.uri = there  # the digest leaves the tracking out: the store that is there may be another one
    tracked.run()
    phases, trials = tracked.runs("phase"), tracked.runs("trial")
    assert len(phases) == 5
    assert {run.info.status for run in [*phases, *trials.values()]} == {"FINISHED"}
    assert not any(name.startswith("phasetune.reused") for run in trials.values() for name in run.data.tags)


def test_mlflow_that_breaks_in_the_middle_costs_one_warning_and_loses_nothing(tracked, monkeypatch):
    from mlflow import MlflowClient

    plain, broken = MlflowClient.create_run, []

    def create_run(self, *arguments, **more):
        if more["tags"]["phasetune.kind"] == "trial" and not broken:
            broken.append(True)
            raise ConnectionError("it went away [now]")
        return plain(self, *arguments, **more)

    monkeypatch.setattr(MlflowClient, "create_run", create_run)
    tracked.run()
    assert broken
    assert tracked.said.count("warning") == 1
    assert "(ConnectionError: it went away [now])" in tracked.said
    assert all(told["mlflow"]["run_id"] == "" for told in tracked.hands.contexts.values())
    assert len(tracked.runs("phase")) == 5
    assert {run.info.status for kind in ("sweep", "trial") for run in tracked.runs(kind).values()} == {"FINISHED"}
    assert json.loads((tracked.folder / TRACKING_FILE).read_text())["complete"]


def test_a_sweep_is_refused_for_a_malformed_address_before_it_starts(tracked):
    tracked.uri = "ftp://somewhere"
    with pytest.raises(UserError, match="no store that tracking can use"):
        tracked.run()


def test_a_given_run_is_the_parent_and_keeps_its_status(tracked, monkeypatch):
    client = connect(tracked.uri)
    given = client.create_run(client.create_experiment("x"), run_name="given")
    monkeypatch.setenv("MLFLOW_RUN_ID", given.info.run_id)
    tracked.run()
    after = client.get_run(given.info.run_id)
    assert after.info.status == "RUNNING"
    assert after.data.metrics["trials"] == 3
    assert {parent_of(trial) for trial in tracked.runs("trial").values()} == {given.info.run_id}


def test_a_sweep_that_is_sent_to_a_cluster_carries_no_password(world):
    sweep = world.sweep({"splitting.tiers": [1]})
    base = yaml.safe_load(sweep.base_file.read_text())
    base["tracking"] = {"uri": "http://user:hunter2@mlflow:5000"}
    sweep.base_file.write_text(yaml.safe_dump(base))
    text = load_sweep(sweep.file).to_json()
    assert "hunter2" not in text
    assert "http://***@mlflow:5000" in text
