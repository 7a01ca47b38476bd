"""`phasetune plan SWEEP`: what is shared, stored and left, and how long that takes."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pipelines.sweep_plan import plan_sweep, show_sweep_plan
from pipelines.sweep_space import trials_of
from tests.pipelines import sweep_world

SPACE = {"splitting.tiers": [1, 2, 3], "curriculum.order": "permutations"}


@pytest.fixture
def swept(world):
    """Trains the first so many phases of a sweep; returns the sweep."""

    def run(phases, space=SPACE):
        sweep = world.sweep(space)
        work, _ = world.run(sweep_world.Hands(world.store, count=1))
        work.limit(None, phases)
        for trial in world.trials(sweep, trials_of(sweep)):
            work.ask(trial)
        sweep_world.finish(work)
        return sweep

    return run


def shown(sweep, slots=2):
    console = Console(file=io.StringIO(), width=140)
    show_sweep_plan(sweep, slots, console)
    return console.file.getvalue()


def test_before_the_data_are_split_nobody_knows(world):
    sweep = world.sweep(SPACE)
    plan = plan_sweep(sweep)
    assert (plan.trials, plan.waiting, plan.asked) == (9, 9, 0)
    assert "9 of them are told after scoring" in shown(sweep)


def test_then_the_tree_says_what_is_shared_and_what_is_left(swept):
    sweep = swept(0)
    plan = plan_sweep(sweep)
    assert (plan.trials, plan.merged, plan.waiting) == (9, 0, 0)
    assert (plan.asked, plan.planner.distinct(), plan.stored) == (23, 20, 0)
    text = shown(sweep)
    assert text.count("to train, 2 trials") == 3
    assert "23 phases asked for, 20 distinct, 0 stored, 20 to train" in text
    assert "nobody knows how long they take" in text


def test_what_is_trained_is_stored_and_planning_computes_nothing(swept, world):
    sweep = swept(4)
    before = sorted(path for path in world.store.root.rglob("*") if "digests" not in path.name)
    assert plan_sweep(sweep).stored == 4
    assert "4 stored, 16 to train" in shown(sweep)
    assert sorted(path for path in world.store.root.rglob("*") if "digests" not in path.name) == before


def test_trials_that_mean_the_same_are_counted(swept):
    sweep = swept(0, {"splitting.tiers": [1, 2], "curriculum.order": ["ascending", "descending", [2, 1]]})
    plan = plan_sweep(sweep)
    assert (plan.trials, plan.merged) == (5, 2)


def test_a_tree_takes_as_long_as_its_longest_path_however_many_slots_there_are(swept):
    plan = plan_sweep(swept(0))
    assert plan.seconds(1) == plan.planner.to_do()
    assert plan.seconds(10**6) == plan.planner.longest()
    assert plan.seconds(2) == max(plan.planner.to_do() / 2, plan.planner.longest())
