from collections import Counter

import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from components.common.curriculum import control_name, expand, phase_specs, sequence, tier_order
from components.common.keys import phase_key
from components.common.spec import Spec

TIERS = {1: ["a", "b", "c", "d", "e"], 2: ["f", "g", "h"], 3: ["i", "j", "k", "l"]}
SEED = 17
CONTROLS = ["one_off", "random_tiers", "hardest_only", "one_off_restarts", {"only": [1, 3]}]


def spec(controls=CONTROLS, tiers=3, **curriculum):
    return Spec.model_validate(
        {
            "name": "x",
            "data": {"train": [{"path": "lab://instructions"}]},
            "splitting": {"tiers": tiers},
            "curriculum": curriculum,
            "controls": controls,
        }
    )


def curricula(**curriculum):
    return {item.name: item.phases for item in expand(spec(**curriculum), SEED)}


def sequences(phases, tiers=TIERS):
    return [sequence(phase, tiers, SEED) for phase in phases]


def flat(lists):
    return [item for part in lists for item in part]


# --- the phases -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "expected"),
    [("ascending", [[1], [2], [3]]), ("descending", [[3], [2], [1]]), ([2, 3, 1], [[2], [3], [1]])],
)
def test_the_order_expands_into_one_phase_for_each_tier(order, expected):
    main = curricula(order=order)["main"]
    assert [phase.tiers for phase in main] == expected
    assert [phase.index for phase in main] == [1, 2, 3]
    assert [phase.name for phase in main] == [f"tier-{tier}" for (tier,) in expected]


def test_a_random_order_is_a_permutation_fixed_by_the_seed():
    random = spec(order="random", tiers=6)
    orders = {tuple(tier_order(random, seed)) for seed in range(20)}
    assert tier_order(random, 3) == tier_order(random, 3)
    assert all(sorted(order) == [1, 2, 3, 4, 5, 6] for order in orders)
    assert len(orders) > 10


def test_the_shorthand_equals_the_list_written_in_full():
    short = spec(order="descending", replay=0.25)
    full = spec(
        phases=[
            {"name": "tier-3", "tiers": [3]},
            {"name": "tier-2", "tiers": [2], "replay": 0.25},
            {"name": "tier-1", "tiers": [1], "replay": 0.25},
        ]
    )
    assert phase_specs(short, SEED) == full.curriculum.phases
    assert expand(short, SEED) == expand(full, SEED)


def test_one_phase_overrides_the_shared_settings_and_leaves_the_others():
    first, second = curricula(
        phases=[{"tiers": [1]}, {"tiers": [2, 3], "epochs": 5, "learning_rate": 0.01, "adam_betas": [0.5, 0.6]}],
        sft={"epochs": 3, "batch_size": 7},
        controls=[],
    )["main"]
    assert (first.settings.epochs, first.settings.batch_size, first.settings.learning_rate) == (3, 7, 5e-6)
    assert (second.settings.epochs, second.settings.batch_size, second.settings.learning_rate) == (5, 7, 0.01)
    assert second.settings.adam_betas == (0.5, 0.6)
    assert second.portions[0].epochs == 5
    assert second.name == "tier-2-3"


def test_controls_come_in_the_order_of_the_spec_and_have_these_names():
    assert list(curricula()) == ["main", "one_off", "random_tiers", "hardest_only", "one_off_restarts", "only_1_3"]
    assert control_name(spec().controls[4]) == "only_1_3"


# --- the sequence of one phase ---------------------------------------------------------------------------------------


