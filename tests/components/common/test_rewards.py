"""Rewards by name: verifiers, functions of the user's own, and what is wrong with either."""

import sys

import pytest

from components.common.digests import digest_file
from components.common.errors import UserError
from components.common.rewards import check_answers, check_reward, describe, known, reward
from components.common.verifiers import VERIFIERS, verify

MODULE = """
import numpy

def longer(response: str, answer: str) -> float:
    return len(response) / 10

def same(response, answer):
    return response == answer

def array(response, answer):
    return numpy.float32(0.5) if response else numpy.bool_(True)

def nothing(response, answer):
    return None

def text(response, answer):
    return "1"

def nan(response, answer):
    return float("nan")

def huge(response, answer):
    return 10**400

def fails(response, answer):
    return 1 / 0

def one(response):
    return 1.0

async def later(response, answer):
    return 1.0

number = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    path = tmp_path / "my_rewards.py"
    path.write_text(MODULE)
    (tmp_path / "broken_rewards.py").write_text("import no_such_package\n")
    (tmp_path / "failing_rewards.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield path
    sys.modules.pop("my_rewards", None)


def test_a_verifier_is_one_or_nothing():
    assert reward("last_number", "It is 72", "72") == 1.0
    assert reward("last_number", "It is 71", "72") == 0.0
    assert isinstance(reward("exact", "a", "a"), float)


@pytest.mark.parametrize(
    ("name", "response", "value"),
    [("longer", "12345", 0.5), ("same", "a", 1.0), ("same", "b", 0.0), ("array", "a", 0.5), ("array", "", 1.0)],
)
def test_a_function_gives_a_number(mine, name, response, value):
    found = reward(f"my_rewards:{name}", response, "a")
    assert (found, type(found)) == (value, float)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_rewards:nothing", "returned NoneType, which is no number"),
        ("my_rewards:text", "returned str, which is no number"),
        ("my_rewards:nan", "returned nan"),
        ("my_rewards:huge", "returned inf"),
        ("my_rewards:fails", "failed: ZeroDivisionError: division by zero"),
        ("my_rewards:later", "returned coroutine, which is no number"),
    ],
)
@pytest.mark.filterwarnings("ignore:coroutine")
def test_what_a_function_may_not_do(mine, name, message):
    check_reward(name)
    with pytest.raises(UserError, match=f"the reward {name} {message}"):
        reward(name, "a", "b")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_rewards:f", "the module no_such_rewards is not found"),
        ("my_rewards.sub:f", "the module my_rewards.sub is not found"),
        ("broken_rewards:f", "the module no_such_package, which broken_rewards imports, is not found"),
        ("failing_rewards:f", "importing failing_rewards failed: ZeroDivisionError"),
        ("my_rewards:missing", "my_rewards has no function missing"),
        ("my_rewards:number", "my_rewards has no function number"),
        ("my_rewards:one", "does not take a response and an answer"),
        ("fuzzy", "reward 'fuzzy' is not known"),
        ("my_rewards:a.b", "reward 'my_rewards:a.b' is not known"),
        ("../my_rewards:f", "is not known"),
        ("", "reward '' is not known"),
    ],
)
def test_what_cannot_be_given_is_said_early(mine, name, message):
    with pytest.raises(UserError, match=message) as caught:
        check_reward(name)
    assert caught.value.remedy


@pytest.mark.parametrize("name", sorted(VERIFIERS))
def test_every_verifier_can_be_given_here(name):
    check_reward(name)
    assert known(name)


def test_known_imports_nothing():
    assert known("no_such_rewards:f")
    assert not known("no_such_rewards:f()") and not known("a b:c") and not known("fuzzy") and not known("a:b:c")


def test_an_example_names_no_function(mine):
    with pytest.raises(UserError, match="never by an example"):
        verify("my_rewards:same", "a", "a")


def test_answers_are_seen_early():
    check_answers("multiple_choice", ["A", "(b)"])
    with pytest.raises(UserError, match="has no use for the answer 'Paris'"):
        check_answers("multiple_choice", ["A", "Paris"])
    with pytest.raises(UserError, match="IFEval has no constraint 'a'"):
        check_answers("ifeval", ['{"instruction_id_list": ["a"], "kwargs": [{}]}'])


def test_a_verifier_whose_extra_is_missing_is_described_too(monkeypatch):
    """A phase that may use every verifier has all of them in its key, and must not fail for one that it never meets."""
    monkeypatch.setattr("components.common.rewards.installed_version", lambda name: None)
    assert describe("ifeval") == {"name": "ifeval", "kind": "verifier", "package": "lm-eval not installed"}


def test_descriptions_say_what_the_verdicts_come_from(mine):
    assert describe("exact") == {"name": "exact", "kind": "verifier"}
    assert describe("boxed_math")["package"].startswith("math-verify 0.")
    assert describe("my_rewards:same") == {
        "name": "my_rewards:same",
        "kind": "function",
        "source": digest_file(mine),
    }
