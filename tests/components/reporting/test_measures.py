import math

import pytest

from components.reporting.measures import ACCURACY, LOSS, Level, duration, p_value, parts_of
from components.reporting.plot_style import apart
from components.reporting.results import curriculum_title


def test_accuracy_is_percent_with_one_decimal():
    assert ACCURACY.level(Level(0.412, 0.389, 0.434)) == "41.2% [38.9, 43.4]"
    assert ACCURACY.difference(0.004, -0.012, 0.02) == "+0.4 points [-1.2, 2.0]"


def test_loss_has_three_decimals():
    assert LOSS.level(Level(1.2345, 1.2, 1.27)) == "1.234 [1.200, 1.270]"
    assert LOSS.difference(-0.0164, -0.02, -0.0121) == "-0.016 [-0.020, -0.012]"


def test_a_difference_that_rounds_to_nothing_has_no_sign():
    assert ACCURACY.gap(-0.0001) == "0.0"
    assert ACCURACY.gap(0.0) == "0.0"


def test_unknown_bounds_are_said():
    assert ACCURACY.level(Level(0.5, math.nan, math.nan)) == "50.0% [no interval]"


def test_null_bounds_are_read():
    level = ACCURACY.read({"verifiable.accuracy": 0.5, "verifiable.accuracy.low": None})
    assert level is not None and math.isnan(level.low) and math.isnan(level.high)
    assert ACCURACY.read({"verifiable.accuracy": None}) is None


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.61, "p = .61"),
        (0.0431, "p = .043"),
        (0.0996, "p = .10"),
        (0.0009, "p < .001"),
        (1.0, "p > .99"),
        (math.nan, "p unknown"),
    ],
)
def test_p_values(p, text):
    assert p_value(p) == text


def test_parts_are_tiers_by_number_and_slices():
    names = ["loss.nats_per_token", *(f"loss.tier_{t}.nats_per_token" for t in (10, 2)), "loss.new.nats_per_token.low"]
    assert parts_of([*names, "loss.unseen.nats_per_token"], LOSS) == (["tier_2", "tier_10"], ["unseen"])


def test_durations():
    assert [duration(s) for s in (0.42, 12.4, 185, 7800)] == ["0.4 s", "12 s", "3 min 05 s", "2 h 10 min"]


def test_curricula_have_names_for_sentences():
    assert curriculum_title("one_off") == "one-off"
    assert curriculum_title("only_1_2") == "tiers 1 and 2 alone"
    assert curriculum_title("only_3") == "tier 3 alone"


def test_labels_are_pushed_apart_in_their_order():
    assert apart([1.0, 1.0], 0.5) == [0.75, 1.25]
    assert apart([3.0, 1.0], 0.5) == [3.0, 1.0]
