"""The lab's rows: determinism, the split by content, the reserved wordings, the difficulty, and every answer."""

import hashlib
import json
import random
import re
from collections import Counter
from itertools import islice

import pytest

from components.lab.families import FAMILIES, WORDS
from components.lab.generator import Choice, generate, verify, write_lab
from components.lab.wording import TEMPLATES
from components.lab.world import ATTRIBUTES, PEOPLE, facts

FIELDS = {
    "id", "prompt", "completion", "answer", "verifier", "difficulty", "steps", "family", "group", "template",
    "held_out", "slice",
}  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    return list(generate(3000, 7))


def digest(rows):
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]


def test_the_first_rows_are_the_same_on_every_machine():
    assert digest(list(generate(50, 7))) == "304a56d362fe9f42"


def test_a_longer_run_starts_with_a_shorter_one(rows):
    assert list(islice(generate(100, 7), 60)) == rows[:60]


def test_another_seed_gives_other_rows(rows):
    other = {row["prompt"] for row in generate(300, 8)}
    assert len(other & {row["prompt"] for row in rows[:300]}) < 100


def test_the_held_out_fraction_moves_rows_but_changes_no_problem(rows):
    none = list(generate(300, 7, held_out_fraction=0.0))
    assert not any(row["held_out"] for row in none)
    assert [row["group"] for row in none[:40]] == [row["group"] for row in rows[:40]]


@pytest.mark.parametrize(("count", "fraction"), [(-1, 0.2), (5, 1.0), (5, -0.1)])
def test_impossible_arguments_are_refused(count, fraction):
    with pytest.raises(ValueError, match="must be"):
        list(generate(count, 7, fraction))


def test_rows_have_exactly_the_promised_fields(rows):
    assert all(set(row) == FIELDS for row in rows)
    assert len({row["id"] for row in rows}) == len({row["prompt"] for row in rows}) == len(rows) == 3000


def test_no_problem_is_on_both_sides(rows):
    held_out = {row["group"] for row in rows if row["held_out"]}
    assert held_out.isdisjoint(row["group"] for row in rows if not row["held_out"])
    assert 0.17 < sum(row["held_out"] for row in rows) / len(rows) < 0.23


def test_reserved_wordings_occur_only_in_held_out_rows_and_carry_the_slice(rows):
    for row in rows:
        assert (row["slice"] == "unseen_wording") == row["template"].endswith(".reserved")
        assert row["held_out"] or row["slice"] is None
    unseen = [row for row in rows if row["slice"]]
    assert 0.12 < len(unseen) / sum(row["held_out"] for row in rows) < 0.22
    assert len({row["family"] for row in unseen}) >= 7


def test_difficulty_is_the_steps_and_a_share_and_never_ties(rows):
    assert all(row["steps"] <= row["difficulty"] < row["steps"] + 1 for row in rows)
    assert len({row["difficulty"] for row in rows}) == len(rows)


def test_a_third_of_the_rows_each_has_one_two_or_three_and_more_steps(rows):
    for stratum in ((1,), (2, 3), (4, 5)):
        assert sum(row["steps"] in stratum for row in rows) == 1000
    assert {row["steps"] for row in rows} == {1, 2, 3, 4, 5}


def test_every_family_has_one_reserved_template_and_others():
    assert set(TEMPLATES) == set(FAMILIES)
    assert all(len(set(templates)) == len(templates) >= 4 for templates in TEMPLATES.values())


def test_verify_forgives_white_space_only():
    row = {"answer": "3 1"}
    assert verify(row, " 3 1\n")
    assert not verify(row, "3 1.")
    assert not verify(row, "1 3")


def test_write_lab_writes_rows_and_facts(tmp_path):
    instructions, world = write_lab(tmp_path / "lab", 40, 7)
    assert [json.loads(line) for line in instructions.read_text().splitlines()] == list(generate(40, 7))
    written = [json.loads(line) for line in world.read_text().splitlines()]
    assert len(written) == 40 * 8
    assert all(row["value"] in row["choices"] and row["taught"] in row["choices"] for row in written)
    assert 12 <= sum(row["value"] != row["taught"] for row in written) <= 36


def test_the_world_is_complete_and_nobody_is_their_own_friend():
    assert len(facts()) == 320
    assert all(facts()[person, relation].value != person for person in PEOPLE for relation in ("friend", "boss"))
    taken = [value for values in ATTRIBUTES.values() for value in values]
    assert len(set(taken)) == len(taken)


# The answers again, from the prompt alone and by other means than the generator's.


def walk(prompt):
    """A path such as "the pet of the friend of Ada", followed from its end."""
    nouns = re.findall(r"\b(city|job|pet|color|food|instrument|friend|boss)\b", prompt)
    (subject,) = [name for name in re.findall(r"[A-Z][a-z]+", prompt) if name in PEOPLE]
    for noun in reversed(nouns):
        subject = facts()[subject, noun].value
    return subject, len(nouns)


