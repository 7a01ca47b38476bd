"""Who wins a sweep, in words and in numbers, with made-up results of known strength; and what sweep.json holds."""

from __future__ import annotations

import json

import pytest

from components.common.errors import DataError
from pipelines.sweep_results import results_of, write_results
from pipelines.sweep_verdict import comparable, judge
from tests.pipelines import sweep_world

ORDERS = [[1, 2, 3], [1, 3, 2], [2, 1, 3], [3, 2, 1]]
CLEAR = {"1-2-3": 0.95, "1-3-2": 0.2, "2-1-3": 0.2, "3-2-1": 0.1}


@pytest.fixture
def swept(world):
    """Runs a sweep over some orders, each order as good as told; repetitions with further seeds for some."""

    def run(skill, repeated=(), orders=ORDERS, trouble=lambda task: None, **more):
        sweep = world.sweep({"curriculum.order": orders}, **more)
        hands = sweep_world.Hands(world.store, skill=skill, trouble=trouble)
        work, _ = world.run(hands)
        params = [{"curriculum.order": order} for order in orders]
        trials = world.trials(sweep, params)
        repeats = [
            trial for seed in (6, 7) for trial in world.trials(sweep, params, seed) if (trial.number, seed) in repeated
        ]
        for trial in [*trials, *repeats]:
            work.ask(trial)
        sweep_world.finish(work)
        return sweep, work, trials, repeats

    return run


def test_a_trial_that_is_told_apart_from_every_other_wins(swept):
    judged = judge(*swept(sweep_world.by_order(CLEAR)))
    assert judged.text.startswith("Winner: trial 1 (order 1-2-3) with verifiable.accuracy 0.9")
    assert judged.contest.chances[0] > 0.99
    assert "Each was trained once, so luck in training is not excluded" in judged.text


def test_a_winner_is_not_compared_with_its_own_twin(world):
    """Thresholds that cut alike: the best trial has a twin, which has another split and the same phases."""
    cuts = [[2.4], [2.400001], [3.4]]
    base = {"splitting": {"tiers": 2, "cut": "thresholds", "thresholds": [2.4]}}
    sweep = world.sweep({"splitting.thresholds": cuts}, base)
    skill = lambda order, spec, seed: 0.95 if spec.splitting.thresholds[0] < 3 else 0.1  # noqa: E731  # as short as a table
    work, _ = world.run(hands := sweep_world.Hands(world.store, skill=skill))
    trials = world.trials(sweep, [{"splitting.thresholds": cut} for cut in cuts])
    for trial in trials:
        work.ask(trial)
    sweep_world.finish(work)
    assert trials[1].same is trials[0]
    assert hands.done.count("split into 2") == 3
    assert sum(label.startswith("train") for label in hands.done) == 4
    assert judge(sweep, work, trials, []).text.startswith("Winner: trial 1 (thresholds 2.4) with")
    assert work.metrics(trials[1]) == work.metrics(trials[0]) != {}


def test_equal_trials_have_no_winner(swept):
    judged = judge(*swept(sweep_world.by_order({})))
    assert judged.text.startswith("No winner at this budget: trial ")
    assert judged.contest.chances == pytest.approx([0.25] * 4)


def test_less_is_better_where_the_objective_says_so(swept):
    judged = judge(*swept(sweep_world.by_order(CLEAR), objective={"mode": "min"}))
    assert judged.candidates[judged.contest.leader].number == 4


def test_one_tier_can_decide(swept):
    _, work, trials, _ = found = swept(sweep_world.by_order({}), objective={"on": "tier_2"})
    assert judge(*found).sentences == ["No trial came to a result."]  # made-up evaluations have no such metric
    assert work.metrics(trials[0])


