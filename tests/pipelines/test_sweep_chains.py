"""What a trial asks for: pieces of work, their keys, and when two trials are the same."""

from __future__ import annotations

import pytest

from pipelines.sweep_chains import Chains
from tests.pipelines import sweep_world

RATE = "curriculum.sft.learning_rate"


@pytest.fixture
def chain(world):
    """Makes the chain of a trial; data, scores and split are made for it."""
    hands = sweep_world.Hands(world.store)

    def make(params, base=None, every=False, seed=None):
        sweep = world.sweep({key: [value] for key, value in params.items()}, base)
        (trial,) = world.trials(sweep, [params], seed)
        run, _ = world.run(hands, every)
        run.limit(None, 0)  # nothing is trained
        run.ask(trial)
        sweep_world.finish(run)
        return trial.chain

    return make


def labels(chain):
    return [task.label for task in chain.tasks]


def test_data_scores_and_split_come_first_then_the_phases_and_the_last_ones_evaluation(chain):
    made = chain({"splitting.tiers": 2, "curriculum.order": [2, 1]})
    before = ["prepare", "score", "split into 2"]
    assert labels(made) == [*before, "train main 1 (tier-2)", "train main 2 (tier-1)", "evaluate main 2"]
    assert [task.work.counted for task in made.tasks] == [False, False, False, True, True, False]
    assert (made.evaluations[0], made.evaluations[1]) == ("", made.tasks[-1].work.key)
    parents = [task.work.parent for task in made.tasks]
    assert parents == [None, *(task.work.key for task in made.tasks[:-1])]


def test_every_phase_is_evaluated_where_trials_may_be_ended_early(chain):
    made = chain({"splitting.tiers": 2}, every=True)
    assert labels(made)[3:] == ["train main 1 (tier-1)", "evaluate main 1", "train main 2 (tier-2)", "evaluate main 2"]
    assert [task.label for task in made.upto(1)][3:] == ["train main 1 (tier-1)", "evaluate main 1"]
    assert made.upto(2) == made.upto(None) == made.upto(9) == made.tasks


def test_orders_that_begin_alike_share_the_keys_of_that_beginning(chain):
    one, other = (chain({"splitting.tiers": 3, "curriculum.order": order}) for order in ([1, 2, 3], [1, 3, 2]))
    assert one.phases[0] == other.phases[0]
    assert not set(one.phases[1:]) & set(other.phases[1:])
    assert sum(one.tokens) == sum(other.tokens) > 0


def test_trials_that_mean_the_same_are_the_same(chain):
    down = chain({"splitting.tiers": 3, "curriculum.order": "descending"})
    assert down.identity == chain({"splitting.tiers": 3, "curriculum.order": [3, 2, 1]}).identity
    single = [chain({"splitting.tiers": 1, "curriculum.order": order}) for order in ("ascending", "descending", [1])]
    assert len({one.identity for one in single}) == 1
    assert down.identity != chain({"splitting.tiers": 3, "curriculum.order": "descending", RATE: 1e-4}).identity


def test_one_tier_is_the_same_however_it_is_scored_and_two_cuts_that_split_alike_are_one(chain):
    """The scores and splits have keys of their own, and they do not decide."""
    one, other = (chain({"splitting.tiers": 1, "scoring.method": method}) for method in ("column", "length"))
    assert one.tasks[2].work.key != other.tasks[2].work.key
    assert one.identity == other.identity

    def cut(*thresholds):
        return chain({"splitting": {"tiers": 2, "cut": "thresholds", "thresholds": list(thresholds)}})

    assert cut(2.4).tasks[2].work.key != cut(2.400001).tasks[2].work.key
    assert cut(2.4).identity == cut(2.400001).identity != cut(3.4).identity


def test_controls_that_differ_make_other_trials(chain):
    params = {"splitting.tiers": 2}
    assert chain({**params, "controls": []}).identity != chain({**params, "controls": ["one_off"]}).identity


