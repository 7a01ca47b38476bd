"""`phasetune plan SWEEP`: what is shared, stored and left, and how long that takes."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from components.common.curriculum import expand
from components.common.pace import alike, alike_evaluation, note_pace
from pipelines.sweep import slots_of, with_threads
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


def test_further_seeds_are_named_before_anything_is_known(world):
    sweep = world.sweep(SPACE, search={"seeds": 3})
    assert "up to 8 more runs and 24 phases with further seeds" in shown(sweep)  # four trials of three phases, twice
    assert "further seeds" not in shown(world.sweep(SPACE))
    proposed = world.sweep({"splitting.tiers": [1, 2]}, search={"method": "optuna", "seeds": 2, "trials": 9})
    assert "up to 4 more runs with further seeds" in shown(proposed)


def test_further_seeds_are_counted_once_it_is_known_what_they_repeat(world):
    search = {"seeds": 2, "promising": 2}
    space = {"splitting.tiers": [1, 2], "curriculum.order": "permutations"}
    sweep = world.sweep(space, search=search)
    skill = sweep_world.by_order({"1": 0.2, "1-2": 0.6, "2-1": 0.8})
    run, _ = world.run(sweep_world.Hands(world.store, skill=skill))

    def do(params, seed=None):
        for trial in world.trials(sweep, params, seed):
            run.ask(trial)
        sweep_world.finish(run)

    assert "up to 2 more runs and 4 phases with further seeds" in shown(sweep)
    do(trials_of(sweep))
    text = shown(sweep)
    assert "up to" not in text
    assert "2 more runs and 4 phases with further seeds" in text
    do([{"splitting.tiers": 2, "curriculum.order": [2, 1]}], seed=6)
    assert "1 more run and 2 phases with further seeds" in shown(sweep)
    do([{"splitting.tiers": 2, "curriculum.order": [1, 2]}], seed=6)
    assert "further seeds" not in shown(sweep)
    assert "about" not in shown(sweep)


def test_the_time_is_told_from_phases_that_slots_of_this_machine_have_done(swept, world):
    """The base spec names no threads, so a slot has its share of the cores."""
    space = {"splitting.tiers": [2], "curriculum.order": "permutations"}
    swept(0, space)
    sweep = world.sweep(space, {"compute": {}}, search={"seeds": 3})
    spec = sweep.resolved({"splitting.tiers": 2, "curriculum.order": [1, 2]})
    assert spec.compute.threads is None
    assert "nobody knows how long they take" in shown(sweep)
    spec = with_threads(spec, slots_of(spec, None))
    assert spec.compute.threads is not None
    like = alike(spec, expand(spec, 5)[0].phases[0])
    note_pace(world.store, spec, {"alike": like, "train_seconds": 1.0, "tokens": 10, "sequence": 1})
    plan = plan_sweep(sweep)
    phases = sum(node.work.seconds for node in plan.planner.nodes() if node.work.counted)
    assert plan.estimated
    assert plan.seconds(1) == pytest.approx(phases + 2.0)  # nothing is known of evaluations: a second each
    about = {"alike": alike_evaluation(spec.at("evaluation")), "train_seconds": 1.0, "sequence": 1}
    note_pace(world.store, spec, about)
    held_out = 11.0  # seconds for each of the two trials: their examples
    plan = plan_sweep(sweep)
    assert plan.seconds(1) == pytest.approx(phases + 2 * held_out)
    # Two trials are repeated with two more seeds: as long again for each at most, and at least one of them twice.
    assert plan.times(1) == pytest.approx((2 * plan.seconds(1), 3 * plan.seconds(1)))
    assert " to " in shown(sweep, 1).splitlines()[-1]
    assert shown(sweep, 1).splitlines()[-1].startswith("about ")
