import pyarrow as pa
import pytest

from components.common.errors import DataError
from components.common.examples import Example, write_rows
from components.training.tokens import tokenize
from tests.components import tiny_models as tiny


@pytest.fixture
def files(tmp_path):
    """Two tiers of conversations whose prompts have 19 tokens and whose replies have 2, 3 and 6."""
    rows = {1: [("a", "x"), ("b", "yz")], 2: [("c", "hello")]}
    made = {}
    for tier, examples in rows.items():
        made[tier] = tmp_path / f"tier-{tier}.parquet"
        write_rows(
            made[tier],
            [Example(messages=(("user", ""), ("assistant", reply)), id=name).to_row() for name, reply in examples],
        )
    return made


@pytest.fixture
def tokenizer():
    return tiny.chatml_tokenizer()


def read(file):
    with pa.memory_map(str(file)) as source:
        return pa.ipc.open_stream(source).read_all().to_pylist()


def test_rows_follow_the_sequence_and_labels_cover_the_replies(files, tokenizer, tmp_path):
    made = tokenize(tokenizer, files, ["c", "a", "c", "b"], 100, tmp_path / "out")
    rows = read(tmp_path / "out")
    replies = [tokenizer.decode([label for label in rows[row]["labels"] if label != -100]) for row in made.rows]
    assert replies == ["hello<|im_end|>", "x<|im_end|>", "hello<|im_end|>", "yz<|im_end|>"]
    for row in rows[:-1]:
        assert row["labels"][:19] == [-100] * 19
        assert row["labels"][19:] == row["input_ids"][19:]


def test_counts_repeat_with_the_sequence_but_examples_and_truncations_do_not(files, tokenizer, tmp_path):
    made = tokenize(tokenizer, files, ["c", "a", "c", "b"], 22, tmp_path / "out")
    # 19 + 6 tokens are cut to 22; seen twice. 19 + 2 and 19 + 3 fit.
    assert made.tokens == 2 * 22 + 21 + 22
    assert made.response_tokens == 2 * 3 + 2 + 3
    assert (made.truncated, made.examples) == (1, 3)


def test_only_the_examples_of_the_sequence_are_written(files, tokenizer, tmp_path):
    made = tokenize(tokenizer, files, ["b", "b"], 100, tmp_path / "out")
    assert (made.rows, made.filler, made.examples, made.tokens) == ([0, 0], 1, 1, 44)
    assert len(read(tmp_path / "out")) == 2


def test_the_filler_is_one_end_token_without_a_label(files, tokenizer, tmp_path):
    made = tokenize(tokenizer, files, ["a", "b", "c"], 100, tmp_path / "out")
    assert made.filler == 3
    assert read(tmp_path / "out")[3] == {"input_ids": [tokenizer.eos_token_id], "labels": [-100]}


def test_an_empty_sequence_is_refused(files, tokenizer, tmp_path):
    with pytest.raises(DataError, match="the phase has no example"):
        tokenize(tokenizer, files, [], 100, tmp_path / "out")


def test_a_prompt_that_fills_the_context_is_refused_by_its_id(files, tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"3 example\(s\) have a prompt that fills the whole context of 19 tokens.*a"):
        tokenize(tokenizer, files, ["a", "b", "c"], 19, tmp_path / "out")


def test_more_examples_than_one_batch_keep_their_places(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("components.training.tokens._BATCH", 4)
    names = [f"{number:02d}" for number in range(11)]
    rows = [Example(messages=(("user", "u"), ("assistant", name)), id=name).to_row() for name in names]
    write_rows(tmp_path / "tier.parquet", rows)
    made = tokenize(tokenizer, {1: tmp_path / "tier.parquet"}, names[::-1], 100, tmp_path / "out")
    written = read(tmp_path / "out")
    assert made.rows == list(range(11))[::-1]
    assert [tokenizer.decode(written[row]["labels"][-3:-1]) for row in made.rows] == names[::-1]