def test_every_epoch_holds_every_example_of_the_tier_once_in_an_order_of_its_own():
    first = curricula(sft={"epochs": 3})["main"][0]
    order = sequence(first, TIERS, SEED)
    epochs = [order[0:5], order[5:10], order[10:15]]
    assert len(order) == 15
    assert all(sorted(epoch) == ["a", "b", "c", "d", "e"] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_sequence_depends_on_the_seed_and_not_on_the_order_of_the_file():
    first = curricula()["main"][0]
    turned = {tier: ids[::-1] for tier, ids in TIERS.items()}
    assert sequence(first, turned, SEED) == sequence(first, TIERS, SEED)
    assert sequence(first, TIERS, 18) != sequence(first, TIERS, SEED)


@limits(max_examples=40, deadline=None)
@given(st.sets(st.text("abcdef", min_size=1, max_size=4), min_size=1), st.sets(st.text("xyz", min_size=1, max_size=4)))
def test_new_examples_do_not_change_the_order_of_the_old_ones(old, new):
    phase = curricula(sft={"epochs": 2})["main"][0]
    before = sequence(phase, {1: sorted(old)}, SEED)
    after = sequence(phase, {1: sorted(old | new)}, SEED)
    both = len(old) + len(new)
    for epoch in range(2):
        kept = [item for item in after[epoch * both : (epoch + 1) * both] if item in old]
        assert kept == before[epoch * len(old) : (epoch + 1) * len(old)]


# --- replay ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "own", "expected"),
    # m = n r / (1 - r), rounded; at most what has been seen.
    [(0.5, 4, 4), (0.25, 9, 3), (0.2, 8, 2), (0.1, 3, 0), (0.9, 4, 20)],
)
def test_replay_draws_this_many_of_the_tiers_already_seen(share, own, expected):
    tiers = {1: [f"old-{number}" for number in range(20)], 2: [f"new-{number}" for number in range(own)]}
    second = curricula(tiers=2, replay=share, sft={"epochs": 1}, controls=[])["main"][1]
    counts = Counter(item.split("-")[0] for item in sequence(second, tiers, SEED))
    assert (counts["new"], counts["old"]) == (own, expected)


def test_the_first_phase_replays_nothing_and_no_phase_replays_the_future():
    main = curricula(order="descending", replay=0.5, sft={"epochs": 1})["main"]
    allowed = [set(TIERS[3]), {*TIERS[3], *TIERS[2]}, {*TIERS[3], *TIERS[2], *TIERS[1]}]
    for ids, seen in zip(sequences(main), allowed, strict=True):
        assert set(ids) <= seen
    assert [len(ids) for ids in sequences(main)] == [4, 3 + 3, 5 + 5]


def test_a_replayed_example_is_seen_once_in_each_epoch():
    second = curricula(replay=0.5, sft={"epochs": 2})["main"][1]
    counts = Counter(sequence(second, TIERS, SEED))
    assert set(counts.values()) == {2}
    assert sum(counts.values()) == 2 * (3 + 3)


def test_a_later_stage_replays_what_the_tiers_phases_have_seen():
    then = [{"tiers": [3], "replay": 0.5, "epochs": 1}]
    last = curricula(order=[3, 1, 2], then=then)["main"][-1]
    ids = sequence(last, TIERS, SEED)
    assert len(ids) == 8
    assert len(set(ids) - set(TIERS[3])) == 4


# --- controls --------------------------------------------------------------------------------------------------------

MIXED = {
    "phases": [
        {"tiers": [1], "epochs": 1},
        {"tiers": [2], "epochs": 3, "replay": 0.4},
        {"tiers": [3, 1], "epochs": 2, "replay": 0.2},
    ]
}


@pytest.mark.parametrize("curriculum", [{}, {"replay": 0.5}, {"order": "descending", "replay": 0.3}, MIXED])
def test_one_off_sees_exactly_the_examples_of_all_phases(curriculum):
    made = curricula(**curriculum)
    (mixed,) = made["one_off"]
    assert Counter(sequence(mixed, TIERS, SEED)) == Counter(flat(sequences(made["main"])))


