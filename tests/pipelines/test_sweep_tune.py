"""Ray Tune's side of a sweep: what it proposes, whom it ends, and what its watchers are told. No Ray runs here."""

from __future__ import annotations

import asyncio
import json
from threading import Thread
from types import SimpleNamespace

import pytest

from pipelines import sweep_tune
from pipelines.sweep import Sweeping, _follow
from pipelines.sweep_run import SweepRun
from pipelines.sweep_rungs import per_tiers
from pipelines.sweep_spec import SweepSpec
from pipelines.sweep_suggest import orders_of, point, suggester
from pipelines.sweep_tune import OBJECTIVE, TOKENS, Asked, Board, suggested
from tests.pipelines import sweep_world

RATE = "curriculum.sft.learning_rate"
SPACE = {"splitting.tiers": [1, 2, 3], "curriculum.order": "permutations", RATE: {"log_uniform": [1e-4, 1e-2]}}
STOP, CONTINUE = "STOP", "CONTINUE"


@pytest.fixture
def optuna(world):
    """A sweep that Optuna proposes."""
    return lambda space=SPACE, **more: world.sweep(space, search={"method": "optuna", "trials": 9, **more})


def proposed(search, count):
    return [suggested(search.suggest(f"t{number}")) for number in range(count)]


def test_proposals_are_trials_whose_order_goes_with_their_tiers(optuna):
    sweep = optuna()
    for params in proposed(suggester(sweep, OBJECTIVE, ()), 12):
        assert sorted(params["curriculum.order"]) == list(range(1, params["splitting.tiers"] + 1))
        assert 1e-4 <= params[RATE] <= 1e-2
        sweep.resolved(params)


def test_the_same_seed_proposes_the_same_and_another_one_something_else(optuna):
    first, again = (proposed(suggester(optuna(), OBJECTIVE, ()), 4) for _ in range(2))
    assert first == again
    assert proposed(suggester(optuna(seed=18), OBJECTIVE, ()), 4) != first


def test_what_was_proposed_before_is_proposed_again_first(optuna):
    before = [
        {"splitting.tiers": 3, RATE: 0.00123, "curriculum.order": [3, 1, 2]},
        {"splitting.tiers": 1, RATE: 0.00456, "curriculum.order": [1]},
    ]
    assert proposed(suggester(optuna(), OBJECTIVE, before), 4)[:2] == before


def test_it_learns_where_the_best_ones_are(optuna):
    """Optuna is told that one rate is the best: after some trials it proposes near it more often than by chance."""
    search = suggester(optuna({RATE: {"log_uniform": [1e-4, 1e-2]}}), OBJECTIVE, ())
    near = []
    for number in range(60):
        rate = suggested(search.suggest(f"t{number}"))[RATE]
        near.append(0.8e-3 < rate < 1.25e-3)
        search.on_trial_complete(f"t{number}", {OBJECTIVE: -abs(rate - 1e-3)})
    assert sum(near[30:]) > 10  # by chance three


def test_of_many_orders_a_sample_is_chosen_from(optuna):
    sweep = optuna({"splitting.tiers": [6], "curriculum.order": {"sample": 5}})
    found = orders_of(sweep, 6)
    assert len({tuple(order) for order in found}) == 5
    assert orders_of(sweep, 6) == found
    assert orders_of(sweep, 2) == [[1, 2], [2, 1]]
    assert len(orders_of(optuna(), 6)) == 120


def test_values_that_are_lists_are_told_to_optuna_as_text(optuna):
    more = [{"method": "sft", "tiers": [1]}]
    sweep = optuna({"curriculum.then": [[], more], "splitting.tiers": {"integers": [1, 3]}})
    assert point(sweep, {"curriculum.then": more, "splitting.tiers": 2}) == {
        "curriculum.then": '[{"method": "sft", "tiers": [1]}]',
        "splitting.tiers": 2,
    }


@pytest.fixture
def rungs():
    """ASHA with its first rung at 100 tokens, where one in two goes on, and how a trial fares with it."""

    def begin(mode="max"):
        values = {"name": "s", "base": "b", "space": {"splitting.tiers": [2]}, "objective": {"mode": mode}}
        stop = {"scheduler": "asha", "grace_tokens": 100, "reduction": 2}
        scheduler = per_tiers(SweepSpec.model_validate({**values, "stop": stop}), OBJECTIVE, TOKENS)
        numbers = iter(range(1000))

        def report(tiers, tokens, value, trial=None):
            if trial is None:
                trial = SimpleNamespace(trial_id=str(next(numbers)), config={"trial": {"tiers": tiers}})
                scheduler.on_trial_add(None, trial)
            return scheduler.on_trial_result(None, trial, {OBJECTIVE: value, TOKENS: tokens, "training_iteration": 1})

        return report

    return begin


