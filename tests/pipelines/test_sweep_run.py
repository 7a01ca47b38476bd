"""A sweep at work, with made-up phases: what is done, what it is told, and what happens when a piece fails."""

from __future__ import annotations

import json
from itertools import permutations

import pytest

from components.common.errors import DataError, LeaseLost, UserError
from components.common.launcher import StepFailed
from pipelines.sweep_run import ATTEMPTS
from tests.pipelines import sweep_world


def orders(tiers):
    return [{"splitting.tiers": tiers, "curriculum.order": list(order)} for order in permutations(range(1, tiers + 1))]


@pytest.fixture
def begun(world):
    """Begins a sweep of some trials: the run, its trials, its hands and what was heard."""

    def begin(params=None, every=False, **options):
        found = orders(3) if params is None else params
        sweep = world.sweep({key: [1] for key in found[0]})
        hands = sweep_world.Hands(world.store, **options)
        run, heard = world.run(hands, every)
        return run, world.trials(sweep, found), hands, heard

    return begin


def trained(hands):
    return [label for label in hands.done if label.startswith("train")]


def test_all_orders_of_three_tiers_are_fifteen_phases_and_a_second_run_does_nothing(begun):
    for expected in (15, 0):
        run, trials, hands, _ = begun()
        for trial in trials:
            run.ask(trial)
        sweep_world.finish(run)
        assert [run.state(trial) for trial in trials] == ["done"] * 6
        assert len(trained(hands)) == len(run.trained) == expected
        assert len({trial.chain.phases for trial in trials}) == 6
        assert all("verifiable.accuracy" in run.metrics(trial) for trial in trials)
    assert hands.done == []


def test_a_trial_that_means_the_same_is_merged_and_has_the_same_result(begun):
    params = [{"curriculum.order": order} for order in ("descending", [3, 2, 1], "ascending")]
    run, (first, second, third), _, _ = begun(params)
    for trial in (first, second, third):
        run.ask(trial)
    sweep_world.finish(run)
    assert (first.merged, second.same, third.same) == ([second], first, None)
    assert run.metrics(second) == run.metrics(first) != {}
    assert run.state(second) == "done"
    run.ask(second)  # asks for nothing more
    assert not run.step()


def test_a_failure_of_the_trials_own_fails_those_that_share_it_and_no_other(begun):
    def trouble(task):
        if task.label == "train main 1 (tier-2)":
            raise DataError("the training loss is nan", "lower the rate")

    run, trials, _, heard = begun(trouble=trouble)
    for trial in trials:
        run.ask(trial)
    sweep_world.finish(run)
    failed = [trial for trial in trials if run.state(trial) == "failed"]
    assert [trial.params["curriculum.order"] for trial in failed] == [[2, 1, 3], [2, 3, 1]]
    assert {run.reason(trial) for trial in failed} == {"the training loss is nan"}
    assert [run.state(trial) for trial in trials].count("done") == 4
    assert heard.count("failed train main 1 (tier-2)") == 1
    assert run.metrics(failed[0]) == {}


@pytest.mark.parametrize("error", [StepFailed("it was killed"), LeaseLost("another took over")])
def test_lost_work_is_tried_again_and_fails_only_after_so_many_times(begun, error):
    attempts = []

    def trouble(task):
        if task.label == "train main 1 (tier-3)":
            attempts.append(task)
            if len(attempts) < ATTEMPTS:
                raise error

    run, trials, hands, heard = begun(trouble=trouble)
    for trial in trials:
        run.ask(trial)
    sweep_world.finish(run)
    assert len(attempts) == ATTEMPTS
    assert heard.count("lost train main 1 (tier-3)") == ATTEMPTS - 1
    assert [run.state(trial) for trial in trials] == ["done"] * 6
    assert len(trained(hands)) == 15


def test_work_that_is_lost_every_time_fails_its_trials(begun):
    def trouble(task):
        if task.label == "train main 1 (tier-3)":
            raise StepFailed("it was killed")

    run, trials, _, _ = begun(trouble=trouble)
    for trial in trials:
        run.ask(trial)
    sweep_world.finish(run)
    assert [run.state(trial) for trial in trials] == ["done"] * 4 + ["failed"] * 2


def test_what_no_trial_can_get_round_ends_the_sweep_and_the_next_one_goes_on(begun):
    full = []

    def trouble(task):
        if task.label.startswith("train main 2") and not full:
            full.append(task)
            raise UserError("the disk is full", "free some space")

    run, trials, hands, _ = begun(trouble=trouble)
    for trial in trials:
        run.ask(trial)
    with pytest.raises(UserError, match="the disk is full"):
        sweep_world.finish(run)
    before = len(trained(hands))
    run, trials, hands, _ = begun()
    for trial in trials:
        run.ask(trial)
    sweep_world.finish(run)
    assert before + len(trained(hands)) == 15


