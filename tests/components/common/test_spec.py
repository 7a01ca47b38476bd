import typing

import pytest
from pydantic import BaseModel, ValidationError

from components.common.curriculum import expand
from components.common.spec import ComputeSpec, Spec, SplittingSpec
from components.common.spec_phases import SETTINGS, CurriculumSpec, PhaseSpec, SftSettings

SMALL = {"name": "x", "data": {"train": [{"path": "lab://instructions"}]}}
WHOLE = {
    "name": "alpaca-phased",
    "seed": 17,
    "seeds": [1, 2, 3],
    "model": {"path": "org/name", "dtype": "bfloat16", "attention": "eager"},
    "data": {
        "train": [{"path": "a.json", "format": "alpaca"}, {"path": "s3://b/d.jsonl", "format": "dolly", "weight": 0.5}],
        "held_out": {"fraction": 0.02, "sources": [{"path": "test.jsonl", "name": "test"}]},
        "seed": 5,
        "max_rejected": 0.1,
        "deduplicate": "exact",
    },
    "scoring": {"method": "ifd", "model": "lab", "column": "difficulty", "batch_tokens": 4096},
    "splitting": {"tiers": 3, "cut": "thresholds", "thresholds": [1.5, 3.5]},
    "curriculum": {
        "order": [2, 1, 3],
        "replay": 0.1,
        "sft": {"epochs": 2, "learning_rate": 5.0e-6},
        "then": [{"tiers": [3], "epochs": 1, "name": "polish"}],
    },
    "controls": ["one_off", "random_tiers", "hardest_only", {"only": [1, 2]}, "one_off_restarts"],
    "evaluation": {"suites": ["loss"], "max_new_tokens": 9, "max_examples": 10, "resamples": 100, "confidence": 0.9},
    "tracking": {"uri": "sqlite:///mlflow.db", "experiment": "phasetune", "enabled": False},
    "compute": {"workers": 8, "gpus_per_worker": 1, "ray": "local", "threads": 2},
    "secrets": {"judge_api_key": {"secret": "judge", "key": "token"}},
    "store": "runs/store",
}


def spec(**changes):
    return Spec.model_validate({**SMALL, **changes})


def why_not(**changes):
    with pytest.raises(ValidationError) as caught:
        spec(**changes)
    return str(caught.value)


def models(root=Spec):
    """The model and all models in its fields."""
    found, waiting = set(), [root]
    while waiting:
        model = waiting.pop()
        if isinstance(model, type) and issubclass(model, BaseModel) and model not in found:
            found.add(model)
            waiting += [field.annotation for field in model.model_fields.values()]
        else:
            waiting += typing.get_args(model)
    return found


@pytest.mark.parametrize("values", [SMALL, WHOLE], ids=["defaults", "everything"])
def test_a_spec_survives_the_way_through_json(values):
    first = Spec.model_validate(values)
    dumped = first.model_dump(mode="json")
    assert Spec.model_validate(dumped) == first
    assert Spec.model_validate(dumped).model_dump(mode="json") == dumped


def test_everything_written_is_kept():
    dumped = Spec.model_validate(WHOLE).model_dump(mode="json")

    def within(small, large):
        if isinstance(small, dict):
            return all(within(value, large[key]) for key, value in small.items())
        if isinstance(small, list):
            return len(small) == len(large) and all(map(within, small, large))
        return small == large

    assert within(WHOLE, dumped)


def test_every_model_refuses_unknown_keys_and_is_frozen():
    assert len(models()) == 24
    for model in models():
        assert (model.model_config["extra"], model.model_config["frozen"]) == ("forbid", True), model


def test_the_defaults_of_a_phase_are_the_papers():
    settings = SftSettings()
    assert (settings.epochs, settings.learning_rate, settings.weight_decay, settings.warmup_ratio) == (
        2,
        5e-6,
        0.1,
        0.1,
    )
    assert (settings.schedule, settings.adam_betas, settings.batch_size) == ("cosine", (0.9, 0.95), 128)


