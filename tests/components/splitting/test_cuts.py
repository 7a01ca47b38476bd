from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.common.errors import DataError
from components.common.spec import SplittingSpec
from components.splitting.cuts import assign, cut_points
from components.splitting.distribution import five_numbers, histogram, show


def cuts(difficulties, tokens=None, **spec):
    array = np.array(difficulties, np.float64)
    return cut_points(array, np.array(tokens if tokens is not None else [1] * len(array)), SplittingSpec(**spec))


def sizes(difficulties, **spec):
    array = np.array(difficulties, np.float64)
    return np.bincount(assign(array, cuts(difficulties, **spec)))[1:].tolist()


# --- where the cuts are ---------------------------------------------------------------------------------------------


def test_quantiles_give_equal_counts_whatever_the_order():
    assert cuts([6, 1, 5, 2, 4, 3], tiers=3) == [3, 5]
    assert sizes([6, 1, 5, 2, 4, 3], tiers=3) == [2, 2, 2]


def test_quantiles_of_a_number_that_does_not_divide():
    # 7 / 3 = 2.33 and 14 / 3 = 4.67 round to 2 and 5 examples below the cuts
    assert sizes(range(7), tiers=3) == [2, 3, 2]


def test_ties_stay_together_and_the_cut_goes_to_the_nearest_change():
    # wanted: 3 below the cut; possible: 1 or 5
    assert cuts([1, 2, 2, 2, 2, 3], tiers=2) == [2]
    assert cuts([1, 1, 2, 2, 2, 3], tiers=2) == [2]
    assert cuts([1, 2, 2, 3, 3, 3], tiers=2) == [3]
    # wanted: 3; possible: 4 or 5
    assert cuts([1, 1, 1, 1, 2, 3], tiers=2) == [2]


def test_a_heavy_tie_at_the_easy_end_leaves_no_tier_empty():
    # Seven ratings of 1, as most of Alpaca has: both cuts want to be within the tie.
    assert cuts([1] * 7 + [2, 3, 4], tiers=3) == [2, 3]
    # At the hard end: the first cut takes the last change that leaves one for the second.
    assert cuts([1, 2, 3] + [4] * 7, tiers=3) == [3, 4]


def test_tokens_give_equal_tokens():
    # 100 tokens in all: the last example holds half of them
    assert cuts([1, 2, 3, 4], tokens=[20, 20, 10, 50], tiers=2, cut="tokens") == [4]
    # 90 tokens in three: 30 is just the first two, 60 the first four
    assert cuts([1, 2, 3, 4, 5], tokens=[10, 20, 15, 15, 30], tiers=3, cut="tokens") == [3, 5]
    # 40 wanted below; 30 and 60 possible
    assert cuts([1, 2, 2, 3], tokens=[30, 10, 20, 20], tiers=2, cut="tokens") == [2]


def test_thresholds_are_taken_as_given():
    assert cuts([1, 1.5, 3.5, 5], tiers=3, cut="thresholds", thresholds=[1.5, 3.5]) == [1.5, 3.5]


def test_one_tier_has_no_cut():
    assert cuts([1, 1, 1], tiers=1) == []


def test_an_example_at_a_cut_belongs_to_the_harder_tier():
    difficulties = np.array([1.0, 1.4999, 1.5, 3.4999, 3.5, 5.0, -9.0, 99.0])
    assert assign(difficulties, [1.5, 3.5]).tolist() == [1, 1, 2, 2, 3, 3, 1, 3]
    assert assign(np.array([7.0]), []).tolist() == [1]


def test_new_examples_do_not_move_the_tier_of_the_old_ones_under_thresholds():
    old = np.array([0.2, 0.7, 0.5])
    grown = np.concatenate([old, [0.9, 0.1]])
    assert assign(grown, [0.5]).tolist()[:3] == assign(old, [0.5]).tolist()


@given(
    st.lists(st.integers(-50, 50), min_size=1, max_size=60), st.integers(1, 6), st.sampled_from(["quantiles", "tokens"])
)
def test_every_example_is_in_exactly_one_tier_and_no_tier_is_empty(difficulties, tiers, cut):
    array = np.array(difficulties, np.float64)
    tokens = np.abs(array).astype(np.int64) + 1
    spec = SplittingSpec(tiers=tiers, cut=cut)
    if len(set(difficulties)) < tiers:
        with pytest.raises(DataError, match="distinct difficulties"):
            cut_points(array, tokens, spec)
        return
    values = cut_points(array, tokens, spec)
    assert values == sorted(set(values))
    assert len(values) == tiers - 1
    bounds = [-np.inf, *values, np.inf]
    belongs = [(array >= low) & (array < high) for low, high in pairwise(bounds)]
    assert np.sum(belongs, axis=0).tolist() == [1] * len(array)
    assert (np.argmax(belongs, axis=0) + 1).tolist() == assign(array, values).tolist()
    assert all(inside.any() for inside in belongs)


