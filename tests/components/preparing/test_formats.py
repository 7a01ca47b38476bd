"""Every format: one row in, literal examples out; and the reasons of malformed rows."""

import pytest

from components.common.verifiers import VERIFIERS
from components.preparing.drafts import Draft, Malformed
from components.preparing.formats import CONVERTERS
from components.preparing.recognise import recognise


def drafts(name: str, row: dict) -> list[Draft]:
    found = CONVERTERS[name](row)
    assert all(isinstance(draft, Draft) for draft in found)
    return found


def one(name: str, row: dict) -> Draft:
    (draft,) = drafts(name, row)
    return draft


def reason(name: str, row: dict) -> str:
    with pytest.raises(Malformed) as error:
        CONVERTERS[name](row)
    return str(error.value)


def test_alpaca():
    row = {"instruction": "Add.", "input": "2 and 3", "output": "5", "topic": "sums", "long": "x" * 201, "list": []}
    draft = one("alpaca", row)
    assert draft.messages == (("user", "Add.\n2 and 3"), ("assistant", "5"))
    assert draft.fields == {"topic": "sums"}
    assert one("alpaca", {"instruction": "Hi", "input": "", "output": "Ho"}).messages[0] == ("user", "Hi")
    assert one("alpaca", {"instruction": "Hi", "output": "Ho"}).messages[0] == ("user", "Hi")
    assert one("alpaca", {"instruction": "Hi", "input": None, "output": "Ho"}).messages[0] == ("user", "Hi")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Hi", "output": ""}, "`output` is empty"),
        ({"instruction": "Hi", "output": " \n"}, "`output` is empty"),
        ({"instruction": "Hi"}, "`output` is missing"),
        ({"instruction": "Hi", "output": None}, "`output` is missing"),
        ({"instruction": 7, "output": "Ho"}, "`instruction` is a number, not a string"),
        ({"instruction": "Hi", "input": ["x"], "output": "Ho"}, "`input` is a list, not a string"),
    ],
)
def test_alpaca_reasons(row, expected):
    assert reason("alpaca", row) == expected


def test_dolly():
    draft = one("dolly", {"instruction": "Who?", "context": "Ann came.", "response": "Ann", "category": "closed_qa"})
    assert draft.messages == (("user", "Who?\nAnn came."), ("assistant", "Ann"))
    assert draft.fields == {"category": "closed_qa"}


def test_sharegpt_is_cut_back_to_the_last_reply():
    row = {
        "id": "a1",
        "conversations": [
            {"from": "system", "value": "Be kind."},
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello"},
            {"from": "human", "value": "Bye"},
        ],
    }
    draft = one("sharegpt", row)
    assert draft.messages == (("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"))
    assert draft.fields == {"id": "a1"}


def test_sharegpt_system_beside_the_turns():
    row = {"system": "Be kind.", "conversations": [{"from": "user", "value": "Hi"}, {"from": "bard", "value": "Ho"}]}
    assert one("sharegpt", row).messages == (("system", "Be kind."), ("user", "Hi"), ("assistant", "Ho"))


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([], "`conversations` is empty"),
        ([{"from": "human", "value": "Hi"}], "`conversations` has no turn of the assistant"),
        ([{"from": "gpt", "value": "Hi"}], "`conversations` has no turn of the user before the assistant's reply"),
        (
            [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": ""}],
            "the last reply of `conversations` is empty",
        ),
        ([{"from": "human", "value": " "}, {"from": "gpt", "value": "x"}], "turn 1 of `conversations` is empty"),
        ([{"from": "human", "value": 3}], "the text of turn 1 of `conversations` is a number, not a string"),
        (["Hi"], "turn 1 of `conversations` is a string, not an object"),
    ],
)
def test_conversation_reasons(turns, expected):
    assert reason("sharegpt", {"conversations": turns}) == expected


def test_an_unknown_role_is_named():
    assert reason("messages", {"messages": [{"role": "tool", "content": "x"}]}).startswith(
        "turn 1 of `messages` has the role 'tool'; known are system, user, human,"
    )


def test_openorca():
    row = {"id": "niv.1", "system_prompt": "Think.", "question": "1+1?", "response": "2"}
    assert one("openorca", row).messages == (("system", "Think."), ("user", "1+1?"), ("assistant", "2"))
    assert one("openorca", {**row, "system_prompt": ""}).messages == (("user", "1+1?"), ("assistant", "2"))


def message(role: str, text: str, *replies: dict, **more: object) -> dict:
    return {"role": role, "text": text, "replies": list(replies), **more}


