"""Small sweeps of the real command: what is trained, what is merged, what Tune ends early, and what a rerun does."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import tempfile
import time
from itertools import permutations
from pathlib import Path

import psutil
import pytest
import yaml

BASE = {
    "data": {"train": [{"path": "lab://instructions?count=100", "name": "lab"}], "held_out": {"fraction": 0.3}},
    "splitting": {"tiers": 2, "cut": "quantiles"},
    "evaluation": {"max_new_tokens": 3, "resamples": 100},
    "tracking": {"enabled": False},
}
ORDERS = {"splitting.tiers": [1, 2, 3], "curriculum.order": "permutations"}
LOSS = {"metric": "loss.nats_per_token", "mode": "min"}
RATE = "curriculum.sft.learning_rate"


@pytest.fixture(scope="session")
def sweeps():
    """Writes a sweep over the small spec, runs it, and returns what sweep.json holds."""

    class Sweeps:
        def __init__(self, place):
            self.place = place

        def write(self, space, base=None, name="sweep", **more):
            self.place.spec({**BASE, **(base or {})}, "base")
            values = {"name": name, "base": "base.yaml", "space": space, **more}
            (self.place.folder / f"{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
            return f"{name}.yaml"

        def results(self, name="sweep"):
            return json.loads((self.place.folder / "runs" / name / "sweep.json").read_text())

        def run(self, space, base=None, name="sweep", code=0, **more):
            self.said = self.place.run("sweep", self.write(space, base, name, **more), code=code)
            return self.results(name)

    return Sweeps


@pytest.fixture
def sweep(sweeps, place):
    """Sweeps in a folder of the test's own."""
    return sweeps(place)


@pytest.fixture(scope="module")
def orders(sweeps, new_place):
    """A finished sweep over all orders of one to three tiers; its folder and its results."""
    made = sweeps(new_place("orders"))
    made.first = made.run(ORDERS)
    return made


@pytest.fixture
def copied(sweeps, orders, tmp_path):
    """The finished sweep's store in a folder of the test's own."""
    from dataclasses import replace

    shutil.copytree(orders.place.folder / "runs" / "store", tmp_path / "runs" / "store")
    return sweeps(replace(orders.place, folder=tmp_path))


def values(results):
    """The table without what a rerun may change."""
    return {json.dumps(row["params"]): (row["metrics"], row["keys"], row["state"]) for row in results["table"]}


def test_every_distinct_phase_is_trained_once(orders):
    found = orders.first
    assert (found["trials"], found["merged_trials"]) == (9, 0)
    assert (found["phases_requested"], found["phases_distinct"], found["phases_trained"]) == (23, 20, 20)
    assert found["phases_reused"] == 0
    assert len(orders.place.weights()) == 20
    asked = [row["params"] for row in found["table"]]
    every = [list(order) for tiers in (1, 2, 3) for order in permutations(range(1, tiers + 1))]
    assert sorted(params["curriculum.order"] for params in asked) == sorted(every)
    assert {row["state"] for row in found["table"]} == {"done"}
    tokens = {row["tokens"] for row in found["table"]}
    assert len(tokens) == 1  # the same data in every order


def test_a_second_run_trains_nothing_and_says_the_same(orders):
    again = orders.run(ORDERS)
    assert (again["phases_trained"], again["phases_reused"]) == (0, 20)
    assert values(again) == values(orders.first)
    assert again["verdict"] == orders.first["verdict"]
    assert "20 found in the store" in orders.said.stdout


def test_a_trial_is_the_run_of_its_spec_to_the_last_digit(orders):
    """Trained anew by `phasetune run` in a store of its own, with the sweep's number of threads."""
    row = next(row for row in orders.first["table"] if row["params"]["curriculum.order"] == [2, 1])
    changes = {"splitting": {"tiers": 2, "cut": "quantiles"}, "store": "runs/other"}
    curriculum = {
        "order": [2, 1],
        "sft": yaml.safe_load((orders.place.folder / "base.yaml").read_text())["curriculum"]["sft"],
    }
    orders.place.run("run", orders.place.spec({**BASE, **changes, "curriculum": curriculum}, "alone"))
    summary = orders.place.summary("alone")
    assert [phase["key"] for phase in summary["phases"]] == row["keys"]
    assert not any(phase["reused"] for phase in summary["phases"])
    assert summary["phases"][-1]["metrics"] == row["metrics"]


