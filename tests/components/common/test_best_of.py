"""Who is best of several: hand-made cases, and how often a winner is announced where there is none."""

import numpy as np
import pytest

from components.common.best_of import contest


def marks(draw, rate, examples=300):
    return (draw.random(examples) < rate).astype(float)


def judge(candidates, seed=1, larger=True, resamples=500, shares=True):
    count = len(candidates[0][0])
    return contest(candidates, np.ones(count), [None] * count, larger, 0.95, resamples, seed, shares)


def test_one_that_is_right_everywhere_wins_over_one_that_is_wrong_everywhere():
    found = judge([[np.zeros(50)], [np.ones(50)], [np.zeros(50)]])
    assert (found.leader, found.won, found.chances[1]) == (1, True, 1.0)
    assert found.values == [0.0, 1.0, 0.0]
    assert (found.difference.difference, found.runner_up) == (1.0, 0)


def test_equal_candidates_share_the_chance_and_none_wins():
    same = np.tile([0.0, 1.0], 40)
    found = judge([[same], [same], [same], [same]])
    assert found.chances == pytest.approx([0.25] * 4)
    assert not found.won


def test_the_smallest_wins_where_less_is_better():
    draw = np.random.default_rng(3)
    low, high = draw.normal(1.0, 0.1, 200), draw.normal(2.0, 0.1, 200)
    found = judge([[high], [low]], larger=False, shares=False)
    assert (found.leader, found.won) == (1, True)
    assert found.lows[1] < found.values[1] < found.highs[1]


def test_seeds_that_disagree_make_the_chance_smaller():
    """The means are the same in both cases: only the spread between seeds tells luck from skill."""
    draw = np.random.default_rng(5)
    other = [marks(draw, 0.5), marks(draw, 0.5), marks(draw, 0.5)]
    steady = judge([[marks(draw, 0.72) for _ in range(3)], other])
    shaky = judge([[marks(draw, rate) for rate in (0.44, 0.72, 1.0)], other])
    assert steady.chances[0] > 0.99 > shaky.chances[0]
    assert steady.won
    assert not shaky.won


def test_one_candidate_has_nobody_to_win_against():
    found = judge([[np.ones(10)]])
    assert (found.chances, found.runner_up, found.difference, found.won) == ([1.0], None, None, False)


def test_no_share_is_certain_or_above_one():
    """All right everywhere: Wilson's bound. Seeds far apart: the widened draws would go past 1."""
    found = judge([[np.ones(40), np.ones(40)], [np.ones(40), np.zeros(40)]])
    assert (round(found.lows[0], 3), found.highs[0]) == (0.912, 1.0)
    assert (found.lows[1], found.highs[1]) == (0.0, 1.0)
    outside = judge([[np.ones(40), np.ones(40)], [np.ones(40), np.zeros(40)]], shares=False)
    assert outside.highs[1] > 1.0


def test_the_same_seed_gives_the_same_draws():
    draw = np.random.default_rng(7)
    candidates = [[marks(draw, 0.5)], [marks(draw, 0.55)]]
    assert judge(candidates, seed=4) == judge(candidates, seed=4)
    assert judge(candidates, seed=4).chances != judge(candidates, seed=5).chances


def test_different_numbers_of_seeds_are_refused():
    with pytest.raises(ValueError, match=r"\[1, 2\]"):
        judge([[np.ones(5)], [np.ones(5), np.ones(5)]])


@pytest.mark.proof
@pytest.mark.parametrize(
    ("candidates", "seeds"),
    [(2, 1), (5, 3), *(pytest.param(*many, marks=pytest.mark.soak) for many in ((5, 1), (2, 3), (8, 2)))],
)
def test_equal_candidates_rarely_name_a_winner(candidates, seeds):
    """2,000 contests of equal candidates, whose seeds differ as training does: 5% may name a winner (to 6.5: three
    standard errors of the count)."""
    draw = np.random.default_rng(11 * candidates + seeds)
    spread = 0.03 if seeds > 1 else 0.0
    named = 0
    for _ in range(2000):
        hard = draw.random(150)  # some examples are harder than others, for everybody
        runs = [
            [
                (hard < 0.6 + spread * draw.standard_normal() + 0.1 * draw.standard_normal(150)).astype(float)
                for _ in range(seeds)
            ]
            for _ in range(candidates)
        ]
        named += judge(runs, resamples=20).won
    assert named / 2000 < 0.065
