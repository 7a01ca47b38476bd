import pytest

from components.common.paired import Comparison
from components.reporting.comparisons import compare, decide
from components.reporting.measures import ACCURACY, LOSS
from components.reporting.results import load_results
from components.reporting.verdict import describe, verdict
from tests.components.reporting import build_run as runs


def say(records):
    results = load_results(records)
    return verdict(results, compare(results))


def test_no_difference_shown(tmp_path):
    said = say(runs.build_run(tmp_path, spec=runs.spec_of(controls=["one_off"])))
    assert said.startswith("3 phases, ascending: held-out accuracy 62.0% [")
    assert "; one-off at equal compute 61.0% [" in said
    assert "]: no difference shown (difference +1.0 points [" in said
    assert "adjusted" not in said
    assert said.endswith("One seed: luck in training is not excluded.")


def test_better(tmp_path):
    said = say(runs.build_run(tmp_path, final={"one_off": 0.45}))
    assert "one-off at equal compute 45.0% [" in said
    assert "]: the main run is better (difference +17.0 points [" in said
    assert "adjusted p < .001). Random tiers at equal compute 52.0% [" in said
    assert "p-values are adjusted for 2 comparisons (Holm)." in said


def test_worse(tmp_path):
    said = say(runs.build_run(tmp_path, final={"one_off": 0.75}))
    assert "one-off at equal compute 75.0% [" in said
    assert "]: the main run is worse (difference -13.0 points [" in said


def test_loss_only_and_lower_is_better(tmp_path):
    spec = runs.spec_of(controls=["one_off", "random_tiers"])
    losses = {"main": 1.0, "one_off": 1.2, "random_tiers": 0.8}
    said = say(runs.build_run(tmp_path, spec=spec, verifiable=False, losses=losses))
    first, second = said.split(". Random tiers")
    assert first.startswith("3 phases, ascending: held-out loss 0.9")
    assert "nats per token (lower is better); one-off at equal compute 1.1" in first
    assert "the main run is better (difference -0.2" in first
    assert "the main run is worse (difference +0.199 [" in second


def test_one_off_comes_first_wherever_it_is_listed(tmp_path):
    said = say(runs.build_run(tmp_path, spec=runs.spec_of(controls=["random_tiers", "one_off"])))
    assert said.index("one-off") < said.index("Random tiers")


def test_unequal_compute_is_said(tmp_path):
    said = say(runs.build_run(tmp_path, spec=runs.spec_of(controls=["hardest_only"])))
    assert "; hardest tier alone with 33% of the tokens 60.0% [" in said


def test_no_control(tmp_path):
    said = say(runs.build_run(tmp_path, spec=runs.spec_of(controls=[])))
    assert "The run has no control: there is nothing to compare the phases with." in said
    assert "better" not in said


def test_incomplete(tmp_path):
    said = say(runs.build_run(tmp_path, missing={"train.one_off.1.s17", "evaluate.one_off.1.s17"}))
    assert said.startswith("The run is incomplete: train.one_off.1.s17, evaluate.one_off.1.s17 are missing. 3 phases")
    assert "one-off has no result yet: not compared." in said
    assert "Random tiers at equal compute 52.0%" in said


def test_no_result_of_main_is_no_verdict(tmp_path):
    said = say(runs.build_run(tmp_path, missing={"evaluate.main.3.s17"}))
    assert said == (
        "The run is incomplete: evaluate.main.3.s17 is missing. "
        "3 phases, ascending: no result of the main run, so there is no verdict."
    )


def test_lost_answers_are_missing_too(tmp_path):
    records = runs.build_run(tmp_path)
    (tmp_path / "store/evaluations" / records.read("evaluate.one_off.1.s17").key / "examples.parquet").unlink()
    said = say(records)
    assert said.startswith("The run is incomplete: evaluate.one_off.1.s17 (its examples.parquet) is missing.")
    assert "not compared, for want of results on the same examples" in said


def test_several_seeds(tmp_path):
    spec = runs.spec_of(seeds=[1, 2, 3], controls=["one_off"])
    said = say(runs.build_run(tmp_path, spec=spec, by_seed={1: 0.02, 2: -0.02, 3: 0.0}))
    assert said.startswith("3 phases, ascending: held-out accuracy 62.0% [")
    assert "no difference shown (difference +1.0 points [" in said
    assert said.endswith(
        "3 seeds: the intervals include the spread between them; "
        "standard deviation between them: main 2.0, one-off 2.0 points."
    )


def test_the_same_training_is_not_compared(tmp_path):
    spec = runs.spec_of(controls=["one_off"])
    records = runs.build_run(tmp_path, spec=spec, final={"one_off": 0.62})
    twin = records.read("train.one_off.1.s17")
    twin.key = records.read("train.main.3.s17").key
    records.write(twin)
    assert "it is the very same training, so there is nothing to compare" in say(records)


@pytest.mark.parametrize(
    ("low", "high", "p_holm", "outcome"),
    [
        (0.01, 0.05, 0.01, "better"),
        (0.01, 0.05, 0.06, "no difference shown"),  # the adjusted p says no
        (-0.01, 0.05, 0.01, "no difference shown"),  # the interval says no
        (float("nan"), float("nan"), 0.01, "no difference shown"),
    ],
)
def test_where_interval_and_p_disagree_nothing_is_claimed(low, high, p_holm, outcome):
    assert decide(ACCURACY, Comparison(0.03, low, high, 0.01), p_holm, 0.95) == outcome


def test_the_direction_of_loss():
    assert decide(LOSS, Comparison(0.03, 0.01, 0.05, 0.001), 0.001, 0.95) == "worse"
    assert decide(LOSS, Comparison(-0.03, -0.05, -0.01, 0.001), 0.001, 0.95) == "better"


@pytest.mark.parametrize(
    ("curriculum", "text"),
    [
        ({}, "3 phases, ascending"),
        ({"order": "random"}, "3 phases, in random order"),
        ({"order": [2, 1, 3]}, "3 phases, tiers in the order 2, 1, 3"),
        ({"then": [{"tiers": [3], "name": "again"}]}, "4 phases, ascending, then again"),
        ({"phases": [{"tiers": [1, 2]}, {"tiers": [3]}]}, "2 phases (tier-1-2, tier-3)"),
    ],
)
def test_descriptions(curriculum, text):
    assert describe(runs.spec_of(curriculum=curriculum)) == text


def test_one_tier_is_one_phase():
    assert describe(runs.spec_of(splitting={"tiers": 1})) == "1 phase"