def test_what_does_not_change_the_weights_is_no_other_trial(chain):
    """Two batch sizes of evaluations are two, two names of sources are one."""
    params = {"splitting.tiers": 2}
    named = {"data": {"train": [{"path": "lab://instructions?count=60", "name": "lab"}], "held_out": {"fraction": 0.3}}}
    assert chain(params).phases == chain(params, named).phases
    few = {"evaluation": {"max_new_tokens": 3}}
    assert chain(params, few).phases == chain(params).phases
    assert chain(params, few).evaluations != chain(params).evaluations


def test_another_seed_trains_every_phase_anew_on_the_same_held_out_part(chain):
    params = {"splitting.tiers": 2}
    one, other = chain(params, seed=5), chain(params, seed=6)
    assert not set(one.phases) & set(other.phases)
    assert [task.work.key for task in one.tasks[:2]] == [task.work.key for task in other.tasks[:2]]


def test_phases_that_follow_are_behind_every_order_and_share_it(chain):
    def variant(rate):
        then = [{"method": "sft", "tiers": [1], "learning_rate": rate}]
        return chain({"splitting.tiers": 2, "curriculum.then": then})

    one, other = variant(1e-3), variant(1e-4)
    assert len(one.phases) == 3
    assert one.phases[:2] == other.phases[:2]
    assert one.phases[2] != other.phases[2]


def test_data_of_a_phase_of_its_own_are_prepared_before_the_phases(chain, tmp_path):
    rows = ['{"prompt": "Say %d.", "completion": "%d"}' % (number, number) for number in range(6)]  # noqa: UP031  # braces
    (tmp_path / "more.jsonl").write_text("\n".join(rows) + "\n")
    then = [{"method": "sft", "data": [{"path": "more.jsonl"}]}]
    made = chain({"splitting.tiers": 1, "curriculum.then": then})
    assert labels(made)[:4] == ["prepare", "score", "split into 1", "prepare data of phase 2"]
    assert made.tasks[-2].needs["data"] == made.tasks[3].work.key
    assert made.tokens[0] > 60  # of the 60 examples of the tier
    assert made.tokens[1] is None  # which nobody knows before they are trained on


def test_controls_are_trained_and_evaluated_beside_the_main_curriculum(chain):
    made = chain({"splitting.tiers": 2, "controls": ["one_off"]})
    assert labels(made)[3:] == [
        *("train main 1 (tier-1)", "train main 2 (tier-2)", "evaluate main 2"),
        *("train one_off 1 (all-tiers)", "evaluate one_off 1"),
    ]
    assert len(made.phases) == 2  # the main curriculum's alone decide


def test_an_optimizer_that_is_carried_needs_the_phase_with_its_optimizer(world):
    """A stored phase without its optimizer is trained again where the next one goes on with it."""
    carry = {"curriculum": {"sft": {**sweep_world.BASE["curriculum"]["sft"], "carry": "optimizer"}}}
    sweep = world.sweep({"splitting.tiers": [2]}, carry)
    (trial,) = world.trials(sweep, [{"splitting.tiers": 2}])
    run, _ = world.run(sweep_world.Hands(world.store))
    run.ask(trial)
    while trial.chain is None:
        run.step()
    first, second = trial.chain.phases
    assert run.chains.carried == {first}
    sweep_world.finish(run)
    again, _ = world.run(hands := sweep_world.Hands(world.store))
    (trial,) = world.trials(sweep, [{"splitting.tiers": 2}])
    again.ask(trial)
    sweep_world.finish(again)
    assert hands.done == ["train main 1 (tier-1)"]  # made-up phases keep no optimizer
    assert world.store.find("phases", second) is not None


def test_the_shared_work_is_looked_at_once(world, monkeypatch):
    """Two hundred trials over one data source read it once."""
    from components.preparing import sources

    asked = []
    monkeypatch.setattr(sources, "fingerprint", lambda *given: asked.append(given) or "0" * 32)
    sweep = world.sweep({"splitting.tiers": [1, 2, 3]})
    chains = Chains(world.store, False)
    for tiers in (1, 2, 3) * 10:
        chains.beginning(sweep.resolved({"splitting.tiers": tiers}), 5)
    assert len(asked) == 1
