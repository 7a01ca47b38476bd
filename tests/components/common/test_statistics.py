import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.common.paired import Comparison, combine_seeds, holm, paired_difference, sign_flip_p
from components.common.statistics import (
    Interval,
    accuracy_interval,
    bootstrap_ratios,
    cluster_sums,
    quartiles,
    ratio_interval,
    seed_spread,
    spearman,
    wilson_interval,
)


def names(count):
    return [str(number) for number in range(count)]


# --- clusters -------------------------------------------------------------------------------------------------------


def test_examples_of_one_group_are_added_up_and_the_others_stay_alone():
    nats, tokens = cluster_sums(["a", None, "a", None], [1, 2, 3, 4], [10, 20, 30, 40])
    assert nats.tolist() == [4, 2, 4]
    assert tokens.tolist() == [40, 20, 40]


def test_an_example_without_a_group_never_meets_a_group_of_that_name():
    assert cluster_sums([None, "0"], [1, 2])[0].tolist() == [1, 2]


@pytest.mark.parametrize(("clusters", "numbers"), [([], []), (["a"], [1, 2])])
def test_no_examples_or_differing_lengths_are_refused(clusters, numbers):
    with pytest.raises(ValueError, match=r"examples|lengths"):
        cluster_sums(clusters, numbers)


# --- the bootstrap --------------------------------------------------------------------------------------------------


def test_bootstrap_draws_the_distribution_counted_by_hand():
    # 27 draws of three clusters: the first two both have the ratio 1, so 8 draws give 1; only one gives 2.
    tops, bottoms = np.array([1.0, 2.0, 6.0]), np.array([1.0, 2.0, 3.0])
    expected = {}
    for draw in itertools.product(range(3), repeat=3):
        ratio = round(tops[list(draw)].sum() / bottoms[list(draw)].sum(), 9)
        expected[ratio] = expected.get(ratio, 0) + 1 / 27
    drawn, counts = np.unique(bootstrap_ratios(tops, bottoms, 54_000, seed=1).round(9), return_counts=True)
    assert drawn.tolist() == sorted(expected)
    assert (expected[1.0], expected[2.0]) == (pytest.approx(8 / 27), pytest.approx(1 / 27))
    shares = dict(zip(drawn.tolist(), (counts / 54_000).tolist(), strict=True))
    assert all(abs(shares[ratio] - expected[ratio]) < 0.01 for ratio in expected)


def test_ratio_interval_takes_the_percentiles_of_that_distribution():
    # The ends have 8/27 and 1/27 of the draws, both above 2.5%, so the 95% range reaches them.
    assert ratio_interval([1, 2, 6], [1, 2, 3], names(3), 0.95, 20_000, seed=1) == Interval(1.5, 1.0, 2.0)


def test_the_same_seed_gives_the_same_interval_and_chunks_do_not_matter(monkeypatch):
    numbers = np.random.default_rng(0).normal(size=50)
    first = ratio_interval(numbers, np.ones(50), names(50), 0.95, 1000, seed=3)
    assert ratio_interval(numbers, np.ones(50), names(50), 0.95, 1000, seed=3) == first
    assert ratio_interval(numbers, np.ones(50), names(50), 0.95, 1000, seed=4) != first
    monkeypatch.setattr("components.common.statistics._CHUNK", 50 * 7)
    assert ratio_interval(numbers, np.ones(50), names(50), 0.95, 1000, seed=3) == first


def test_one_cluster_says_nothing_of_the_spread():
    interval = ratio_interval([1, 2], [2, 2], ["a", "a"], 0.95, 100, seed=1)
    assert interval.value == 0.75
    assert math.isnan(interval.low)
    assert interval.to_dict() == {"value": 0.75, "low": None, "high": None}


def test_examples_that_weigh_nothing_do_not_divide_by_zero():
    interval = ratio_interval([3, 0, 5], [1, 0, 1], names(3), 0.95, 500, seed=1)
    assert interval == Interval(4.0, 3.0, 5.0)


@pytest.mark.parametrize("denominators", [[0, 0], [2, -1]])
def test_denominators_that_cannot_be_are_refused(denominators):
    with pytest.raises(ValueError, match="denominators"):
        ratio_interval([1, 1], denominators, names(2), 0.95, 100, seed=1)


def test_intervals_of_95_percent_cover_the_truth_about_that_often():
    random = np.random.default_rng(5)
    covered = 0
    for repetition in range(400):
        tokens = random.integers(5, 60, 60)
        nats = tokens * 1.5 + np.sqrt(tokens) * random.normal(0, 1, 60)
        interval = ratio_interval(nats, tokens, names(60), 0.95, 1000, seed=repetition)
        covered += interval.low <= 1.5 <= interval.high
    assert 0.91 <= covered / 400 <= 0.98