def test_a_trial_that_is_behind_at_a_rung_is_ended(rungs):
    report = rungs()
    assert [report(2, 120.0, value) for value in (0.5, 0.6, 0.1, 0.7)] == [CONTINUE, CONTINUE, STOP, CONTINUE]


def test_before_the_first_rung_nobody_is_ended(rungs):
    report = rungs()
    assert [report(2, 99.0, value) for value in (0.5, 0.6, 0.1)] == [CONTINUE] * 3


def test_trials_are_compared_with_those_of_the_same_number_of_tiers_only(rungs):
    report = rungs()
    assert [report(3, 120.0, value) for value in (0.8, 0.9)] == [CONTINUE, CONTINUE]
    assert report(2, 120.0, 0.1) == CONTINUE  # the first of its kind
    assert report(3, 120.0, 0.1) == STOP


def test_less_is_better_where_the_objective_says_so(rungs):
    report = rungs("min")
    assert [report(2, 120.0, value) for value in (0.5, 0.4, 0.9)] == [CONTINUE, CONTINUE, STOP]


def test_trials_that_tune_proposed_are_grouped_too():
    spec = SweepSpec.model_validate({"name": "s", "base": "b", "space": {"splitting.tiers": [2]}})
    scheduler = per_tiers(spec, OBJECTIVE, TOKENS)
    trial = SimpleNamespace(trial_id="a", config={"params": "{}", "tiers": 4})
    scheduler.on_trial_add(None, trial)
    scheduler.on_trial_complete(None, trial, {})
    assert list(scheduler.groups) == [4]
    assert scheduler.debug_string().startswith("4 tiers: ")


def test_a_watcher_is_told_what_it_has_not_seen_and_when_there_is_no_more(monkeypatch):
    monkeypatch.setattr(sweep_tune, "_WAIT", 0.05)

    async def told():
        board = Board()
        await board.ask("w", {"trial": {"number": 3}}, 0)
        assert await board.take() == [("w", {"trial": {"number": 3}}, 0)]
        assert await board.take() == []
        assert await board.read("w", 0) == ([], False)
        await board.tell("w", [{OBJECTIVE: 0.5}], False)
        assert await board.read("w", 0) == ([{OBJECTIVE: 0.5}], False)
        assert await board.read("w", 1) == ([], False)
        await board.tell("w", [{OBJECTIVE: 0.5}, {OBJECTIVE: 0.6}], True)
        assert await board.read("w", 1) == ([{OBJECTIVE: 0.6}], True)
        assert await board.read("other", 0) == ([], False)

    asyncio.run(told())


def test_a_watcher_hears_of_news_while_it_waits():
    async def told():
        board = Board()
        waiting = asyncio.ensure_future(board.read("w", 0))
        await asyncio.sleep(0)
        assert not waiting.done()
        await board.tell("w", [{OBJECTIVE: 0.5}], True)
        assert await asyncio.wait_for(waiting, 5) == ([{OBJECTIVE: 0.5}], True)

    asyncio.run(told())


def test_a_trial_that_was_known_before_was_not_proposed():
    assert suggested({"trial": {"number": 0, "tiers": 2}}) is None
    assert suggested({"params": json.dumps({"a": 1}), "tiers": 2}) == {"a": 1}


def test_what_a_watcher_asked_before_its_end_and_is_heard_after_it_is_no_further_trial(optuna, world):
    """On a busy machine Tune's word that a trial has ended overtakes the trial's last question."""
    sweep = optuna({"splitting.tiers": [1, 2]})
    folder = world.folder / "runs" / "s"
    folder.mkdir(parents=True)
    sweeping = Sweeping(sweep, folder, sweep.resolved({}), 2)
    sweeping.run_id = "s-1"
    asks = {"params": json.dumps({"splitting.tiers": 2}), "tiers": 2}
    rounds = iter([([Asked("w", asks, 0)], []), ([], ["w"]), ([Asked("w", asks, 1)], [])])
    tuning = SimpleNamespace(running=True, told=[], tell=lambda watcher, *_: tuning.told.append(watcher))

    def asked():
        questions, tuning.gone = next(rounds, ([], []))
        tuning.running = questions or tuning.gone
        return questions

    tuning.asked, tuning.left = asked, lambda: tuning.gone
    run = SweepRun(world.store, sweep_world.Hands(world.store), False, lambda *_: None)
    _follow(sweeping, run, sweeping.trials, tuning, Thread(), False)
    assert [trial.params for trial in sweeping.trials] == [{"splitting.tiers": 2}]
    assert len((folder / "proposed.jsonl").read_text().splitlines()) == 2  # the space, and the one
