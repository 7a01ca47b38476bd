import json

import pytest

from components.common.curriculum import expand, sequence
from components.common.keys import evaluation_key, phase_key, scores_key, splits_key
from components.common.machine import installed_version
from components.common.spec import Spec
from components.common.spec_phases import SETTINGS

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


PHASES = {
    "sft": {"tiers": [1]},
    "dpo": {"method": "dpo", "tiers": [1], "generate": {"verifier": "exact"}},
    "grpo": {"method": "grpo", "tiers": [1], "rewards": ["exact"]},
}


def phase_of(method, settings=None, phase=None, **changes):
    """The key of a phase of a method, trained on one and the same order."""
    curriculum = {"phases": [{**PHASES[method], **(phase or {})}], method: settings or {}}
    return key({"controls": [], "curriculum": curriculum, **changes}, order=["a", "b", "c", "a"])


SHARED = {
    "learning_rate": 3e-5,
    "batch_size": 2,
    "micro_batch_size": 16,
    "weight_decay": 0.05,
    "warmup_ratio": 0.2,
    "schedule": "cosine",
    "adam_betas": [0.9, 0.99],
    "max_grad_norm": 2.0,
    "max_length": 512,
    "select": "best(loss)",
    "select_every": 3,
    "on_divergence": "rollback(0.5)",
}
OWN = {
    "sft": {"schedule": "linear", "batching": "padded"},
    "dpo": {"loss": "ipo", "beta": 0.3},
    "grpo": {
        "samples": 4,
        "temperature": 0.7,
        "max_new_tokens": 17,
        "rewards": ["boxed_math"],
        "beta": 0.1,
        "epsilon": 0.3,
        "loss": "grpo",
        "generator": "transformers",
    },
}


@pytest.mark.parametrize("method", PHASES)
def test_every_hyperparameter_of_every_method_changes_the_key(method):
    """Each but the number of passes, which the order of the data holds, and what needs an adapter or a parent."""
    changed = {**SHARED, **OWN[method]}
    assert set(changed) == set(SETTINGS[method].model_fields) - {"epochs", "steps", "adapter", "carry"}
    selecting = {"select_every": {"select": "best(loss)"}}  # which says nothing where nothing is selected
    keys = {name: phase_of(method, phase={name: value, **selecting.get(name, {})}) for name, value in changed.items()}
    assert len({phase_of(method), *keys.values()}) == len(keys) + 1


def test_how_often_is_no_matter_where_nothing_is_selected():
    assert phase_of("sft", phase={"select_every": 3}) == phase_of("sft")


ADAPTER = {"rank": 8, "alpha": 16.0, "dropout": 0.1, "target_modules": ["q_proj"], "quantize": "nf4"}


def adapted(phase=None, **fields):
    return phase_of("sft", phase=phase, model={"adapter": fields})


def test_every_field_of_an_adapter_changes_the_key_and_how_it_follows_the_parent_s():
    keys = [adapted(**{name: value}) for name, value in ADAPTER.items()]
    follows = [adapted({"adapter": how}) for how in ("merge", "fresh")]
    assert len({phase_of("sft"), adapted(), *keys, *follows}) == 9


def test_how_an_adapter_follows_is_no_matter_where_there_is_none():
    assert phase_of("sft", phase={"adapter": "fresh"}) == phase_of("sft")


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"dtype": "bfloat16"}},
        {"model": {"attention": "eager"}},
        {"compute": {"workers": 2}},
        {"compute": {"workers": [1, 2]}},
        {"compute": {"gpus_per_worker": 1}},
        {"compute": {"strategy": "fsdp"}},
        {"compute": {"strategy": "deepspeed_zero3"}},
        {"compute": {"liger": True}},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", PHASES)
def test_what_a_phase_is_computed_on_changes_its_key(method, changes):
    batch = {"batch_size": 8}
    assert phase_of(method, batch, **changes) != phase_of(method, batch)


@pytest.mark.parametrize(
    "recipe", [{"samples": 4}, {"temperature": 0.5}, {"max_new_tokens": 9}, {"verifier": None}], ids=str
)
def test_the_recipe_of_generated_pairs_is_in_the_key(recipe):
    generate = {**PHASES["dpo"]["generate"], **recipe}
    assert phase_of("dpo", phase={"generate": generate}) != phase_of("dpo")


