import hashlib
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.common.digests import canonical_json, digest, digest_file, digest_lines, hash_order, seed_for, unit_hash

NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text('aé\n"', max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=8,
)


def test_one_value_has_one_spelling():
    assert canonical_json({"b": [1, 2.5, None, True], "a": "é"}) == '{"a":"é","b":[1,2.5,null,true]}'
    assert canonical_json({"a": (1, 2)}) == canonical_json({"a": [1, 2]})


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_that_are_none_are_refused(number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"a": number})


def test_a_digest_is_the_first_half_of_sha_256():
    assert digest("abc") == hashlib.sha256(b'"abc"').hexdigest()[:32] == "6cc43f858fbb763301637b5af970e2a4"
    assert len(digest([])) == 32


@settings(max_examples=50, deadline=None)
@given(JSON, JSON)
def test_two_values_have_one_digest_only_if_they_are_written_alike(first, second):
    assert (digest(first) == digest(second)) == (canonical_json(first) == canonical_json(second))


def test_lines_are_digested_in_order():
    assert digest_lines(["a", "b"]) == hashlib.sha256(b"a\nb\n").hexdigest()[:32]
    assert len({digest_lines(lines) for lines in (["a", "b"], ["b", "a"], ["ab"], ["a", "", "b"], [])}) == 5


def test_a_file_is_digested_in_full(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert digest_file(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_seeds_differ_by_purpose_and_by_seed_and_fit_every_library():
    # The first 4 bytes of SHA-256 of "17:training", without the sign.
    expected = int(hashlib.sha256(b"17:training").hexdigest()[:8], 16) % 2**31
    assert seed_for(17, "training") == expected
    seeds = {seed_for(seed, purpose) for seed in range(50) for purpose in ("training", "order", "bootstrap")}
    assert len(seeds) == 150
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_hashes_fill_the_unit_interval_evenly():
    values = [unit_hash(str(number), 17, "held_out") for number in range(4000)]
    assert all(0 <= value < 1 for value in values)
    assert sum(value < 0.1 for value in values) == pytest.approx(400, abs=80)
    assert unit_hash("1", 17, "held_out") not in (unit_hash("1", 18, "held_out"), unit_hash("1", 17, "order"))


@settings(max_examples=50, deadline=None)
@given(st.sets(st.text(max_size=4)), st.sets(st.text(max_size=4)))
def test_new_ids_do_not_move_the_old_ones(old, new):
    both = hash_order(old | new, 17, "order")
    assert [item for item in both if item in old] == hash_order(old, 17, "order")


def test_an_order_does_not_depend_on_how_the_ids_come_and_repeats_stay():
    assert hash_order(["a", "b", "c", "a"], 1, "x") == hash_order(["c", "a", "a", "b"], 1, "x")
    assert sorted(hash_order(["a", "b", "c", "a"], 1, "x")) == ["a", "a", "b", "c"]
