"""IFEval's constraints by lm-eval's code, with and without NLTK's data, and never by way of the network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.common.errors import UserError
from components.common.judging import Judge
from components.common.verifiers import verify
from components.common.verifiers_ifeval import answer_fault


def answer(**constraints) -> str:
    names = [name.replace("__", ":") for name in constraints]
    return json.dumps({"instruction_id_list": names, "kwargs": list(constraints.values())})


@pytest.mark.parametrize(
    ("response", "constraints", "right"),
    [
        ("no comma here", {"punctuation__no_comma": {}}, True),
        ("a comma, here", {"punctuation__no_comma": {}}, False),
        ("", {"punctuation__no_comma": {}}, False),
        ("one two three", {"length_constraints__number_words": {"num_words": 3, "relation": "at least"}}, True),
        ("one two", {"length_constraints__number_words": {"num_words": 3, "relation": "at least"}}, False),
        ("the Fox", {"keywords__existence": {"keywords": ["fox"], "language": None}}, True),
        ("the dog", {"keywords__forbidden_words": {"forbidden_words": ["dog"]}}, False),
        ("* a\n* b", {"detectable_format__number_bullet_lists": {"num_bullets": 2}}, True),
        ('```json\n{"a": 1}\n```', {"detectable_format__json_format": None}, True),
        ("<<a title>>", {"detectable_format__title": {}}, True),
        ('"all of it"', {"startend__quotation": {}}, True),
        ("Es regnet heute sehr stark in der Stadt.", {"language__response_language": {"language": "de"}}, True),
        ("it rains a lot in the town today", {"change_case__english_lowercase": {}}, True),
        ("IT RAINS", {"change_case__english_lowercase": {}, "punctuation__no_comma": {}}, False),
        ("all", {"keywords__letter_frequency": {"letter": "l", "let_frequency": 2, "let_relation": "at least"}}, True),
        ("all", {"keywords__frequency": {"keyword": "a", "frequency": 0, "relation": "less than"}}, False),
    ],
)
def test_constraints_that_need_no_data(response, constraints, right):
    assert verify("ifeval", response, answer(**constraints)) is right


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        ({"keywords__nothing": {}}, "IFEval has no constraint 'keywords:nothing'"),
        ({"keywords__existence": {}}, r"keywords:existence is not settled by \{\}: lm-eval would draw the rest"),
        ({"keywords__existence": {"words": ["a"]}}, "keywords:existence does not take"),
        (
            {"keywords__letter_frequency": {"letter": "#", "let_frequency": 2, "let_relation": "at least"}},
            "is not settled by",
        ),
    ],
)
def test_an_answer_that_lm_eval_cannot_use_is_the_users_to_mend(constraints, message):
    with pytest.raises(UserError, match=message):
        verify("ifeval", "a response", answer(**constraints))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "it is not JSON"),
        ("[]", "it is not an object"),
        ('{"instruction_id_list": ["a"], "kwargs": []}', "it is not an object"),
        ('{"instruction_id_list": [], "kwargs": []}', "it is not an object"),
        ('{"instruction_id_list": [1], "kwargs": [{}]}', "its instruction_id_list holds names"),
    ],
)
def test_answers_of_another_form(text, reason):
    assert (answer_fault(text) or "").startswith(reason)


@pytest.mark.timeout(60)
def test_a_keyword_that_takes_for_ever_ends():
    child = Judge("ifeval", seconds=1)
    assert child.ask("a" * 60 + "!", answer(keywords__existence={"keywords": ["^(a+)+$"]})) is False
    child.close()


SENTENCES = answer(length_constraints__number_sentences={"num_sentences": 2, "relation": "at least"})
CAPITALS = answer(change_case__capital_word_frequency={"capital_frequency": 2, "capital_relation": "at least"})


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A child that sees no data of NLTK but those of a folder of this test."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NLTK_DATA", str(tmp_path / "nltk_data"))
    child = Judge("ifeval")
    yield child
    child.close()


def found_elsewhere() -> bool:
    return any(
        Path(folder, "nltk_data").exists() for folder in ("/usr/share", "/usr/local/share", "/usr/lib", sys.prefix)
    )


@pytest.mark.skipif(found_elsewhere(), reason="NLTK's data are installed for the whole machine")
@pytest.mark.parametrize("constraint", [SENTENCES, CAPITALS])
def test_without_the_data_a_constraint_on_sentences_says_how_to_get_them(fresh, constraint):
    with pytest.raises(UserError, match="splits sentences with NLTK's data punkt_tab") as caught:
        fresh.ask("One. Two.", constraint)
    assert "set NLTK_DATA" in caught.value.remedy
    assert fresh.ask("none needed", answer(punctuation__no_comma={})) is True


def test_with_the_data_sentences_are_counted(fresh, tmp_path):
    english = tmp_path / "nltk_data" / "tokenizers" / "punkt_tab" / "english"
    english.mkdir(parents=True)
    # The parameters of a splitter that has seen no abbreviation; the real ones are too large to keep here.
    for name in ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt"):
        (english / name).write_text("")
    for path in (tmp_path / "nltk_data", *(tmp_path / "nltk_data").rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    assert fresh.ask("It rains. It pours.", SENTENCES) is True
    assert fresh.ask("It rains", SENTENCES) is False
    assert fresh.ask("IT IS rain.", CAPITALS) is True


def test_loading_never_asks_the_network(tmp_path):
    code = """
import sys
asked = []
sys.addaudithook(lambda event, arguments: asked.append(event) if event in NAMES else None)
from components.common.verifiers_ifeval import load
followed = load()
assert followed("a b", '{"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}')
import nltk
assert not [one for one in nltk.data.path if "tmp" in one.split("/")[-1]], nltk.data.path
print(asked)
""".replace("NAMES", '("socket.connect", "socket.getaddrinfo", "urllib.Request")')
    environment = {**os.environ, "HOME": str(tmp_path), "NLTK_DATA": str(tmp_path)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (found.returncode, found.stdout) == (0, "[]\n"), found.stderr