def test_where_a_phase_stands_on_a_shared_schedule_and_what_it_selects_on_change_the_key():
    made = spec(controls=[], curriculum={"phases": [{"tiers": [1]}], "sft": {"batch_size": 1}})
    plan = expand(made, 17)[0].phases[0]
    ids = ["a", "b", "c"]
    alone = phase_key(made, plan, ids, "base", 17)
    assert phase_key(made, plan, ids, "base", 17, span=(0, 3)) == alone
    assert phase_key(made, plan, ids, "base", 17, selection=None) == alone
    others = [phase_key(made, plan, ids, "base", 17, span=span) for span in ((0, 5), (2, 5))]
    assert len({alone, *others, phase_key(made, plan, ids, "base", 17, selection="s")}) == 4


def test_carrying_the_optimizer_over_changes_the_key():
    def second(carry):
        phases = [{"tiers": [1]}, {"tiers": [2], "carry": carry}]
        return key({"controls": [], "curriculum": {"phases": phases}}, index=2, order=["a"])

    assert second("optimizer") != second("none")


@pytest.mark.parametrize(
    ("method", "select", "matters"),
    [
        ("sft", "last", set()),
        ("grpo", "last", set()),
        ("dpo", "last", {"batch_tokens"}),
        ("sft", "best(loss)", {"batch_tokens"}),
        ("sft", "best(accuracy)", {"batch_tokens", "max_new_tokens"}),
        ("grpo", "best(accuracy)", {"batch_tokens", "max_new_tokens"}),
    ],
)
def test_settings_of_evaluation_are_in_the_key_only_where_training_uses_them(method, select, matters):
    changed = {
        "suites": ["loss"],
        "max_new_tokens": 3,
        "max_examples": 5,
        "batch_tokens": 100,
        "resamples": 300,
        "confidence": 0.9,
    }
    before = phase_of(method, {"select": select})
    moved = {
        name
        for name, value in changed.items()
        if phase_of(method, {"select": select}, evaluation={name: value}) != before
    }
    assert moved == matters


def test_the_packages_that_judge_and_quantize_are_in_the_key_where_they_do(monkeypatch):
    nf4 = {"model": {"adapter": {"quantize": "nf4"}}}
    accurate = {"select": "best(accuracy)"}

    def keys():
        return {
            "sft": phase_of("sft"),
            "lora": adapted(),
            "nf4": phase_of("sft", **nf4),
            "zero3": phase_of("sft", compute={"strategy": "deepspeed_zero3"}),
            "liger": phase_of("sft", compute={"liger": True}),
            "exact": phase_of("grpo"),
            "math": phase_of("grpo", phase={"rewards": ["boxed_math"]}),
            "selects": phase_of("sft", accurate),
            "function": phase_of("grpo", accurate, {"rewards": ["math:gcd"]}),
        }

    before = keys()
    moved = {
        "peft": {"lora", "nf4"},
        "bitsandbytes": {"nf4"},
        "deepspeed": {"zero3"},
        "liger-kernel": {"liger"},
        "math-verify": {"math", "selects", "function"},
    }
    for package in moved:
        with monkeypatch.context() as patch:
            for module in ("machine", "rewards"):
                pretended = lambda name, one=package: "9" if name == one else installed_version(name)  # noqa: E731  # a line
                patch.setattr(f"components.common.{module}.installed_version", pretended)
            after = keys()
        assert {name for name in after if after[name] != before[name]} == moved[package], package


def test_parent_order_seed_and_versions_change_the_key_of_a_phase(monkeypatch):
    ids = sequence(expand(spec(), 17)[0].phases[0], TIERS, 17)
    assert key(order=ids) == BEFORE
    others = [key(parent="other"), key(order=ids[::-1]), key(order=ids[:-1]), key(seed=18, order=ids)]
    monkeypatch.setattr("components.common.machine.installed_version", lambda name: "9")
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
        {"compute": {"gradient_checkpointing": True}},
        {"compute": {"checkpoint_every": 3}},
        {"seed": 18, "seeds": [17]},
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