def test_a_phase_can_override_every_setting_within_the_same_bounds():
    known = {name for settings in SETTINGS.values() for name in settings.model_fields}
    assert known <= set(PhaseSpec.model_fields)
    wrong = {
        "epochs": 0,
        "learning_rate": 0,
        "batch_size": 0,
        "micro_batch_size": 0,
        "weight_decay": -1,
        "warmup_ratio": 1,
        "schedule": "x",
        "adam_betas": [0.9, 1.0],
        "max_grad_norm": 0,
        "max_length": 7,
    }
    for name, value in wrong.items():
        for model, place in ((SftSettings, {}), (PhaseSpec, {"tiers": [1]})):
            with pytest.raises(ValidationError, match=name):
                model.model_validate({name: value, **place})


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_no_number_is_endless_or_none(number):
    assert "finite number" in why_not(curriculum={"sft": {"weight_decay": number}})
    assert "finite number" in why_not(splitting={"tiers": 2, "cut": "thresholds", "thresholds": [number]})


@pytest.mark.parametrize(
    ("splitting", "reason"),
    [
        ({"tiers": 3, "cut": "thresholds", "thresholds": [1.0]}, "3 tiers need 2 thresholds, got 1"),
        ({"tiers": 3, "cut": "thresholds", "thresholds": [2.0, 2.0]}, "thresholds must increase"),
        ({"tiers": 2, "thresholds": [1.0]}, "thresholds are given, but cut is not `thresholds`"),
        ({"tiers": 0}, "greater than or equal to 1"),
    ],
)
def test_cuts_that_make_no_tiers_are_refused(splitting, reason):
    assert reason in why_not(splitting=splitting)


def test_one_tier_needs_no_threshold():
    assert SplittingSpec(tiers=1, cut="thresholds").thresholds == []


@pytest.mark.parametrize(
    ("curriculum", "reason"),
    [
        ({"order": [1, 2]}, r"curriculum.order [1, 2] must name each of the tiers 1 to 3 once"),
        ({"order": [1, 2, 2]}, "must name each of the tiers 1 to 3 once"),
        ({"order": [1, 2, 3, 4]}, "must name each of the tiers 1 to 3 once"),
        ({"phases": [{"tiers": [4]}]}, "a phase names the tiers [4]; there are the tiers 1 to 3"),
        ({"then": [{"tiers": [4]}]}, "a phase names the tiers [4]; there are the tiers 1 to 3"),
        ({"phases": [{"tiers": [2, 2]}]}, "a phase names the tiers [2, 2]; each may be named once"),
        ({"phases": []}, "`phases` must not be empty"),
        ({"phases": [{"epochs": 1}]}, "a phase must name its `tiers`"),
        ({"then": [{"epochs": 1}]}, "a phase must name its `tiers`"),
        ({"phases": [{"tiers": [1]}], "order": "descending", "replay": 0.1}, "in full; remove order, replay"),
        ({"replay": 1.0}, "less than 1"),
    ],
)
def test_curricula_that_contradict_themselves_are_refused(curriculum, reason):
    assert reason in why_not(curriculum=curriculum)


@pytest.mark.parametrize(
    ("controls", "reason"),
    [
        ([{"only": [4]}], "a control names the tiers [4]; there are the tiers 1 to 3"),
        ([{"only": [3]}], "a control names the tiers [3]; the phases train on [1, 2]"),
        ([{"only": []}], "at least 1 item"),
    ],
)
def test_controls_on_tiers_that_are_not_trained_on_are_refused(controls, reason):
    assert reason in why_not(controls=controls, curriculum={"phases": [{"tiers": [2]}, {"tiers": [1]}]})


@pytest.mark.parametrize("name", ["", "a b", "../x", "-x", ".x", "x" * 65, "a/b"])
def test_a_name_is_one_plain_word(name):
    assert "name" in why_not(name=name)


def test_seeds_repeat_the_run_and_must_differ():
    assert spec().all_seeds == [17]
    assert spec(seeds=[3, 1]).all_seeds == [3, 1]
    assert "seeds [1, 1] must differ" in why_not(seeds=[1, 1])
    assert "at least 1 item" in why_not(seeds=[])