def test_a_plan_shows_what_is_shared_and_stored(orders):
    said = orders.place.run("plan", "sweep.yaml").stdout
    assert "9 trials, 0 of them another one" in said
    assert "23 phases asked for, 20 distinct, 20 stored, 0 to train" in said
    assert said.count("stored, 2 trials") == 3


def test_trials_that_mean_the_same_are_merged(copied):
    space = {"splitting.tiers": [1, 2, 3], "curriculum.order": ["descending", "ascending", [3, 2, 1], [1], [2, 1]]}
    found = copied.run(space)
    assert (found["trials"], found["merged_trials"]) == (5, 4)
    assert found["phases_trained"] == 0
    assert sorted(len(row["same_as"]) for row in found["table"]) == [0, 0, 1, 1, 2]


@pytest.mark.proof
@pytest.mark.soak
def test_a_random_search_draws_the_same_again(copied):
    rates = {"log_uniform": [1e-3, 3e-3]}
    space, search = {"curriculum.order": "permutations", RATE: rates}, {"method": "random", "trials": 2}
    first = copied.run(space, search=search)
    assert first["trials"] == 2
    assert first["phases_trained"] == first["phases_distinct"]
    again = copied.run(space, search=search)
    assert again["phases_trained"] == 0
    assert values(again) == values(first)


def merged(found):
    return [params for row in found["table"] for params in row["same_as"]]


@pytest.mark.proof
def test_optuna_is_proposed_the_same_again_after_an_interruption(copied, gone):
    """Ctrl-C while it works; what was proposed before is proposed first, and found stored."""
    space = {"curriculum.order": "permutations", RATE: {"log_uniform": [1e-3, 3e-3]}}
    file = copied.write(space, search={"method": "optuna", "trials": 6}, objective=LOSS)
    process = copied.place.start("sweep", file)
    proposed = copied.place.folder / "runs" / "sweep" / "proposed.jsonl"
    phases = copied.place.folder / "runs" / "store" / "phases"
    before = len(list(phases.iterdir()))
    until(process, lambda: proposed.exists() and len(list(phases.iterdir())) > before)
    working = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130
    assert err == "error: stopped\nremedy: finished phases are in the store: the same command goes on from there\n"
    assert "Traceback" not in out
    assert "phases asked for" in out  # a table of what is known
    assert gone(working, 15) == []
    known = [json.loads(line) for line in proposed.read_text().splitlines()[1:]]
    assert 1 <= len(known) <= 6
    copied.place.run("sweep", file)
    whole = [json.loads(line) for line in proposed.read_text().splitlines()[1:]]
    found = copied.results()
    assert all(params in whole for params in known)  # two are asked for at a time, in either order
    assert len(whole) == 6
    asked = [row["params"] for row in found["table"]]
    assert sorted(json.dumps(one, sort_keys=True) for one in [*asked, *merged(found)]) == sorted(
        json.dumps(one, sort_keys=True) for one in whole
    )
    assert {row["state"] for row in found["table"]} == {"done"}


@pytest.mark.proof
def test_asha_ends_trials_among_those_of_the_same_number_of_tiers(copied):
    """Every phase is in the store, but for evaluations: a trial that is ended gets no more of it than it asked for."""
    space = {"splitting.tiers": [2, 3], "curriculum.order": "permutations"}
    stop = {"scheduler": "asha", "grace_tokens": 300, "reduction": 2}
    found = copied.run(space, stop=stop, objective=LOSS)
    assert found["phases_trained"] == 0
    stopped = [row for row in found["table"] if row["state"] == "stopped"]
    assert 0 < len(stopped) < 8
    assert all(row["metrics"] == {} for row in stopped)
    for tiers in (2, 3):
        assert any(row["state"] == "done" for row in found["table"] if row["params"]["splitting.tiers"] == tiers)
    # A stopped trial's last phases are in the store, and were not even evaluated for it.
    evaluated = {entry.partition("/")[2] for entry in copied.place.entries() if entry.startswith("evaluations/")}
    assert len(evaluated) < 9 + 20