def test_oasst_tree_has_an_example_for_every_last_reply():
    # A1 is answered by nobody; A2 goes on to A3, and to a question that nobody answers.
    root = message(
        "prompter",
        "Q",
        message("assistant", "A1", message("prompter", "thanks")),
        message("assistant", "A2", message("prompter", "Q2", message("assistant", "A3")), message("prompter", "Q3")),
        message("assistant", "gone", deleted=True),
        lang="en",
    )
    found = drafts("oasst", {"message_tree_id": "t", "tree_state": "ready", "prompt": root})
    assert [draft.messages for draft in found] == [
        (("user", "Q"), ("assistant", "A1")),
        (("user", "Q"), ("assistant", "A2"), ("user", "Q2"), ("assistant", "A3")),
    ]
    assert {draft.group for draft in found} == {"t"}
    assert found[0].fields == {"message_tree_id": "t", "tree_state": "ready", "lang": "en"}


def test_oasst_without_a_reply():
    assert reason("oasst", {"prompt": message("prompter", "Q")}) == "the tree has no reply of the assistant"
    assert reason("oasst", {"prompt": "Q"}) == "`prompt` is a string, not a message with `replies`"


@pytest.mark.parametrize(
    "columns", [("inputs", "targets"), ("prompt", "completion"), ("inputs_pretokenized", "targets_pretokenized")]
)
def test_flan(columns):
    asked, replied = columns
    assert one("flan", {asked: "Q", replied: "A"}).messages == (("user", "Q"), ("assistant", "A"))
    assert reason("flan", {asked: "Q", replied: ""}) == f"`{replied}` is empty"
    assert reason("flan", {asked: "Q"}) == f"`{replied}` is missing"


def test_flan_with_chat_lists():
    row = {"prompt": [{"role": "user", "content": "Q"}], "completion": [{"role": "assistant", "content": "A"}]}
    assert one("flan", row).messages == (("user", "Q"), ("assistant", "A"))


def test_extra_columns_of_our_own_forms():
    row = {
        "prompt": "1+1?", "completion": "2", "group": 17, "answer": 2, "verifier": "exact", "slice": "unseen_wording",
        "held_out": True, "difficulty": "1.5", "rejected": "3", "steps": 1, "family": "sum", "ok": False, "none": None,
    }  # fmt: skip
    draft = one("flan", row)
    assert (draft.group, draft.answer, draft.verifier) == ("17", "2", "exact")
    assert (draft.slice, draft.held_out, draft.rejected) == ("unseen_wording", True, "3")
    assert draft.fields == {"steps": 1, "family": "sum", "ok": False, "difficulty": 1.5}


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"verifier": "guess", "answer": "2"}, "`verifier` is 'guess'; known are " + ", ".join(VERIFIERS)),
        ({"verifier": "os:system", "answer": "2"}, "`verifier` is 'os:system'; known are " + ", ".join(VERIFIERS)),
        (
            {"verifier": "multiple_choice", "answer": "Paris"},
            "`answer` is of no use to the verifier multiple_choice: 'Paris' is not the letter of a choice",
        ),
        (
            {"verifier": "json_schema", "answer": "{"},
            "`answer` is of no use to the verifier json_schema: it is not JSON, so it is no JSON schema",
        ),
        ({"verifier": "exact"}, "`verifier` is given, but `answer` is not"),
        ({"difficulty": "hard"}, "`difficulty` is not a number"),
        ({"difficulty": float("nan")}, "`difficulty` is not a number"),
        ({"held_out": "perhaps"}, "`held_out` is neither true nor false"),
        ({"group": ["g"]}, "`group` is a list, not a string"),
        ({"rejected": " "}, "`rejected` is empty"),
    ],
)
def test_extra_column_reasons(extra, expected):
    assert reason("flan", {"prompt": "Q", "completion": "A", **extra}) == expected


@pytest.mark.parametrize(("spelled", "flag"), [("true", True), ("False", False), ("1", True), ("0", False), ("", None)])
def test_held_out_from_a_csv(spelled, flag):
    assert one("flan", {"prompt": "Q", "completion": "A", "held_out": spelled}).held_out is flag


def test_messages_with_a_rejected_reply():
    chat = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, {"role": "assistant", "content": "Ho"}]
    assert one("messages", {"messages": chat, "rejected": "No"}).rejected == "No"
    listed = {"messages": chat, "rejected": [{"role": "assistant", "content": "No"}], "group": "g"}
    assert (one("messages", listed).rejected, one("messages", listed).group) == ("No", "g")
    assert one("messages", {"messages": chat}).messages == (("user", "Hi"), ("assistant", "Ho"))
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]
    assert reason("messages", {"messages": image}) == "turn 1 of `messages` has a part that is not text"