def test_the_data_seed_is_the_specs_unless_given_also_when_it_is_zero():
    assert spec().data_seed == 17
    assert spec(data={**SMALL["data"], "seed": 0}).data_seed == 0


def test_there_must_be_training_data():
    assert "at least 1 item" in why_not(data={"train": []})


def test_a_gpu_is_whole_or_absent():
    with pytest.raises(ValidationError):
        ComputeSpec(gpus_per_worker=2)
    assert CurriculumSpec().order == "ascending"


LORA = {"path": "lab", "adapter": {"rank": 4}}


@pytest.mark.parametrize(
    ("says", "more"),
    [
        (
            "needs `adapter: continue`",
            {"model": LORA, "curriculum": {"sft": {"carry": "optimizer", "adapter": "merge"}}},
        ),
        ("the parent leaves its best", {"curriculum": {"sft": {"carry": "optimizer", "select": "best(loss)"}}}),
        (
            "needs `compute.strategy: ddp`",
            {"curriculum": {"sft": {"carry": "optimizer"}}, "compute": {"strategy": "fsdp"}},
        ),
        ("measures a whole model", {"curriculum": {"sft": {"select": "best(loss)"}}, "compute": {"strategy": "fsdp"}}),
        (
            "weights of four bits",
            {"model": {"path": "lab", "adapter": {"quantize": "nf4"}}, "curriculum": {"sft": {"adapter": "merge"}}},
        ),
        (
            "keeps none in a phase",
            {"curriculum": {"sft": {"on_divergence": "rollback(0.5)"}}, "compute": {"strategy": "deepspeed_zero3"}},
        ),
        (
            "behind another one",
            {"curriculum": {"then": [{"method": "dpo", "data": [{"path": "a"}], "carry": "optimizer"}]}},
        ),
        (
            "3 workers cannot share",
            {"curriculum": {"then": [{"method": "grpo", "tiers": [1]}]}, "compute": {"workers": [2, 4]}},
        ),
        ("do not hold one group", {"curriculum": {"then": [{"method": "grpo", "tiers": [1], "micro_batch_size": 2}]}}),
        ("is not a setting of sft", {"curriculum": {"then": [{"tiers": [1], "beta": 0.1}]}}),
        ("`beta` of a dpo phase", {"curriculum": {"then": [{"method": "dpo", "data": [{"path": "a"}], "beta": 0}]}}),
        ("a dpo phase on tiers needs `generate`", {"curriculum": {"then": [{"method": "dpo", "tiers": [1]}]}}),
        ("its `tiers` or its own `data`", {"curriculum": {"then": [{"tiers": [1], "data": [{"path": "a"}]}]}}),
        (
            "under `curriculum.then`",
            {"curriculum": {"phases": [{"method": "grpo", "tiers": [1]}]}, "controls": ["one_off"]},
        ),
        ("the first is the least", {"compute": {"workers": [3, 2]}}),
    ],
)
def test_phases_that_cannot_follow_or_be_trained_are_refused(says, more):
    assert says in why_not(**more)


def test_carrying_is_for_phases_after_the_first():
    spec = Spec.model_validate({**SMALL, "curriculum": {"sft": {"carry": "optimizer"}}})
    plans = {one.name: [plan.settings.carry for plan in one.phases] for one in expand(spec, 1)}
    assert plans == {"main": ["none", "optimizer", "optimizer"], "one_off": ["none"], "random_tiers": plans["main"]}


@pytest.mark.parametrize("place", ["ftp://host/store", "s3://", "http://bucket/prefix"])
def test_a_store_is_a_folder_or_a_bucket(place):
    assert "is neither a folder nor `s3://bucket/prefix`" in why_not(store=place)


@pytest.mark.parametrize("place", ["runs/store", "s3://bucket", "s3://bucket/prefix"])
def test_folders_and_buckets_are_stores(place):
    assert Spec.model_validate({**SMALL, "store": place}).store == place