def test_seeds_repeat_the_promising_only(copied):
    found = copied.run(
        {"splitting.tiers": [1, 2], "curriculum.order": "permutations"},
        search={"seeds": 2, "promising": 2},
        objective=LOSS,
    )
    repeated = [row for row in found["table"] if len(row["by_seed"]) == 2]
    assert [row["trial"] for row in repeated] == [row["trial"] for row in found["table"][:2]]
    assert len(found["table"]) == 3
    assert found["contest"]["seeds"] == [5, 6]
    assert found["verdict"].startswith(("Winner: trial ", "No winner at this budget: trial "))
    assert "chosen from 3 trials" in found["verdict"]


@pytest.mark.proof
def test_a_budget_of_phases_ends_it_and_more_budget_goes_on(sweep):
    space = {"splitting.tiers": [2, 3], "curriculum.order": "permutations"}
    first = sweep.run(space, budget={"phases": 4}, slots=1)
    assert first["phases_trained"] == 4
    assert [row["state"] for row in first["table"]].count("done") == 2
    second = sweep.run(space, budget={"phases": 5}, slots=1)
    assert (second["phases_trained"], second["phases_reused"]) == (5, 4)


def test_a_budget_of_hours_that_is_spent_begins_nothing(sweep):
    found = sweep.run({"splitting.tiers": [1, 2]}, budget={"hours": 1e-6})
    assert found["phases_trained"] == 0
    assert found["verdict"] == "No trial came to a result."


@pytest.mark.proof
@pytest.mark.soak
def test_optimizers_that_are_carried_are_other_phases_and_controls_come_along(sweep):
    space = {"curriculum.sft.carry": ["none", "optimizer"], "controls": [["one_off"]]}
    found = sweep.run(space)
    assert {row["state"] for row in found["table"]} == {"done"}, found["table"]
    # Each trial has two phases and a control; the control of one phase carries nothing, and is shared.
    assert (found["phases_requested"], found["phases_distinct"]) == (6, len(sweep.place.weights()))
    assert found["phases_trained"] == found["phases_distinct"] in (5, 6)
    again = sweep.run(space)
    assert again["phases_trained"] == 0
    assert values(again) == values(found)


