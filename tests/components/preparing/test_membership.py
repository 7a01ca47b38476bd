"""Held-out membership follows the connected components of prompts and groups."""

from hypothesis import given
from hypothesis import strategies as st

from components.preparing.convert import HASHED, REFUSED, WANTED
from components.preparing.membership import Membership


def sides(*examples: tuple[str, str | None, int]) -> list[bool]:
    membership = Membership()
    nodes = [membership.add(p.encode(), None if g is None else b"g" + g.encode(), bits) for p, g, bits in examples]
    return [membership.held_out(node) for node in nodes]


def test_one_wish_holds_out_the_whole_group():
    assert sides(("p", "g", 0), ("q", "g", WANTED), ("r", "h", 0)) == [True, True, False]


def test_a_wish_reaches_through_prompts_and_groups():
    assert sides(("p", "g", 0), ("p", "h", 0), ("q", "h", 0), ("q", None, WANTED)) == [True] * 4
    assert sides(("p", None, 0), ("q", "g", WANTED), ("p", "g", 0)) == [True] * 3


def test_a_wish_for_training_beats_the_hash_and_yields_to_a_wish_for_the_held_out_part():
    assert sides(("p", "g", HASHED), ("q", "g", HASHED | REFUSED)) == [False, False]
    assert sides(("p", "g", REFUSED), ("q", "g", WANTED)) == [True, True]


def test_the_first_key_decides_for_what_is_tied_to_it():
    # The prompt came first, without a group and in training; the group's hash says otherwise.
    assert sides(("p", None, 0), ("p", "g", HASHED), ("q", "g", HASHED)) == [False, False, False]
    assert sides(("p", "g", HASHED), ("p", "h", 0), ("q", "h", 0)) == [True, True, True]


EXAMPLES = st.lists(
    st.tuples(
        st.sampled_from("pqrstuvw"),
        st.none() | st.sampled_from("abcdef"),
        st.sampled_from([0, 0, 0, HASHED, HASHED | WANTED, REFUSED]),
    ),
    max_size=30,
)


@given(EXAMPLES)
def test_no_prompt_and_no_group_on_both_sides(examples):
    found = sides(*examples)
    for column in (0, 1):
        held = {example[column] for example, side in zip(examples, found, strict=True) if side}
        kept = {example[column] for example, side in zip(examples, found, strict=True) if not side}
        assert not (held & kept) - {None}
    for (_, _, bits), side in zip(examples, found, strict=True):
        assert side or not bits & WANTED


@given(EXAMPLES, EXAMPLES)
def test_rows_with_new_prompts_and_groups_do_not_move_old_ones(old, new):
    fresh = [(prompt.upper(), group and group.upper(), bits) for prompt, group, bits in new]
    assert sides(*old, *fresh)[: len(old)] == sides(*old)
    assert sides(*fresh, *old)[len(fresh) :] == sides(*old)