def test_one_trial_alone_and_none_are_said_to_be(swept):
    assert judge(*swept(sweep_world.by_order({}), orders=ORDERS[:1])).text.startswith("Only trial 1 (order 1-2-3) came")

    def trouble(task):
        if task.kind == "phases":
            raise DataError("no", "")

    nothing = judge(*swept(sweep_world.by_order({}), orders=[[3, 1, 2]], trouble=trouble))
    assert (nothing.text, nothing.contest, nothing.candidates) == ("No trial came to a result.", None, [])


def lucky(order, spec, seed):
    """Trial 1 is good with the seed that chooses only."""
    return {5: {"1-2-3": 0.95}.get(order, 0.6), 6: 0.5, 7: 0.5}[seed]


def test_with_three_seeds_the_one_that_chose_does_not_count(swept):
    judged = judge(*swept(lucky, repeated={(number, seed) for number in (1, 2) for seed in (6, 7)}))
    assert judged.seeds == [6, 7]
    assert [trial.number for trial in judged.candidates] == [1, 2]
    assert judged.contest.values == [pytest.approx(6 / 11)] * 2  # half of 11, rounded
    assert judged.text.startswith("No winner")
    assert "These were chosen from 4 trials by their first run." in judged.text
    assert "Counted are the 2 further seeds" in judged.text


def test_the_table_begins_with_the_compared_by_what_the_verdict_counts(swept, tmp_path):
    """Trial 1 is the best by the seed that chose, and the worse of the two that were repeated."""

    def skill(order, spec, seed):
        further = {"1-2-3": 0.3, "1-3-2": 0.6}.get(order, 0.9)
        return {"1-2-3": 0.95, "1-3-2": 0.5}.get(order, 0.7) if seed == 5 else further

    repeated = {(number, seed) for number in (1, 2) for seed in (6, 7)}
    written = write_results(results_of(*swept(skill, repeated=repeated)), tmp_path)
    assert [row["trial"] for row in written["table"]] == [2, 1, 3, 4]
    assert written["contest"]["leader"] == 2


def test_losses_of_answers_that_are_counted_differently_are_not_compared(swept, world):
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = swept(sweep_world.by_order(CLEAR), objective={"metric": "loss.nats_per_token", "mode": "min"})
    assert judge(*found).contest is not None
    path = next(world.store.root.glob("evaluations/*/examples.parquet"))
    table = pq.read_table(path)
    place = table.schema.get_field_index("tokens")
    pq.write_table(table.set_column(place, "tokens", pa.array([2] * table.num_rows, pa.int32())), path)
    judged = judge(*found)
    assert judged.contest is None
    assert judged.text.startswith("The trials count the tokens of the same answers differently")


def test_with_two_seeds_both_count_and_the_verdict_says_that_this_flatters(swept):
    judged = judge(*swept(lucky, repeated={(1, 6), (2, 6)}))
    assert judged.seeds == [5, 6]
    assert "The seed that chose them counts too" in judged.text


def test_unfinished_repetitions_are_compared_with_the_seeds_that_two_trials_have_in_common(swept):
    judged = judge(*swept(lucky, repeated={(1, 6), (1, 7), (2, 6)}, search={"seeds": 3}))
    assert ([trial.number for trial in judged.candidates], judged.seeds) == ([1, 2], [5, 6])
    assert judged.contest.chances[0] < 1.0
    assert judged.text.endswith("three seeds leave it out. Of 3 seeds, 2 are done.")


def test_what_has_fewer_of_the_seeds_is_not_compared_and_named(swept):
    repeated = {(1, 6), (1, 7), (2, 6), (2, 7), (3, 6)}
    judged = judge(*swept(lucky, repeated=repeated, search={"seeds": 3}))
    assert ([trial.number for trial in judged.candidates], judged.seeds) == ([1, 2], [6, 7])
    assert judged.text.endswith("Not compared is what has no result with all of these seeds: trial 3.")