def test_self_instruct_has_an_example_for_every_instance():
    instances = [{"input": "2", "output": "4"}, {"input": "", "output": ""}, {"input": "", "output": "8"}]
    first, second, third = CONVERTERS["self_instruct"]({"id": "s", "instruction": "Double.", "instances": instances})
    assert first == Draft((("user", "Double.\n2"), ("assistant", "4")), fields={"id": "s"})
    assert isinstance(second, Malformed)
    assert str(second) == "instance 2: `output` is empty"
    assert third == Draft((("user", "Double."), ("assistant", "8")), fields={"id": "s"})
    assert reason("self_instruct", {"instruction": "x", "instances": []}) == "`instances` is empty"


def test_evol_instruct_in_both_forms():
    expected = (("user", "Q"), ("assistant", "A"))
    assert one("evol_instruct", {"instruction": "Q", "output": "A"}).messages == expected
    chat = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    assert one("evol_instruct", {"idx": "i", "conversations": chat}).messages == expected


def test_hh_transcripts():
    start = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Tell me.\nNow.\n\nAssistant:"
    draft = one("hh", {"chosen": f"{start} Yes.\n\nCertainly.", "rejected": f"{start} No."})
    assert draft.messages == (
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Tell me.\nNow."),
        ("assistant", "Yes.\n\nCertainly."),
    )
    assert draft.rejected == "No."
    assert reason("hh", {"chosen": start + " Yes", "rejected": start}) == "the last reply of `rejected` is empty"


def test_hh_chat_lists_and_plain_replies():
    user = {"role": "user", "content": "Q"}
    good, bad = {"role": "assistant", "content": "A"}, {"role": "assistant", "content": "B"}
    expected = Draft((("user", "Q"), ("assistant", "A")), rejected="B")
    assert one("hh", {"chosen": [user, good], "rejected": [user, bad]}) == expected
    assert one("hh", {"prompt": "Q", "chosen": [user, good], "rejected": [user, bad]}) == expected
    assert one("hh", {"prompt": [user], "chosen": [good], "rejected": [bad]}) == expected
    assert one("hh", {"prompt": "Q", "chosen": "A", "rejected": "B"}) == expected
    assert one("hh", {"prompt": "\n\nHuman: Q\n\nAssistant:", "chosen": " A", "rejected": " B"}) == expected
    assert reason("hh", {"prompt": "Q", "chosen": "A", "rejected": "A"}) == "`chosen` and `rejected` are the same"
    other = [{"role": "user", "content": "Q2"}, bad]
    assert reason("hh", {"chosen": [user, good], "rejected": other}) == (
        "`chosen` and `rejected` do not answer the same prompt"
    )
    assert reason("hh", {"chosen": "A", "rejected": "B"}).startswith("`chosen` is no transcript")


def test_hh_columns_of_the_hub():
    user = {"role": "user", "content": "Q"}
    good, bad = {"role": "assistant", "content": "A"}, {"role": "assistant", "content": "B"}
    expected = Draft((("user", "Q"), ("assistant", "A")), rejected="B")
    assert one("hh", {"question": "Q", "chosen": "A", "rejected": "B"}) == expected
    assert one("hh", {"input": "Q", "chosen": "A", "rejected": "B"}) == expected
    assert one("hh", {"prompt": "Q", "chosen": good, "rejected": bad}) == expected
    assert one("hh", {"prompt": [user], "chosen": "A", "rejected": "B"}) == expected
    assert one("hh", {"prompt": "", "instruction": "Q", "chosen": "A", "rejected": "B"}) == expected
    turn = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    assert one("hh", {"chosen": turn, "rejected": [user, bad]}) == expected
    draft = one("hh", {"system": "Be short.", "question": "Q", "chosen": "A", "rejected": "B"})
    assert draft == Draft((("system", "Be short."), *expected.messages), rejected="B")
    assert one("hh", {"system": "", "question": "Q", "chosen": "A", "rejected": "B"}) == expected
    scored = {"prompt": "Q", "chosen": [user, good], "rejected": [user, bad], "score_chosen": 8.5, "messages": [user]}
    assert recognise([scored], "x")[0] == "hh"
    assert one("hh", scored).fields == {"score_chosen": 8.5}


def test_prompts_with_an_answer_and_no_reply_are_answered_by_it():
    row = {"prompt": "1+1?", "answer": 2, "verifier": "last_number"}
    assert recognise([row], "x")[0] == "flan"
    expected = Draft((("user", "1+1?"), ("assistant", "2")), answer="2", verifier="last_number")
    assert one("flan", row) == expected
    chat = [{"role": "user", "content": "1+1?"}]
    assert one("flan", {**row, "prompt": chat}) == expected
    assert one("messages", {"messages": chat, "answer": "2", "verifier": "last_number"}) == expected
    whole = [*chat, {"role": "assistant", "content": "Two."}]
    assert one("messages", {"messages": whole, "answer": "2"}).messages[-1] == ("assistant", "Two.")
    assert reason("messages", {"messages": chat}) == "`messages` has no turn of the assistant"
    assert reason("flan", {"prompt": "1+1?"}) == "`completion` is missing"


