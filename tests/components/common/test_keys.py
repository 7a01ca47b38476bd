import json

import pytest

from components.common.curriculum import expand, sequence
from components.common.keys import evaluation_key, phase_key, scores_key, splits_key
from components.common.spec import Spec

TIERS = {1: ["a", "b", "c"], 2: ["d", "e"], 3: ["f"]}
SMALL = {"name": "x", "data": {"train": [{"path": "lab://instructions"}]}, "controls": ["one_off"]}


def spec(**changes):
    return Spec.model_validate({**SMALL, **changes})


def key(changes=None, curriculum="main", index=1, order=None, parent="base", seed=17):
    made = spec(**(changes or {}))
    plan = {item.name: item for item in expand(made, seed)}[curriculum].phases[index - 1]
    ids = sequence(plan, TIERS, 17) if order is None else order
    return phase_key(made, plan, ids, parent, seed)


BEFORE = key()


@pytest.mark.parametrize(
    "changes",
    [
        {"curriculum": {"sft": {"learning_rate": 1e-5}}},
        {"curriculum": {"sft": {"batch_size": 64}}},
        {"curriculum": {"sft": {"micro_batch_size": 8}}},
        {"curriculum": {"sft": {"weight_decay": 0.0}}},
        {"curriculum": {"sft": {"warmup_ratio": 0.0}}},
        {"curriculum": {"sft": {"schedule": "linear"}}},
        {"curriculum": {"sft": {"adam_betas": [0.9, 0.99]}}},
        {"curriculum": {"sft": {"max_grad_norm": 2.0}}},
        {"curriculum": {"sft": {"max_length": 512}}},
        {"curriculum": {"sft": {"epochs": 3}}},
        {"curriculum": {"order": "descending"}},
        {"model": {"dtype": "bfloat16"}},
        {"model": {"attention": "eager"}},
        {"compute": {"workers": 2}},
        {"compute": {"gpus_per_worker": 1}},
    ],
    ids=str,
)
def test_what_determines_a_phase_changes_its_key(changes):
    assert key(changes) != BEFORE


def test_parent_order_seed_and_versions_change_the_key_of_a_phase(monkeypatch):
    ids = sequence(expand(spec(), 17)[0].phases[0], TIERS, 17)
    assert key(order=ids) == BEFORE
    others = [key(parent="other"), key(order=ids[::-1]), key(order=ids[:-1]), key(seed=18, order=ids)]
    monkeypatch.setattr("components.common.keys.version", lambda name: "9")
    assert len({BEFORE, *others, key()}) == 6


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "another"},
        {"controls": []},
        {"controls": ["random_tiers", {"only": [1]}]},
        {"tracking": {"uri": "http://host", "experiment": "e", "enabled": False}},
        {"store": "elsewhere"},
        {"evaluation": {"suites": ["loss"], "max_new_tokens": 3, "max_examples": 5}},
        {"scoring": {"method": "length"}},
        {"secrets": {"a": {"secret": "b", "key": "c"}}},
        {"seeds": [17, 18]},
        {"model": {"path": "named/otherwise"}},
        {"compute": {"ray": "local", "threads": 1}},
        {"curriculum": {"then": [{"tiers": [1]}]}},
        {"curriculum": {"phases": [{"name": "named", "tiers": [1]}, {"tiers": [2, 3]}]}},
        {"curriculum": {"phases": [{"tiers": [1], "learning_rate": 5e-6}], "sft": {"learning_rate": 1.0}}},
    ],
    ids=str,
)
def test_what_does_not_determine_a_phase_leaves_its_key(changes):
    assert key(changes) == BEFORE


def test_a_phase_at_another_place_or_in_a_control_has_the_same_key():
    again = {"phases": [{"tiers": [2]}, {"tiers": [1]}]}
    assert key({"curriculum": again}, index=2) == BEFORE
    assert key({"controls": [{"only": [1]}]}, "only_1") == BEFORE
    first = {"curriculum": {"phases": [{"tiers": [1]}]}}
    assert key(first) == key(first, "one_off") == BEFORE


def test_epochs_are_in_the_key_by_the_sequence_alone():
    ids = ["a", "b"] * 2
    assert key({"curriculum": {"sft": {"epochs": 1}}}, order=ids) == key(order=ids)


def test_a_plan_is_json_and_complete():
    plan = expand(spec(curriculum={"replay": 0.2}), 17)[0].phases[1]
    made = json.loads(json.dumps(plan.to_json()))
    assert made["portions"] == [{"tiers": [2], "epochs": 2, "replay": 0.2, "seen": [1]}]
    assert made["settings"]["adam_betas"] == [0.9, 0.95]
    assert (made["curriculum"], made["index"], made["name"], made["method"]) == ("main", 2, "tier-2", "sft")


def scores(changes, prepared="p", base="b", scorer="s"):
    return scores_key(spec(**changes), prepared, base, scorer)


def test_scores_depend_on_the_scorer_only_where_it_is_asked():
    by_loss, by_length = {"scoring": {"method": "loss"}}, {"scoring": {"method": "length"}}
    assert scores(by_loss, scorer="t") != scores(by_loss)
    assert scores(by_length, scorer="t") == scores(by_length)
    assert scores({**by_length, "model": {"dtype": "bfloat16"}}) == scores(by_length)
    assert scores({**by_loss, "model": {"dtype": "bfloat16"}}) != scores(by_loss)


def test_scores_depend_on_data_base_model_method_length_and_column():
    by_column = {"scoring": {"method": "column"}}
    different = {
        scores(by_column),
        scores(by_column, prepared="q"),
        scores(by_column, base="c"),
        scores({"scoring": {"method": "length"}}),
        scores({"scoring": {"method": "column", "column": "rating"}}),
        scores({**by_column, "curriculum": {"sft": {"max_length": 64}}}),
    }
    assert len(different) == 6
    assert scores({"scoring": {"method": "length", "column": "rating"}}) == scores({"scoring": {"method": "length"}})


def test_a_split_depends_on_scores_cuts_and_seed_and_not_on_names():
    before = splits_key(spec(), "s", 17)
    assert splits_key(spec(name="y", store="z", curriculum={"order": "descending"}), "s", 17) == before
    others = [
        splits_key(spec(), "t", 17),
        splits_key(spec(), "s", 18),
        splits_key(spec(splitting={"tiers": 2}), "s", 17),
    ]
    assert len({before, *others}) == 4


def test_an_evaluation_depends_on_model_data_and_settings_and_not_on_names():
    before = evaluation_key(spec(), "m", "h")
    assert evaluation_key(spec(name="y", store="z", controls=[], tracking={"enabled": False}), "m", "h") == before
    others = [
        evaluation_key(spec(), "n", "h"),
        evaluation_key(spec(), "m", "i"),
        evaluation_key(spec(evaluation={"max_new_tokens": 3}), "m", "h"),
        evaluation_key(spec(model={"dtype": "bfloat16"}), "m", "h"),
        evaluation_key(spec(compute={"gpus_per_worker": 1}), "m", "h"),
    ]
    assert len({before, *others}) == 6
