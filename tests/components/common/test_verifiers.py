import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from components.common.errors import UserError
from components.common.verifiers import VERIFIERS, verify


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("Paris", "Paris", True),
        ("  Paris\n", "Paris", True),
        ("New \n York", "New York", True),
        ("NewYork", "New York", False),
        ("paris", "Paris", False),
        ("Paris.", "Paris", False),
        ("", "", True),
        ("", "Paris", False),
    ],
)
def test_exact(response, answer, right):
    assert verify("exact", response, answer) is right


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("The answer is 72.", "72", True),
        ("72.0", "72", True),
        ("72", "72.00", True),
        ("72.01", "72", False),
        ("First 5, then 72", "72", True),
        ("72 and then 5", "72", False),
        ("She has 1,234.", "1234", True),
        ("She has 1234", "1,234", True),
        ("1,234,567.50", "1234567.5", True),
        ("1, 2, 3", "3", True),
        ("1,2,3", "3", True),
        ("It costs $5", "5", True),
        ("It costs $5.50.", "5.5", True),
        ("$-5", "-5", True),
        ("-$5", "-5", True),
        ("x = -3", "-3", True),
        ("x = -3", "3", False),
        ("x = \u22123", "-3", True),
        ("8-3", "3", True),
        ("(8)-3", "3", True),
        ("about .5", "0.5", True),
        ("about -.5", "-0.5", True),
        ("the answer is...72", "72", True),
        ("50%", "50", True),
        (r"\boxed{72}", "72", True),
        (r"\$72", "72", True),
        ("**72**", "72", True),
        ("1.5e3", "1500", True),
        ("0", "-0", True),
        ("no number at all", "72", False),
        ("", "72", False),
        ("72", "none", False),
        ("none", "none", False),
        ("0.1", "0.10000000000000000001", False),
        ("9" * 30, "9" * 29 + "8", False),
    ],
)
def test_last_number(response, answer, right):
    assert verify("last_number", response, answer) is right


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("8 * 9 = 72\n#### 72", "72", True),
        ("#### 72\nI am 100 % sure", "72", True),
        ("#### 72\nI am 100 % sure", "100", False),
        ("####-1,000.\r\nThat is all, 2 lines", "-1000", True),
        ("#### $5", "5", True),
        ("#### 1\n#### 2", "2", True),
        ("#### 2. Compute the sum\n5 + 5 = 10", "10", True),
        ("#### 72 dollars", "72", True),
        ("42", "6 * 7 = 42\n#### 42", True),
    ],
)
def test_the_mark_of_a_solution_goes_first(response, answer, right):
    assert verify("last_number", response, answer) is right


@pytest.mark.parametrize(
    "response",
    [
        "1e999999999",
        "1e" + "9" * 50,
        "-1e-" + "9" * 50,
        "9" * 300_000,
        "1,234" * 100_000,
        "####" * 100_000,
        "#### " + " " * 300_000 + "x",
        "####" + "1" * 300_000 + "x",
        "$-" * 100_000,
        "1e" * 100_000,
    ],
)
@pytest.mark.timeout(60)  # that it ends at all; unguarded it would take minutes or never end
def test_whatever_a_model_writes_is_judged_soon(response):
    assert verify("last_number", response, "72") is False


def test_an_unknown_verifier_names_the_known_ones():
    with pytest.raises(UserError, match="'fuzzy' is not known") as caught:
        verify("fuzzy", "72", "72")
    assert caught.value.remedy == "use one of: boxed_math, exact, ifeval, json_schema, last_number, multiple_choice"


def test_an_example_cannot_name_a_function():
    with pytest.raises(UserError, match="'os:system' is not known; a function is named in a spec's `rewards`"):
        verify("os:system", "true", "")


@pytest.mark.parametrize("name", ["multiple_choice", "json_schema", "ifeval", "boxed_math"])
def test_an_answer_of_no_use_is_said_and_no_response_is_blamed(name):
    with pytest.raises(UserError, match=f"verifier {name} has no use for the answer ' '"):
        verify(name, "72", " ")


ANSWERS = {
    "exact": "B",
    "last_number": "2",
    "boxed_math": "2",
    "multiple_choice": "B",
    "json_schema": '{"type": "array", "items": {"type": "integer"}, "uniqueItems": true}',
    "ifeval": '{"instruction_id_list": ["punctuation:no_comma", "detectable_format:json_format"], "kwargs": [{}, {}]}',
}
PIECES = [
    "\\boxed{",
    "}",
    "{",
    "(",
    ")",
    "B",
    "A",
    "answer is ",
    "\n",
    "```",
    "[",
    "]",
    '"',
    ",",
    "2",
    "^",
    "\\frac",
    "9",
    "-",
]


@pytest.mark.parametrize("name", sorted(VERIFIERS))
@pytest.mark.timeout(120)
@settings(max_examples=60, deadline=None)
@given(response=st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=30).map("".join)))
@example(response="\x00\ud800")
@example(response="")
def test_no_response_makes_a_verifier_raise(name, response):
    assert verify(name, response, ANSWERS[name]) in (True, False)


@pytest.mark.parametrize("name", sorted(VERIFIERS))
@pytest.mark.parametrize("piece", ["[", "{", "\\boxed{", "9^", "answer: A ", "(A)", "```", "\n\n", " ", "-", "A, or "])
@pytest.mark.timeout(60)
def test_a_long_response_is_judged_soon(name, piece):
    assert verify(name, piece * (600_000 // len(piece)), ANSWERS[name]) in (True, False)