def test_gsm8k():
    solution = "He has 1,000*2 = <<1000*2=2000>>2000.\n\nThen 80 more.\n#### 2,080"
    draft = one("gsm8k", {"question": "How many?", "answer": solution})
    assert draft.messages == (("user", "How many?"), ("assistant", solution))
    assert (draft.answer, draft.verifier, draft.fields) == ("2080", "last_number", {"difficulty": 2})
    assert one("gsm8k", {"question": "q", "answer": "x\n#### -3.50"}).answer == "-3.50"
    assert one("gsm8k", {"question": "q", "answer": "x\n#### $5"}).answer == "5"
    assert reason("gsm8k", {"question": "q", "answer": "5"}) == "`answer` has no line `#### NUMBER`"


def test_phased_ift():
    draft = one("phased_ift", {"id": "46229", "score": "4.25\n\n", "data": ["Name one.\nx", "Bat"]})
    assert draft.messages == (("user", "Name one.\nx"), ("assistant", "Bat"))
    assert draft.fields == {"id": "46229", "difficulty": 4.25}
    assert reason("phased_ift", {"score": "5", "data": ["x", ""]}) == "`data[1]` is empty"
    assert reason("phased_ift", {"score": "hard", "data": ["x", "y"]}) == "`score` is not a number"
    assert reason("phased_ift", {"score": "5", "data": ["x"]}).startswith("`data` is not a list of the instruction")


PLAIN = {
    "alpaca": {"instruction": "Q", "output": "A"},
    "dolly": {"instruction": "Q", "response": "A"},
    "sharegpt": {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
    "openorca": {"question": "Q", "response": "A"},
    "oasst": {"message_tree_id": "t", "prompt": message("prompter", "Q", message("assistant", "A"))},
    "flan": {"inputs": "Q", "targets": "A"},
    "self_instruct": {"instruction": "Q", "instances": [{"output": "A"}, {"input": "x", "output": "B"}]},
    "evol_instruct": {"instruction": "Q", "output": "A"},
    "hh": {"prompt": "Q", "chosen": "A", "rejected": "B"},
    "gsm8k": {"question": "Q", "answer": "One.\nTwo.\n#### 5"},
    "phased_ift": {"score": "3", "data": ["Q", "A"]},
    "messages": {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
}


def test_every_format_is_tried():
    assert PLAIN.keys() == CONVERTERS.keys()


@pytest.mark.parametrize("name", PLAIN)
def test_the_optional_columns_of_every_format(name):
    extras = {"group": 7, "slice": "s", "held_out": True, "difficulty": "1.5", "verifier": "exact", "topic": "sums"}
    answer = {} if name == "gsm8k" else {"answer": "A"}
    for draft in drafts(name, {**PLAIN[name], **extras, **answer}):
        assert (draft.group, draft.slice, draft.held_out) == ("7", "s", True)
        assert (draft.answer, draft.verifier) == (("5", "last_number") if name == "gsm8k" else ("A", "exact"))
        assert draft.fields == {"topic": "sums", "difficulty": 1.5} | (
            {"message_tree_id": "t"} if name == "oasst" else {}
        )
    assert reason(name, {**PLAIN[name], "group": ["g"]}) == "`group` is a list, not a string"
    assert reason(name, {**PLAIN[name], "slice": {}}) == "`slice` is an object, not a string"
    assert reason(name, {**PLAIN[name], "held_out": 3}) == "`held_out` is neither true nor false"
    if name != "gsm8k":
        assert reason(name, {**PLAIN[name], "verifier": "exact"}) == "`verifier` is given, but `answer` is not"


@pytest.mark.parametrize("name", PLAIN)
def test_without_optional_columns_nothing_is_given(name):
    for draft in drafts(name, PLAIN[name]):
        assert draft.group == ("t" if name == "oasst" else None)
        assert (draft.answer is None) == (draft.verifier is None) == (name != "gsm8k")
        assert (draft.slice, draft.held_out, draft.rejected) == (None, None, "B" if name == "hh" else None)
        assert draft.fields.get("difficulty") == {"gsm8k": 2, "phased_ift": 3.0}.get(name)


def test_a_group_is_text_or_a_number():
    row = PLAIN["alpaca"]
    assert one("alpaca", {**row, "group": 2.5}).group == "2.5"
    assert one("alpaca", {**row, "group": " "}).group is None
    assert one("alpaca", {**row, "group": None}).group is None
    assert reason("alpaca", {**row, "group": True}) == "`group` is a boolean, not a string"
    assert reason("alpaca", {**row, "group": float("nan")}) == "`group` is not a finite number"
    assert reason("alpaca", {**row, "difficulty": 10**400}) == "`difficulty` is not a number"