@pytest.mark.parametrize("repeated", [{(1, 6), (1, 7)}, {(1, 6), (2, 7)}])
def test_where_no_two_trials_share_a_further_seed_the_first_round_is_the_verdict_and_says_so(swept, repeated):
    judged = judge(*swept(sweep_world.by_order(CLEAR), repeated=repeated, search={"seeds": 3}))
    assert ([trial.number for trial in judged.candidates], judged.seeds) == ([1, 2, 3, 4], [5])
    assert judged.text.startswith("Winner: trial 1 ")
    assert "these are the runs of the first round, one of each" in judged.text
    assert "`search.seeds`" not in judged.text  # which was asked for


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        ({1: [5], 2: [5]}, ([1, 2], [5])),
        ({1: [5, 6, 7]}, ([1], [5, 6, 7])),
        ({1: [5, 6], 2: [5, 6], 3: [5, 7]}, ([1, 2], [5, 6])),
        ({1: [5, 6, 7], 2: [5, 6], 3: [5, 6, 7], 4: [5]}, ([1, 3], [5, 6, 7])),
        ({1: [5, 6], 2: [5, 6], 3: [5, 7], 4: [5, 7], 5: [5, 7]}, ([3, 4, 5], [5, 7])),
    ],
)
def test_the_most_seeds_that_two_trials_share_decide_and_then_the_most_trials(seeds, expected):
    assert comparable({number: dict.fromkeys(each) for number, each in seeds.items()}, 5) == expected


def test_a_result_that_cannot_be_read_takes_the_verdict_and_not_the_table(swept, world, tmp_path, capsys):
    found = swept(sweep_world.by_order(CLEAR))
    next(world.store.root.glob("evaluations/*/examples.parquet")).write_bytes(b"none")
    written = write_results(results_of(*found), tmp_path)
    assert written["verdict"].startswith("The trials could not be compared: ")
    assert (written["contest"], len(written["table"])) == (None, 4)
    assert json.loads((tmp_path / "sweep.json").read_text()) == written
    assert "warning: there is no verdict: " in capsys.readouterr().err


def test_per_example_results_that_are_gone_are_said_to_be(swept, world):
    found = swept(sweep_world.by_order(CLEAR))
    for path in world.store.root.glob("evaluations/*/examples.parquet"):
        path.unlink()
    assert judge(*found).text.startswith("The per-example results of the trials are gone")


def test_sweep_json_has_the_best_first_and_says_why_others_have_no_result(swept, tmp_path):
    def trouble(task):
        if task.label == "train main 1 (tier-3)":
            raise DataError("the training loss is nan", "lower the rate")

    orders = [*ORDERS, "ascending"]
    sweep, work, trials, repeats = swept(sweep_world.by_order(CLEAR), orders=orders, trouble=trouble)
    (tmp_path / "out").mkdir()
    written = write_results(results_of(sweep, work, trials, repeats), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "sweep.json").read_text()) == written
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    assert (written["trials"], written["merged_trials"]) == (4, 1)
    # 1-2-3, 1-3-2 and 2-1-3 share one first phase; of 3-2-1 nothing was trained
    assert (written["phases_requested"], written["phases_distinct"]) == (12, 11)
    assert (written["phases_trained"], written["phases_reused"]) == (8, 0)
    rows = written["table"]
    assert rows[0]["params"] == {"curriculum.order": [1, 2, 3]}
    assert rows[0]["same_as"] == [{"curriculum.order": "ascending"}]
    assert rows[0]["by_seed"] == {"5": rows[0]["metrics"]["verifiable.accuracy"]}
    assert len(rows[0]["keys"]) == 3
    assert (rows[-1]["state"], rows[-1]["reason"], rows[-1]["metrics"]) == ("failed", "the training loss is nan", {})
    assert written["contest"]["leader"] == 1
    assert sum(one["chance"] for one in written["contest"]["candidates"]) == pytest.approx(1.0)
    again = [trial.number for trial in trials if trial.same is not None]
    assert again == [5]