def test_the_budget_of_phases_is_kept_and_what_was_trained_is_measured(begun):
    run, trials, hands, _ = begun(count=1)
    run.limit(None, 4)
    for trial in trials:
        run.ask(trial)
    sweep_world.finish(run)
    assert run.spent
    assert trained(hands) == [
        f"train main {place}" for place in ("1 (tier-1)", "2 (tier-2)", "3 (tier-3)", "2 (tier-3)")
    ]
    assert [run.state(trial) for trial in trials] == ["done", *["running"] * 5]
    assert run.metrics(trials[0]) != {}


def test_phases_that_are_under_way_count_to_the_budget(begun):
    run, trials, hands, _ = begun(count=4)
    run.limit(None, 2)
    for trial in trials:
        run.ask(trial)
    sweep_world.finish(run)
    assert len(trained(hands)) == 2


def test_a_phase_that_failed_leaves_its_place_in_the_budget_to_another(begun):
    def trouble(task):
        if task.label == "train main 1 (tier-1)":
            raise DataError("the training loss is nan", "lower the rate")

    run, trials, hands, _ = begun(count=4, trouble=trouble)
    run.limit(None, 2)
    for trial in trials:
        run.ask(trial)
    sweep_world.finish(run)
    assert trained(hands) == ["train main 1 (tier-2)", "train main 1 (tier-3)"]


def test_after_the_hours_nothing_more_is_begun(begun):
    run, trials, hands, _ = begun()
    run.limit(1e-9, None)
    run.ask(trials[0])
    sweep_world.finish(run)
    assert (run.spent, hands.done) == (True, [])


def test_a_trial_that_is_asked_for_by_phases_runs_until_it_has_them_all(begun):
    run, trials, hands, _ = begun(every=True)
    run.ask(trials[0], 1)
    sweep_world.finish(run)
    assert trained(hands) == ["train main 1 (tier-1)"]
    assert (run.state(trials[0]), run.metrics(trials[0])) == ("running", {})
    assert run.metrics(trials[0], 0) != {}
    run.ask(trials[0], 3)
    sweep_world.finish(run)
    assert run.state(trials[0]) == "done"
    assert run.metrics(trials[0]) != {}


def test_a_stopped_trial_has_no_result_though_another_one_or_an_earlier_sweep_has_its_phases(begun):
    run, trials, _, _ = begun(every=True)
    for trial in trials:
        run.ask(trial)
    sweep_world.finish(run)
    run, trials, hands, _ = begun(every=True)
    run.ask(trials[0], 1)
    sweep_world.finish(run)
    run.stop(trials[0])
    assert (run.state(trials[0]), run.metrics(trials[0]), hands.done) == ("stopped", {}, [])
    assert [task.label for task in trials[0].asked if task.work.counted] == ["train main 1 (tier-1)"]


def test_a_stopped_trial_takes_nothing_from_one_that_shares_with_it(begun):
    run, trials, hands, _ = begun(count=1, params=orders(3)[:2], every=True)
    for trial in trials:
        run.ask(trial)
    while "train main 1 (tier-1)" not in hands.done:
        run.step()
    run.stop(trials[0])
    sweep_world.finish(run)
    assert trained(hands) == ["train main 1 (tier-1)", "train main 2 (tier-3)", "train main 3 (tier-2)"]
    assert [run.state(trial) for trial in trials] == ["stopped", "done"]


def test_tokens_are_those_that_the_done_phases_noted_whatever_their_data(begun, tmp_path):
    rows = [json.dumps({"prompt": f"Say {number}.", "completion": str(number)}) for number in range(6)]
    (tmp_path / "more.jsonl").write_text("\n".join(rows) + "\n")
    then = [{"method": "sft", "data": [{"path": str(tmp_path / "more.jsonl")}]}]
    run, (trial,), hands, _ = begun([{"splitting.tiers": 1, "curriculum.then": then}], count=1)
    assert run.tokens(trial) is None
    run.ask(trial)
    while not trained(hands):
        assert run.tokens(trial) is None
        run.step()
    assert run.tokens(trial) == 700
    sweep_world.finish(run)
    assert run.tokens(trial) == 1400


def test_a_stopped_trial_has_the_tokens_of_what_it_asked_for(begun):
    run, (first, second, *_), _, _ = begun(every=True)
    run.ask(first)
    run.ask(second, 1)
    sweep_world.finish(run)
    run.stop(second)
    assert (run.tokens(first), run.tokens(second)) == (2100, 700)