@limits(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=3, max_size=3),
    st.lists(st.integers(1, 3), min_size=3, max_size=3),
    st.floats(0, 0.8),
    st.integers(1, 5),
)
def test_one_off_takes_the_steps_of_the_main_run_within_the_number_of_phases(sizes, epochs, replay, batch):
    tiers = {tier: [f"{tier}-{number}" for number in range(size)] for tier, size in enumerate(sizes, 1)}
    phases = [
        {"tiers": [tier], "epochs": epoch, "replay": replay if tier > 1 else 0.0}
        for tier, epoch in enumerate(epochs, 1)
    ]
    made = curricula(phases=phases)

    def steps(plans):
        return sum(-(-len(ids) // batch) for ids in sequences(plans, tiers))

    assert 0 <= steps(made["main"]) - steps(made["one_off"]) < 3
    assert steps(made["one_off_restarts"]) == steps(made["main"]) == steps(made["random_tiers"])


def test_one_off_is_mixed_over_the_tiers():
    tiers = {tier: [f"{tier}-{number:03d}" for number in range(200)] for tier in (1, 2, 3)}
    (mixed,) = curricula(sft={"epochs": 1})["one_off"]
    first = Counter(item[0] for item in sequence(mixed, tiers, SEED)[:150])
    assert all(30 < first[tier] < 70 for tier in "123")


def test_one_off_trains_at_the_settings_that_all_phases_share():
    phases = [{"tiers": [1], "learning_rate": 0.01, "epochs": 1}, {"tiers": [2, 3], "learning_rate": 0.01, "epochs": 4}]
    (mixed,) = curricula(phases=phases, sft={"batch_size": 9})["one_off"]
    assert (mixed.settings.learning_rate, mixed.settings.batch_size) == (0.01, 9)


def test_one_off_falls_back_to_the_shared_settings_where_the_phases_differ():
    phases = [{"tiers": [1], "learning_rate": 0.01}, {"tiers": [2, 3], "learning_rate": 0.02}]
    (mixed,) = curricula(phases=phases, sft={"learning_rate": 0.03})["one_off"]
    assert mixed.settings.learning_rate == 0.03


@pytest.mark.parametrize("curriculum", [{}, {"phases": [{"tiers": [1], "learning_rate": 0.5, "epochs": 3}]}])
def test_a_one_off_of_a_single_phase_is_that_phase(curriculum):
    whole = spec(tiers=1, controls=["one_off", "one_off_restarts"], **curriculum)
    keys = [
        phase_key(whole, plan, sequence(plan, TIERS, SEED), "base", SEED)
        for made in expand(whole, SEED)
        for plan in made.phases
    ]
    assert len(keys) == 3
    assert len(set(keys)) == 1


@pytest.mark.parametrize("curriculum", [{}, {"replay": 0.4}, MIXED])
def test_one_off_restarts_cuts_the_one_off_into_the_lengths_of_the_phases(curriculum):
    made = curricula(**curriculum)
    chunks = sequences(made["one_off_restarts"])
    assert [len(chunk) for chunk in chunks] == [len(ids) for ids in sequences(made["main"])]
    assert flat(chunks) == sequence(made["one_off"][0], TIERS, SEED)
    assert [p.settings for p in made["one_off_restarts"]] == [p.settings for p in made["main"]]


def test_random_tiers_have_the_sizes_of_the_tiers_and_other_members():
    made = curricula(sft={"epochs": 1})
    drawn = [set(ids) for ids in sequences(made["random_tiers"])]
    assert [len(ids) for ids in drawn] == [5, 3, 4]
    assert set.union(*drawn) == set(flat(TIERS.values()))
    assert drawn[0] != set(TIERS[1])
    assert [phase.name for phase in made["random_tiers"]] == ["random-1", "random-2", "random-3"]


def test_random_tiers_deal_only_what_the_main_run_trains_on():
    made = curricula(phases=[{"tiers": [3], "epochs": 1}, {"tiers": [1], "epochs": 1}], controls=["random_tiers"])
    drawn = sequences(made["random_tiers"])
    assert [len(ids) for ids in drawn] == [4, 5]
    assert sorted(flat(drawn)) == sorted(TIERS[1] + TIERS[3])


def test_hardest_only_and_only_keep_these_tiers_in_the_order_of_the_main_run():
    made = curricula(order="descending")
    assert [phase.tiers for phase in made["hardest_only"]] == [[3]]
    assert [phase.tiers for phase in made["only_1_3"]] == [[3], [1]]
    assert [phase.index for phase in made["only_1_3"]] == [1, 2]


def test_hardest_only_means_the_hardest_tier_that_the_phases_train_on():
    made = curricula(phases=[{"tiers": [2, 1]}, {"tiers": [1]}], controls=["hardest_only"])
    assert [phase.tiers for phase in made["hardest_only"]] == [[2]]


def test_hardest_only_of_an_ascending_run_replays_nothing_it_has_not_seen():
    (alone,) = curricula(replay=0.5, sft={"epochs": 1})["hardest_only"]
    assert sorted(sequence(alone, TIERS, SEED)) == TIERS[3]


def test_later_stages_follow_every_control():
    made = curricula(then=[{"name": "polish", "tiers": [2], "epochs": 1}, {"tiers": [3]}])
    for name, phases in made.items():
        assert [phase.name for phase in phases[-2:]] == ["polish", "tier-3"], name
        assert [phase.index for phase in phases] == list(range(1, len(phases) + 1)), name
        assert sorted(sequence(phases[-2], TIERS, SEED)) == TIERS[2], name


def test_repeats_within_an_epoch_are_spread_and_none_is_lost():
    phases = [{"tiers": [1], "epochs": 1}, {"tiers": [1, 2], "epochs": 1}]
    (mixed,) = curricula(phases=phases, controls=["one_off"])["one_off"]
    ids = sequence(mixed, TIERS, SEED)
    assert Counter(ids) == Counter(TIERS[1] * 2 + TIERS[2])