@pytest.mark.proof
def test_phases_that_follow_train_on_data_of_their_own(copied):
    rows = [json.dumps({"prompt": f"Say {number}.", "completion": str(number)}) for number in range(12)]
    (copied.place.folder / "more.jsonl").write_text("\n".join(rows) + "\n")
    then = [[{"method": "sft", "data": [{"path": "more.jsonl"}], "learning_rate": rate}] for rate in (1e-3, 1e-4)]
    found = copied.run({"curriculum.then": then})
    assert {row["state"] for row in found["table"]} == {"done"}, found["table"]
    assert (found["phases_distinct"], found["phases_reused"], found["phases_trained"]) == (4, 2, 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"space": {"splitting.teirs": [1]}}, "did you mean `splitting.tiers`?"),
        ({"space": {RATE: {"log_uniform": [1e-2, 1e-3]}}}, "the range 0.01 to 0.001 is empty"),
        ({"space": {"splitting.tiers": []}}, "space.splitting.tiers"),
        ({"objective": {"metric": "verifiable.speed"}}, "verifiable.accuracy"),
        ({"objective": {"on": "tier_3"}}, "trials of 1 tiers"),
        ({"objective": {"on": "tier_1"}}, "changes which examples are in that tier"),
        ({"space": {"seed": [1, 2]}}, "`search.seeds`"),
        ({"space": {"splitting.cut": ["nonsense"]}, "search": {"method": "optuna"}}, "splitting.cut=nonsense"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(sweep, change, said):
    file = sweep.write(change.pop("space", {"splitting.tiers": [1, 2]}), **change)
    ended = sweep.place.run("sweep", file, code=2)
    assert ended.stderr.startswith("error: ")
    assert "\nremedy: " in ended.stderr
    assert said in " ".join(ended.stderr.split())
    assert not (sweep.place.folder / "runs").exists()


def test_results_go_where_the_user_says_and_a_plan_then_tells_the_time(sweep):
    """The base spec names no threads, as shipped ones do: plan and slots must take the same."""
    base = {"splitting": {"tiers": 1}, "compute": {}}
    file = sweep.write({RATE: [1.0e-3, 2.0e-3]}, base)
    said = sweep.place.run("sweep", file, "--output-dir", "out/here").stdout
    folder = sweep.place.folder / "out" / "here"
    assert {"sweep.json", "sweep.html", "sweep.log"} <= {path.name for path in folder.iterdir()}
    assert json.loads((folder / "sweep.json").read_text())["phases_trained"] == 2
    assert "results  out/here/sweep.json" in said
    assert sorted(path.name for path in (sweep.place.folder / "runs").iterdir()) == ["store"]
    planned = sweep.place.run("plan", sweep.write({RATE: [1.0e-3, 3.0e-3]}, base), "--gpus", "2").stdout
    assert "2 phases asked for, 2 distinct, 1 stored, 1 to train" in planned
    assert re.search(r"^about \d+ s on 2 slots$", planned, re.MULTILINE), planned


@pytest.mark.proof
@pytest.mark.parametrize("slots", [pytest.param(None, marks=pytest.mark.soak), 2])
def test_trials_and_workers_do_not_starve_each_other(sweep, slots):
    """Phases of two workers each, also where the slots ask for more cores than there may be: they take turns."""
    base = {"splitting": {"tiers": 1}, "compute": {"workers": 2, "threads": 2}}
    found = sweep.run({RATE: [1.0e-3, 2.0e-3, 3.0e-3]}, base, slots=slots)
    assert {row["state"] for row in found["table"]} == {"done"}, found["table"]
    assert (found["phases_distinct"], found["phases_trained"]) == (3, 3)
    manifests = (sweep.place.folder / "runs" / "store" / "phases").glob("*/manifest.json")
    assert [json.loads(path.read_text())["info"]["alike"]["workers"] for path in manifests] == [2, 2, 2]


@pytest.mark.proof
def test_an_objective_that_the_data_do_not_have_ends_the_sweep_before_anything_is_evaluated(copied):
    copied.write({"splitting.tiers": [2, 3]}, {"evaluation": {"max_new_tokens": 4}}, objective={"on": "hard"})
    ended = copied.place.run("sweep", "sweep.yaml", code=2)
    assert "verifiable.hard.accuracy is not measured on these data; there are:" in ended.stderr
    assert "verifiable.accuracy" in ended.stderr


@pytest.mark.proof
def test_nothing_is_left_behind(copied, gone):
    """Not a process and not a folder, though Ray Tune was at work."""
    with tempfile.TemporaryDirectory() as short:
        process = copied.place.start("sweep", copied.write(ORDERS, {"evaluation": {"max_new_tokens": 2}}), TMPDIR=short)
        until(process, lambda: len(list(Path(short).glob("phasetune-*/ray/session_*"))) > 0)
        working = psutil.Process(process.pid).children(recursive=True)
        process.communicate(timeout=250)
        assert process.returncode == 0
        assert gone(working, 10) == []
        assert list(Path(short).glob("phasetune-*")) == []


def until(process, happens):
    """Wait until something happens in a command that goes on."""
    end = time.monotonic() + 200
    while time.monotonic() < end and process.poll() is None:
        if happens():
            return
        time.sleep(0.1)
    raise AssertionError(f"it did not happen: {process.communicate()}")
