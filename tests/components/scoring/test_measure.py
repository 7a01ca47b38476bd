import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from components.common.errors import DataError
from components.common.examples import Example, read_rows, write_rows
from components.common.rendering import Encoded, encode
from components.scoring.likelihoods import Scorer
from components.scoring.measure import SCORER, alone, difficulty_of, last_reply, measure

TALK = [("user", "What is 2 + 3?"), ("assistant", "5")]


def job(tmp_path, **scoring):
    return {
        "files": {"scores": str(tmp_path / "examples.parquet")},
        "out": str(tmp_path),
        "scoring": {"method": "loss", "model": None, "column": "difficulty", "batch_tokens": 512, **scoring},
        "about": {"method": scoring.get("method", "loss"), "model": "lab"},
        "base": "lab",
        "scorer": "lab",
        "model_spec": {},
        "max_length": 128,
        "gpus": 0,
        "workers": 1,
        "threads": 1,
        "for_training": True,
    }


def example(prompt, reply, **fields):
    made = Example(messages=(("user", prompt), ("assistant", reply)), fields=fields)
    return {**made.to_row(), "id": made.content_digest()}


def test_loss_is_nats_per_token():
    assert difficulty_of("loss", np.array([6.0]), None, np.array([4.0])).tolist() == [1.5]


def test_ifd_is_the_ratio_of_the_losses_with_and_without_the_prompt():
    # loss(A|Q) = 6/4 = 1.5, loss(A) = 8/4 = 2: IFD = 0.75. A prompt that does not help gives 1 or more.
    given, bare, tokens = np.array([6.0, 9.0]), np.array([8.0, 6.0]), np.array([4.0, 3.0])
    assert difficulty_of("ifd", given, bare, tokens).tolist() == [0.75, 1.5]


def test_an_undefined_ratio_is_not_finite():
    assert not np.isfinite(difficulty_of("ifd", np.array([1.0]), np.array([0.0]), np.array([2.0]))).any()


def test_only_the_last_reply_is_scored():
    item = Encoded([1, 2, 3, 4, 5, 6], [False, True, True, False, True, True])
    assert last_reply(item).response_mask == [False, False, False, False, True, True]


def test_a_chat_that_was_cut_is_scored_by_the_last_reply_that_is_left():
    cut = Encoded([1, 2, 3, 4, 5, 6], [False, True, True, False, False, False], truncated=9)
    assert last_reply(cut).response_mask == [False, True, True, False, False, False]


def test_alone_keeps_the_header_and_the_reply():
    item = alone(Encoded([7, 8, 9], [False, True, True]), [1, 2])
    assert (item.input_ids, item.response_mask) == ([1, 2, 8, 9], [False, False, True, True])


def test_the_scorer_equals_a_computation_from_the_logits(tmp_path, lab_tokenizer, lab_weights):
    item = encode(lab_tokenizer, [TALK])[0]
    with torch.inference_mode():
        logs = torch.log_softmax(lab_weights(torch.tensor([item.input_ids])).logits[0].double(), -1)
    marked = [place for place, kept in enumerate(item.response_mask) if kept]
    expected = -sum(float(logs[place - 1, item.input_ids[place]]) for place in marked) / len(marked)
    scorer = Scorer(job(tmp_path), 128, 1)
    messages = [[{"role": role, "content": content} for role, content in TALK]]
    found = scorer({"id": np.array(["a"]), "messages": messages})
    assert found["difficulty"][0] == pytest.approx(expected, rel=1e-5)


def test_a_reply_that_the_prompt_gives_away_has_a_lower_ifd(tmp_path):
    scorer = Scorer(job(tmp_path, method="ifd"), 128, 1)
    talks = [[("user", "Sort these numbers: 3 1 2"), ("assistant", text)] for text in ("1 2 3", "judge")]
    messages = [[{"role": role, "content": content} for role, content in talk] for talk in talks]
    helped, unhelped = scorer({"id": np.array(["a", "b"]), "messages": messages})["difficulty"]
    assert helped < unhelped


def test_length_counts_the_tokens_of_the_response_with_its_end(tmp_path, lab_tokenizer):
    write_rows(tmp_path / "examples.parquet", [example("Work out 2 + 3", "5"), example("Work out 20 + 3", "23")])
    found = measure(job(tmp_path, method="length"))
    assert found["examples"] == 2
    # one token per digit, and the end token
    assert [row["difficulty"] for row in read_rows(tmp_path / "scores.parquet")] == [2.0, 3.0]


def test_the_file_says_who_scored_it(tmp_path):
    write_rows(tmp_path / "examples.parquet", [example("Work out 2 + 3", "5", difficulty=1.5)])
    measure(job(tmp_path, method="column"))
    said = pq.read_schema(tmp_path / "scores.parquet").metadata[SCORER.encode()]
    assert json.loads(said) == {"method": "column", "model": "lab"}
    assert next(read_rows(tmp_path / "scores.parquet"))["difficulty"] == 1.5


@pytest.mark.parametrize(
    ("fields", "told"), [({}, "no number in `difficulty`"), ({"difficulty": float("inf")}, "gives inf")]
)
def test_a_column_without_a_number_is_refused(tmp_path, fields, told):
    write_rows(tmp_path / "examples.parquet", [example("Work out 2 + 3", "5", **fields)])
    with pytest.raises(DataError, match=told):
        measure(job(tmp_path, method="column"))