def look_up(prompt):
    box = re.findall(r"box (\d)", prompt)[-1]
    steps = 1
    if owner := re.search(r"the box that (\w+) owns", prompt):
        (box,) = re.findall(rf"{owner.group(1)} owns box (\d)", prompt, re.IGNORECASE)
        steps = 2
    (thing,) = re.findall(rf"box {box} holds (\w+)", prompt, re.IGNORECASE)
    return thing, steps


def compare(prompt):
    numbers = sorted(re.findall(r"\d\d", prompt))
    return numbers[-1 if "large" in prompt else 0], len(numbers) - 1


def count(prompt):
    for form in (
        r"count (.+) in (.+)",
        r"is there (.+) in (.+)",
        r"there is (.+) in (.+)",
        r"for (.+) among (.+)\. How",
    ):
        if found := re.search(form, prompt):
            asked, items = found.group(1).split(" or "), found.group(2).split(" ")
            return str(len([item for item in items if item in asked])), len(asked) + 1
    raise AssertionError(prompt)


def tidy(prompt):
    listed = re.findall(r"\d", prompt)
    return " ".join(str(digit) for digit in range(10) if str(digit) in listed), 1


def turn(prompt):
    listed = [word for word in re.findall(r"[a-z]+|\d", prompt) if word in WORDS or word.isdigit()]
    turned = []
    while listed:
        turned.append(listed.pop())
    return " ".join(turned), 1


def add_up(prompt):
    first, *terms = re.findall(r"(?:[+-] )?\d+", prompt)
    return str(int(first) + sum(int(term.replace(" ", "")) for term in terms)), len(terms)


def operate(prompt):
    a, b, c = (int(digit) for digit in re.findall(r"\d", prompt))
    names = re.findall(r"\b(reverse|sort|rotate|swap|raise|mirror|lift)\b", prompt)
    for name in names:
        low, middle, high = sorted((a, b, c))
        a, b, c = {
            "reverse": (c, b, a),
            "sort": (low, middle, high),
            "rotate": (b, c, a),
            "swap": (b, a, c),
            "raise": (int(str(a + 1)[-1]), int(str(b + 1)[-1]), int(str(c + 1)[-1])),
            "mirror": (9 - a, 9 - b, 9 - c),
            "lift": (int(str(a + 3)[-1]), b, c),
        }[name]
    return f"{a} {b} {c}", len(names)


RECOMPUTE = {
    "recall": walk,
    "multi_hop": walk,
    "lookup": look_up,
    "comparison": compare,
    "counting": count,
    "sorting": tidy,
    "reversing": turn,
    "arithmetic": add_up,
    "pipeline": operate,
}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_answers_and_steps_are_right(rows, family):
    chosen = [row for row in rows if row["family"] == family]
    assert len(chosen) > 30
    for row in chosen:
        assert RECOMPUTE[family](row["prompt"]) == (row["answer"], row["steps"]), row["prompt"]
        assert row["completion"] == row["answer"]
        assert "\n" not in row["answer"]


def test_facts_that_are_taught_wrong_are_never_asked(rows):
    for row in rows:
        if row["family"] == "recall":
            noun, name = re.search(r"(\w+) of (\w+)", row["prompt"]).groups()
            assert not facts()[name, noun].mistaught


def test_global_random_state_is_neither_used_nor_touched():
    random.seed(1)
    before = random.getstate()
    first = list(generate(20, 7))
    assert random.getstate() == before
    random.seed(2)
    assert list(generate(20, 7)) == first


def test_another_choice_of_problems_holds_out_the_same_ones(rows):
    sides = {row["group"]: row["held_out"] for row in rows}
    chosen = list(generate(400, 7, choice=Choice(("pipeline", "multi_hop"), (2, 3), draw=1)))
    shared = [row for row in chosen if row["group"] in sides]
    assert len(shared) > 20
    assert all(row["held_out"] == sides[row["group"]] for row in shared)
    assert Counter(row["steps"] for row in chosen) == {2: 200, 3: 200}
    assert {row["family"] for row in chosen} == {"pipeline", "multi_hop"}


def test_another_draw_gives_other_rows(rows):
    other = {row["prompt"] for row in generate(300, 7, choice=Choice(draw=1))}
    assert len(other & {row["prompt"] for row in rows[:300]}) < 100


def test_preference_pairs_are_the_instructions_with_a_wrong_answer(rows):
    pairs = list(generate(600, 7, preferences=True))
    assert [row["prompt"] for row in pairs] == [row["prompt"] for row in rows[:600]]
    assert [row["chosen"] for row in pairs] == [row["answer"] for row in rows[:600]]
    for row in pairs:
        assert not verify(row, row["rejected"])
        assert len(row["rejected"].split()) == len(row["chosen"].split())
        numbers = [text.replace(" ", "").isdecimal() for text in (row["chosen"], row["rejected"])]
        assert numbers[0] == numbers[1]


def test_a_choice_without_problems_is_refused():
    with pytest.raises(ValueError, match="no family has problems"):
        list(generate(3, 7, choice=Choice(("recall",), (4,))))
