"""The sweep's spec and its trials: what is refused before anything starts, and which trials there are."""

from math import factorial
from pathlib import Path

import pytest
import yaml

from components.common.errors import SpecError
from pipelines.sweep_space import trials_of
from pipelines.sweep_spec import load_sweep

BASE = {"name": "base", "data": {"train": [{"path": "lab://instructions?count=60"}]}, "controls": ["one_off"]}


@pytest.fixture
def written(tmp_path: Path):
    """Writes a sweep over a base spec and returns its file."""

    def write(space, base=None, **more):
        (tmp_path / "base.yaml").write_text(yaml.safe_dump({**BASE, **(base or {})}))
        file = tmp_path / "sweep.yaml"
        file.write_text(yaml.safe_dump({"name": "s", "base": "base.yaml", "space": space, **more}))
        return file

    return write


def refusal(file, *overrides):
    with pytest.raises(SpecError) as caught:
        trials_of(load_sweep(file, overrides))
    return str(caught.value)


def test_all_orders_of_one_to_four_tiers_are_33_trials(written):
    sweep = load_sweep(written({"splitting.tiers": [1, 2, 3, 4], "curriculum.order": "permutations"}))
    trials = trials_of(sweep)
    assert len(trials) == sum(factorial(tiers) for tiers in (1, 2, 3, 4)) == 33
    assert trials[0] == {"splitting.tiers": 1, "curriculum.order": [1]}
    assert {tuple(trial["curriculum.order"]) for trial in trials if trial["splitting.tiers"] == 2} == {(1, 2), (2, 1)}


def test_a_trial_is_a_spec_without_controls_whose_held_out_part_stays(written):
    sweep = load_sweep(written({"splitting.tiers": [2], "curriculum.order": "permutations"}, {"seed": 5}))
    spec = sweep.resolved({"splitting.tiers": 2, "curriculum.order": [2, 1]}, seed=9)
    assert (spec.seed, spec.data_seed, spec.controls, spec.curriculum.order) == (9, 5, [], [2, 1])
    assert sweep.resolved({}).seed == 5


def test_controls_of_the_space_are_kept(written):
    sweep = load_sweep(written({"controls": [["random_tiers"]], "splitting.tiers": [2, 3]}))
    assert [sweep.resolved(params).controls for params in trials_of(sweep)] == [["random_tiers"]] * 2


def test_ranges_become_points_of_a_grid_and_draws_of_a_search(written):
    rate = "curriculum.sft.learning_rate"
    grid = load_sweep(written({rate: {"log_uniform": [1e-4, 1e-2], "points": 3}}))
    assert [trial[rate] for trial in trials_of(grid)] == [1e-4, 1e-3, 1e-2]
    drawn = load_sweep(written({rate: {"log_uniform": [1e-4, 1e-2]}}, search={"method": "random", "trials": 200}))
    rates = [trial[rate] for trial in trials_of(drawn)]
    assert len(rates) == 200
    assert 1e-4 <= min(rates) < 2e-4
    assert 80 <= sum(value < 1e-3 for value in rates) <= 120


def test_a_longer_search_begins_with_the_trials_of_a_shorter_one(written):
    space = {"splitting.tiers": {"integers": [2, 5]}, "curriculum.order": "permutations"}
    short, long = (
        trials_of(load_sweep(written(space, search={"method": "random", "trials": count, "seed": 3})))
        for count in (10, 30)
    )
    assert long[: len(short)] == short
    assert all(sorted(t["curriculum.order"]) == list(range(1, t["splitting.tiers"] + 1)) for t in long)


def test_a_sample_of_the_orders_is_another_one_each_and_all_where_there_are_fewer(written):
    space = {"splitting.tiers": [2, 5], "curriculum.order": {"sample": 8}}
    trials = trials_of(load_sweep(written(space)))
    assert [sum(t["splitting.tiers"] == tiers for t in trials) for tiers in (2, 5)] == [2, 8]