@given(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=60, unique=True), st.integers(1, 4))
def test_without_ties_the_counts_differ_by_at_most_one(difficulties, tiers):
    counts = sizes(difficulties, tiers=tiers)
    assert max(counts) - min(counts) <= 1


# --- what cannot be split -------------------------------------------------------------------------------------------


def test_difficulties_that_are_not_finite_are_counted():
    with pytest.raises(DataError, match=r"3 of 5 training examples .* \(2 not a number or missing, 1 infinite\)"):
        cuts([1, np.nan, np.inf, np.nan, 2], tiers=2)


def test_no_examples():
    with pytest.raises(DataError, match="no training examples"):
        cuts([], tiers=1)


def test_an_empty_tier_shows_the_distribution_and_what_to_do():
    difficulties = [2, 2.5, 2.5, 3, 3, 3, 3, 4, 4, 5]
    with pytest.raises(DataError) as caught:
        cuts(difficulties, tiers=3, cut="thresholds", thresholds=[1.5, 3.5])
    assert caught.value.message == (
        "these cuts leave an empty tier (1); examples in each: tier 1: 0, tier 2: 7, tier 3: 3\n"
        "  difficulty of 10 examples: min 2, quartiles 2.625 / 3 / 3.75, max 5\n"
        "  cuts: 1.5, 3.5\n"
        "           2 to 2.3               1 ##########\n"
        "         2.3 to 2.6               2 ####################\n"
        "         2.6 to 2.9               0 \n"
        "         2.9 to 3.2               4 ########################################\n"
        "         3.2 to 3.5               0 \n"
        "         3.5 to 3.8               0   < cut 3.5\n"
        "         3.8 to 4.1               2 ####################\n"
        "         4.1 to 4.4               0 \n"
        "         4.4 to 4.7               0 \n"
        "         4.7 to 5                 1 ##########"
    )
    assert caught.value.remedy == (
        "set splitting.thresholds to [3.0, 4.0] (near equal counts), use `cut: quantiles`, or fewer tiers"
    )


def test_the_suggested_thresholds_work():
    difficulties = [1.00001, 1.00002, 1.00003]  # four digits would make them one
    with pytest.raises(DataError, match="empty tier") as caught:
        cuts(difficulties, tiers=3, cut="thresholds", thresholds=[5, 6])
    assert "[1.00002, 1.00003]" in caught.value.remedy
    assert cuts(difficulties, tiers=3, cut="thresholds", thresholds=[1.00002, 1.00003]) == [1.00002, 1.00003]


def test_fewer_distinct_difficulties_than_tiers():
    with pytest.raises(DataError, match="3 tiers need 3 distinct difficulties, there are 2") as caught:
        cuts([1, 1, 2], tiers=3)
    assert "set splitting.tiers to 2 or fewer" in caught.value.remedy
    with pytest.raises(DataError, match="empty tier") as caught:
        cuts([1, 1, 2], tiers=4, cut="thresholds", thresholds=[1, 2, 3])
    assert "set splitting.tiers to 2 or fewer" in caught.value.remedy


# --- the distribution -----------------------------------------------------------------------------------------------


def test_five_numbers_by_hand():
    assert five_numbers(np.array([4, 1, 3, 2])) == {"min": 1, "q1": 1.75, "median": 2.5, "q3": 3.25, "max": 4}


def test_the_ends_of_the_histogram_collect_what_lies_beyond():
    values = np.concatenate([np.linspace(0, 1, 1001), [1e9, -1e9]])
    result = histogram(values)
    assert (len(result["edges"]), len(result["counts"])) == (41, 40)
    assert sum(result["counts"]) == 1003
    assert result["edges"][0] == pytest.approx(0.004, abs=0.002)
    assert result["edges"][-1] == pytest.approx(0.996, abs=0.002)


def test_the_histogram_of_equal_values():
    result = histogram(np.full(5, 2.0))
    assert (result["edges"][0], result["edges"][-1]) == (1.5, 2.5)
    assert sum(result["counts"]) == 5
    assert "5 ####" in show(np.full(5, 1e12), [])
