import pytest

from components.common.errors import UserError
from components.common.verifiers import verify


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
    assert caught.value.remedy == "use one of: exact, last_number"