def test_listed_orders_go_with_their_number_of_tiers(written):
    space = {"splitting.tiers": [2, 3], "curriculum.order": ["descending", [1, 2], [3, 1, 2]]}
    trials = [(t["splitting.tiers"], t["curriculum.order"]) for t in trials_of(load_sweep(written(space)))]
    assert trials == [(2, "descending"), (2, [1, 2]), (3, "descending"), (3, [3, 1, 2])]


@pytest.mark.parametrize(
    ("space", "base", "more", "said"),
    [
        ({"splitting.tier": [1]}, {}, {}, "did you mean `splitting.tiers`"),
        ({"splitting.tiers": []}, {}, {}, "space.splitting.tiers"),
        ({"curriculum.sft.learning_rate": {"log_uniform": [1e-3, 1e-4]}}, {}, {}, "is empty"),
        ({"curriculum.sft.learning_rate": {"uniform": [1e-4, 1e-3]}}, {}, {}, "needs points"),
        ({"model.path": "permutations"}, {}, {}, "are for curriculum.order alone"),
        ({"splitting.tiers": [2, 3]}, {"splitting": {"tiers": 2, "cut": "thresholds", "thresholds": [1]}}, {}, "fixed"),
        ({"splitting.tiers": [2]}, {}, {"objective": {"metric": "verifiable.acuracy"}}, "verifiable.accuracy"),
        ({"splitting.tiers": [2]}, {}, {"objective": {"metric": "acuracy"}}, "verifiable.accuracy"),
        ({"splitting.tiers": [2]}, {"evaluation": {"suites": ["loss"]}}, {}, "loss.nats_per_token"),
        ({"splitting.tiers": [2]}, {"seeds": [1, 2]}, {}, "search.seeds"),
        ({"splitting.tiers": [4], "curriculum.order": "permutations"}, {}, {"search": {"trials": 23}}, "more than 23"),
        ({"splitting.tiers": [2]}, {}, {"budgets": {}}, "did you mean `budget`"),
        ({"splitting.tiers": [8], "curriculum.order": "permutations"}, {}, {"search": {"trials": 99999}}, "40320"),
    ],
)
def test_what_cannot_work_is_refused_with_the_names_that_exist(written, space, base, more, said):
    assert said in refusal(written(space, base, **more))


@pytest.mark.parametrize("key", ["seed", "seeds", "data.seed"])
def test_seeds_are_no_dimension_and_the_refusal_names_what_repeats(written, key):
    said = refusal(written({key: [1, 2]}))
    assert f"space.{key} cannot be varied" in said
    assert "`search.seeds`" in said


@pytest.mark.parametrize(
    "key",
    [
        *("name", "store", "secrets", "tracking.enabled", "tracking", "compute.ray", "compute.workers"),
        *("data.held_out.fraction", "data.held_out", "evaluation.max_new_tokens", "evaluation.suites"),
    ],
)
@pytest.mark.parametrize("values", [["a"], ["a", "b"]])
def test_what_judges_or_keeps_a_trial_cannot_be_varied(written, key, values):
    assert f"space.{key} cannot be varied" in refusal(written({key: values}))


def test_a_whole_section_with_what_cannot_be_varied_says_what_that_is(written):
    assert "space.data holds `data.seed`, which cannot be varied" in refusal(written({"data": [{"train": []}]}))


def test_controls_that_vary_would_make_twins(written):
    assert "compared with their own twins" in refusal(written({"controls": [[], ["one_off"]]}))


def test_the_training_data_vary_only_where_the_held_out_part_does_not_come_of_them(written):
    sources = [[{"path": f"lab://instructions?count={count}"}] for count in (60, 90)]
    assert "would be judged on other examples" in refusal(written({"data.train": sources}))
    held = {"fraction": 0, "sources": [{"path": "lab://instructions?count=30&seed=2"}]}
    base = {"data": {"train": sources[0], "held_out": held}}
    assert len(trials_of(load_sweep(written({"data.train": sources}, base)))) == 2


