import json
import re
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.common.examples import (
    SCHEMA,
    SCORED_SCHEMA,
    Example,
    Ledger,
    ParquetRows,
    read_examples,
    read_rows,
    write_rows,
)

EXAMPLE = Example(
    messages=(("system", "Be brief."), ("user", "2 + 3?"), ("assistant", "5")),
    source="sums",
    group="2+3",
    rejected="6",
    answer="5",
    verifier="last_number",
    slice="unseen_wording",
    fields={"difficulty": 1.5, "größe": "x"},
    id="ab",
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


def test_prompt_and_response_are_the_turns_before_the_last_and_the_last():
    assert EXAMPLE.prompt == (("system", "Be brief."), ("user", "2 + 3?"))
    assert EXAMPLE.response == "5"


def test_a_row_has_the_columns_of_the_schema():
    assert list(EXAMPLE.to_row()) == SCHEMA.names
    assert Example.from_row(EXAMPLE.to_row()) == EXAMPLE


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant"]), TEXT), min_size=1), st.none() | TEXT, st.none() | TEXT
)
def test_an_example_survives_the_way_through_parquet(tmp_path_factory, messages, group, answer):
    example = Example(messages=tuple(messages), group=group, answer=answer, fields={"a": [1, None, "é"]}, id="x")
    file = tmp_path_factory.mktemp("rows") / "rows.parquet"
    assert write_rows(file, [example.to_row()]) == 1
    assert list(read_examples(file)) == [example]


def test_no_rows_make_a_readable_file(tmp_path):
    assert write_rows(tmp_path / "none.parquet", []) == 0
    assert list(read_examples(tmp_path / "none.parquet")) == []


def test_rows_keep_their_order_over_groups_and_columns_can_be_chosen(tmp_path):
    with ParquetRows(tmp_path / "rows.parquet", rows_per_group=3) as writer:
        for number in range(8):
            writer.write({**replace(EXAMPLE, id=str(number)).to_row(), "more": 1})
    assert writer.count == 8
    assert pq.ParquetFile(tmp_path / "rows.parquet").num_row_groups == 3
    assert [row["id"] for row in read_rows(tmp_path / "rows.parquet", batch_size=2)] == list("01234567")
    assert next(read_rows(tmp_path / "rows.parquet", ["id", "source"])) == {"id": "0", "source": "sums"}


def test_scored_rows_read_as_examples(tmp_path):
    row = {**EXAMPLE.to_row(), "difficulty": 0.5, "tokens": 9, "response_tokens": 2}
    write_rows(tmp_path / "scored.parquet", [row], SCORED_SCHEMA)
    assert list(read_examples(tmp_path / "scored.parquet")) == [EXAMPLE]
    assert next(read_rows(tmp_path / "scored.parquet")) == row


def test_a_row_of_another_type_is_refused(tmp_path):
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        write_rows(tmp_path / "rows.parquet", [{**EXAMPLE.to_row(), "messages": 5}])


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"source": "other"}, True),
        ({"group": "other"}, True),
        ({"fields": {}}, True),
        ({"slice": None}, True),
        ({"id": "other"}, True),
        ({"messages": (("user", "2 + 3?"), ("assistant", "5"))}, False),
        ({"rejected": None}, False),
        ({"answer": "6"}, False),
        ({"verifier": "exact"}, False),
    ],
)
def test_the_digest_of_the_content_is_of_what_is_taught(change, same):
    changed = replace(EXAMPLE, **change).content_digest()
    assert (changed == EXAMPLE.content_digest()) is same
    assert re.fullmatch("[0-9a-f]{32}", changed)


def test_turns_cannot_be_confused_with_each_other():
    one = Example(messages=(("user", "ab"), ("assistant", "c")))
    other = Example(messages=(("user", "a"), ("assistant", "bc")))
    assert one.content_digest() != other.content_digest()


def test_a_ledger_that_closes_passes():
    ledger = Ledger(rows_in=10, expanded=3, examples=8, duplicates=2, rejected=1, unsampled=2, held_out=8)
    ledger.check()
    assert json.loads(json.dumps(ledger.to_dict())) == {
        "rows_in": 10,
        "expanded": 3,
        "examples": 8,
        "duplicates": 2,
        "rejected": 1,
        "unsampled": 2,
        "held_out": 8,
    }


@pytest.mark.parametrize(
    "ledger", [Ledger(rows_in=1), Ledger(rows_in=1, examples=1, held_out=2), Ledger(held_out=-1), Ledger(examples=1)]
)
def test_an_open_ledger_is_our_mistake(ledger):
    with pytest.raises(AssertionError, match="does not close"):
        ledger.check()