def test_clusters_widen_the_interval_where_their_examples_agree():
    # 20 problems with 10 wordings each, all right or all wrong: 200 examples know no more than 20.
    marks = np.repeat([0, 1] * 10, 10)
    clustered = accuracy_interval(marks, [str(index // 10) for index in range(200)], 0.95, 4000, seed=1)
    alone = accuracy_interval(marks, names(200), 0.95, 4000, seed=1)
    assert clustered.value == alone.value == 0.5
    assert (clustered.high - clustered.low) / (alone.high - alone.low) == pytest.approx(10**0.5, rel=0.12)


# --- proportions ----------------------------------------------------------------------------------------------------


def test_wilson_interval_of_a_textbook_case():
    # 81 of 263 at 95%: 0.255 to 0.366 (Newcombe 1998, table I, method 3)
    interval = wilson_interval(81, 263, 0.95)
    assert [round(bound, 4) for bound in (interval.low, interval.high)] == [0.2553, 0.3662]


def test_wilson_interval_at_the_ends():
    # 0 of 20: upper bound z^2 / (n + z^2) = 3.8415 / 23.8415
    assert wilson_interval(0, 20, 0.95).low == 0.0
    assert wilson_interval(0, 20, 0.95).high == pytest.approx(0.161125, abs=1e-6)
    assert wilson_interval(20, 20, 0.95).low == pytest.approx(1 - 0.161125, abs=1e-6)
    assert wilson_interval(20, 20, 0.95).high == 1.0


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_what_is_no_proportion_is_refused(successes, n):
    with pytest.raises(ValueError, match="not a proportion"):
        wilson_interval(successes, n, 0.95)


def test_accuracy_of_all_wrong_is_the_wilson_interval_of_the_clusters():
    clusters = [str(index // 2) for index in range(40)]
    assert accuracy_interval([0] * 40, clusters, 0.95, 100, seed=1) == wilson_interval(0, 20, 0.95)
    assert accuracy_interval([True] * 40, clusters, 0.95, 100, seed=1) == wilson_interval(20, 20, 0.95)


# --- paired differences ---------------------------------------------------------------------------------------------


def test_permutation_p_of_a_case_counted_by_hand():
    # Differences 1, 2, 3: of the 8 sign patterns only +++ and --- reach |6|.
    assert sign_flip_p(np.array([1.0, 2.0, 3.0]), 100, seed=1) == 2 / 8
    # 3, 1, -1: sums 3, 5, 1, 3 and their negatives; |3| is reached by 3, 5, 3: 6 of 8.
    assert sign_flip_p(np.array([3.0, 1.0, -1.0]), 100, seed=1) == 6 / 8
    # Zeros change nothing.
    assert sign_flip_p(np.array([1.0, 0, 2.0, 0, 3.0, 0]), 100, seed=1) == 2 / 8


def test_random_flips_agree_with_counting_them_all(monkeypatch):
    deltas = np.random.default_rng(3).normal(0.4, 1, 12)
    exact = sign_flip_p(deltas, 1, seed=1)
    monkeypatch.setattr("components.common.paired._EXACT_CLUSTERS", 0)
    assert sign_flip_p(deltas, 40_000, seed=1) == pytest.approx(exact, abs=0.01)


def test_random_flips_never_give_zero():
    assert sign_flip_p(np.ones(200), 999, seed=1) == 1 / 1000


def test_paired_difference_by_hand():
    # nats 10 and 6 over 4 and 4 tokens: (16 - 12) / 8; cluster ratios 0.25 and 0.75 bound the resamples.
    comparison = paired_difference([10, 6], [9, 3], [4, 4], names(2), 0.95, 2000, seed=1)
    assert comparison == Comparison(0.5, 0.25, 0.75, 2 / 4)


def test_results_that_are_equal_everywhere():
    assert paired_difference([1, 2], [1, 2], [1, 1], names(2), 0.95, 100, seed=1) == Comparison(0.0, 0.0, 0.0, 1.0)


def test_a_comparison_within_one_cluster_proves_nothing():
    comparison = paired_difference([1, 1], [0, 0], [1, 1], ["a", "a"], 0.95, 100, seed=1)
    assert comparison.to_dict() == {"difference": 1.0, "low": None, "high": None, "p": 1.0}


def test_paired_test_is_wrong_in_five_of_a_hundred():
    random = np.random.default_rng(11)
    rejected = 0
    for repetition in range(400):
        tokens = random.integers(5, 60, 40)
        shared = random.normal(2, 1, 40)
        first, second = tokens * (shared + random.normal(0, 0.3, (2, 40)))
        rejected += paired_difference(first, second, tokens, names(40), 0.95, 100, repetition, flips=500).p <= 0.05
    assert 0.02 <= rejected / 400 <= 0.085


def test_paired_interval_is_narrower_than_that_of_unpaired_results():
    random = np.random.default_rng(2)
    second = random.normal(2, 1, 200)
    first = second - 0.1 + random.normal(0, 0.1, 200)
    comparison = paired_difference(first, second, np.ones(200), names(200), 0.95, 1000, seed=1)
    assert comparison.high < 0
    assert comparison.high - comparison.low < 0.05
    assert comparison.p == 1 / 10_001


# --- several seeds --------------------------------------------------------------------------------------------------


def test_combined_seeds_by_hand():
    # Two seeds, two examples, differences [[1, 3], [2, 6]]: D = 2, 4; mean 3.
    # seeds: (1 + 1) / 1 / 2 = 1; examples: means 1.5 and 4.5, residuals -1.5 and 1.5: 2/1 * 4.5 / 4 = 2.25.
    # Each has 1 degree of freedom, so half = 12.7062 * sqrt(3.25), and p = 1 - 2 atan(3 / sqrt(3.25)) / pi.
    comparison = combine_seeds([[1, 3], [2, 6]], [[0, 0], [0, 0]], [1, 1], names(2), 0.95)
    assert comparison.difference == 3.0
    assert comparison.low == pytest.approx(3 - 22.9065, abs=1e-3)
    assert comparison.high == pytest.approx(3 + 22.9065, abs=1e-3)
    assert comparison.p == pytest.approx(0.34446, abs=1e-4)


def test_combined_seeds_that_never_differ_or_always_by_the_same():
    same = [[1.0] * 5] * 2
    assert combine_seeds(same, same, [1] * 5, names(5), 0.95) == Comparison(0.0, 0.0, 0.0, 1.0)
    lower = [[0.0] * 5] * 2
    assert combine_seeds(same, lower, [1] * 5, names(5), 0.95) == Comparison(1.0, 1.0, 1.0, 2.0**-4)


def test_combining_takes_two_seeds():
    with pytest.raises(ValueError, match="two or more seeds"):
        combine_seeds([[1, 2]], [[1, 2]], [1, 1], names(2), 0.95)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("luck", [0.0, 0.02, 0.1])
def test_luck_in_training_is_not_taken_for_an_effect(seeds, luck):
    """Each run shifts all its examples by luck, and the recipes are equal."""
    random = np.random.default_rng(seeds)
    rejected = 0
    for _ in range(400):
        runs = random.normal(0, luck, (2, seeds, 1)) + random.normal(0, 0.2, (2, seeds, 80))
        rejected += combine_seeds(list(runs[0]), list(runs[1]), np.ones(80), names(80), 0.95).p <= 0.05
    assert rejected / 400 <= 0.065


def test_a_test_of_one_seed_takes_luck_for_an_effect():
    random = np.random.default_rng(1)
    rejected = 0
    for repetition in range(200):
        first, second = random.normal(0, 0.1, (2, 1)) + random.normal(0, 0.2, (2, 80))
        rejected += paired_difference(first, second, np.ones(80), names(80), 0.95, 100, repetition, 200).p <= 0.05
    assert rejected / 200 > 0.4


def test_the_interval_over_seeds_agrees_with_its_p():
    random = np.random.default_rng(6)
    firsts, seconds = random.normal(0.1, 0.3, (3, 50)), random.normal(0, 0.3, (3, 50))
    p = combine_seeds(list(firsts), list(seconds), np.ones(50), names(50), 0.95).p
    edge = combine_seeds(list(firsts), list(seconds), np.ones(50), names(50), 1 - p)
    assert min(abs(edge.low), abs(edge.high)) == pytest.approx(0, abs=1e-9)


def test_more_seeds_find_a_real_effect():
    random = np.random.default_rng(4)
    runs = random.normal(2, 0.5, 200) + random.normal(0, 0.05, (2, 5, 1)) + random.normal(0, 0.2, (2, 5, 200))
    comparison = combine_seeds(list(runs[0] - 0.3), list(runs[1]), np.ones(200), names(200), 0.95)
    assert comparison.p < 0.01
    assert comparison.low < -0.3 < comparison.high < 0


def test_seed_spread():
    assert seed_spread([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert math.isnan(seed_spread([1.0])[1])


# --- the small ones -------------------------------------------------------------------------------------------------


def test_holm_by_hand():
    # 0.01 * 4; 0.02 * 3; then 0.03 * 2 = 0.06; 0.9 * 1
    assert holm([0.02, 0.9, 0.01, 0.03]) == pytest.approx([0.06, 0.9, 0.04, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_spearman_by_hand():
    assert spearman([1, 2, 3], [10, 20, 90]) == 1.0
    assert spearman([1, 2, 3], [3, 2, 1]) == -1.0
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5)
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / 22.5**0.5)


@pytest.mark.parametrize(
    ("x", "y"), [([1, 1, 1], [1, 2, 3]), ([1, 2], [1, 2]), ([1, 2, math.nan], [1, 2, 3]), ([], [])]
)
def test_spearman_is_none_where_it_is_undefined(x, y):
    assert spearman(x, y) is None


def test_spearman_leaves_out_pairs_without_a_number():
    assert spearman([1, 2, math.nan, 3], [1, 2, 0, 3]) == 1.0


@settings(deadline=None)  # the first example imports scipy
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=30))
def test_spearman_is_that_of_scipy(pairs):
    from scipy.stats import spearmanr

    x, y = zip(*pairs, strict=True)
    ours = spearman(x, y)
    if ours is None:
        assert len(set(x)) == 1 or len(set(y)) == 1
    else:
        assert ours == pytest.approx(spearmanr(x, y).statistic)


def test_quartiles_by_hand():
    assert quartiles([1, 2, 3, 4]) == [1.75, 2.5, 3.25]
    assert quartiles([5]) == [5, 5, 5]