MOVED = {
    "splitting.cut": ["quantiles", "tokens"],
    "splitting.tiers": [2, 3],
    "scoring.method": ["column", "length"],
    "model.path": ["lab", "other/model"],
    "curriculum.sft.max_length": {"integers": [128, 256]},
}


@pytest.mark.parametrize("key", MOVED)
def test_a_tier_decides_only_where_it_holds_the_same_examples_in_all_trials(written, key):
    said = refusal(written({key: MOVED[key]}, objective={"on": "tier_2"}))
    assert f"space.{key} changes which examples are in that tier" in said
    assert "`on: held_out`, or the name of a slice" in said
    load_sweep(written({key: MOVED[key]}, objective={"on": "hard"}))


@pytest.mark.parametrize(
    "space",
    [{"splitting.tiers": [2], "curriculum.order": "permutations"}, {"model.adapter": [None, {"rank": 4}]}],
)
def test_a_tier_decides_where_only_the_training_varies(written, space):
    load_sweep(written(space, objective={"on": "tier_2"}))


OPTUNA = {"search": {"method": "optuna"}}


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"splitting.cut": ["quantiles", "nonsense"]}, "the trial splitting.cut=nonsense has 1 error"),
        ({"curriculum.sft.learning_rate": {"uniform": [-1.0, 1e-3]}}, "the trial curriculum.sft.learning_rate=-1.0"),
        ({"splitting.tiers": [2, 3], "curriculum.order": [[1, 2, 3]]}, "lists no order of 2 tiers"),
        ({"splitting.tiers": {"integers": [2, 4]}, "curriculum.order": [[1, 2], [4, 3, 2, 1]]}, "no order of 3 tiers"),
        ({"splitting.tiers": [3], "curriculum.order": ["descending", [1, 2, 2]]}, "curriculum.order=[1, 2, 2]"),
        (
            {f"data.train.{place}.weight": [0.5, 0.6, 0.7] for place in range(6)} | {"splitting.tiers": [2, 0]},
            "splitting.tiers=0",
        ),
    ],
)
def test_what_optuna_could_not_propose_is_refused_before_it_starts(written, space, said):
    train = [{"path": f"lab://instructions?count={60 + place}"} for place in range(6)]
    base = {"data": {"train": train, "held_out": {"fraction": 0, "sources": [{"path": "lab://instructions"}]}}}
    with pytest.raises(SpecError) as caught:
        load_sweep(written(space, base, **OPTUNA))
    assert said in str(caught.value)


@pytest.mark.parametrize("method", ["grid", "random"])
def test_a_number_of_tiers_without_an_order_is_refused(written, method):
    for tiers in ([2], [2, 3]):
        space = {"splitting.tiers": tiers, "curriculum.order": [[1, 2, 3]]}
        assert "lists no order of 2 tiers" in refusal(written(space, search={"method": method}))


def test_asha_is_refused_where_a_phase_has_data_of_its_own(written):
    """Their tokens are not known before they are trained on, and rungs are counted in tokens."""
    then = [[], [{"method": "sft", "data": [{"path": "lab://instructions?count=20"}]}]]
    sweep = load_sweep(written({"curriculum.then": then}, stop={"scheduler": "asha"}))
    assert sweep.resolved({"curriculum.then": then[0]})
    with pytest.raises(SpecError, match="a phase has `data` of its own"):
        sweep.resolved({"curriculum.then": then[1]})


def test_a_value_that_the_spec_refuses_names_the_trial(written):
    sweep = load_sweep(written({"splitting.tiers": [2, 0]}))
    with pytest.raises(SpecError, match=r"the trial splitting.tiers=0 has 1 error"):
        [sweep.resolved(params) for params in trials_of(sweep)]


def test_set_reaches_the_sweep_and_the_base_spec(written):
    sweep = load_sweep(written({"splitting.tiers": [2]}), ["search.seeds=3", "evaluation.max_new_tokens=7"])
    assert sweep.spec.search.seeds == 3
    assert sweep.resolved({}).evaluation.max_new_tokens == 7
