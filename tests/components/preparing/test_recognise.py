"""The format is recognised from the first rows, with a reason; or the error shows what was seen."""

import pytest

from components.common.errors import DataError
from components.preparing.recognise import recognise

CHAT = [{"role": "user", "content": "Q"}]


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"instruction": "i", "input": "", "output": "o"}, "alpaca"),
        ({"instruction": "i", "output": "o"}, "alpaca"),
        ({"instruction": "i", "context": "", "response": "r", "category": "c"}, "dolly"),
        ({"id": "1", "conversations": []}, "sharegpt"),
        ({"id": "1", "system_prompt": "", "question": "q", "response": "r"}, "openorca"),
        ({"message_tree_id": "t", "prompt": {"text": "Q", "replies": []}}, "oasst"),
        ({"message_id": "m", "parent_id": None, "role": "prompter", "text": "Q"}, "oasst"),
        ({"inputs": "i", "targets": "t"}, "flan"),
        ({"prompt": "p", "completion": "c"}, "flan"),
        ({"prompt": "p", "completion": "c", "rejected": "r"}, "flan"),
        ({"instruction": "i", "instances": []}, "self_instruct"),
        ({"chosen": "c", "rejected": "r"}, "hh"),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "hh"),
        ({"question": "q", "answer": "a\n#### 1"}, "gsm8k"),
        ({"id": "1", "score": "5", "data": ["i", "o"]}, "phased_ift"),
        ({"messages": CHAT}, "messages"),
        ({"prompt": "Q", "messages": CHAT}, "messages"),
    ],
)
def test_each_format_is_recognised(row, name):
    assert recognise([row], "f")[0] == name


def test_the_reason_counts_the_rows():
    row = {"instruction": "i", "output": "o"}
    assert recognise([row] * 64, "f") == ("alpaca", "auto: the first 64 rows have `instruction` and `output`")
    assert recognise([row] * 3 + [{"x": 1}, 7], "f") == (
        "alpaca",
        "auto: 3 of the first 5 rows have `instruction` and `output`",
    )


def test_nothing_fits():
    with pytest.raises(DataError) as error:
        recognise([{"question": "q", "answer": "no mark"}, {"text": "t"}], "data.json")
    assert error.value.message == (
        "data.json: no known format fits its rows; columns seen: `question`, `answer`, `text`"
    )
    assert "alpaca: `instruction` and `output`" in error.value.remedy
