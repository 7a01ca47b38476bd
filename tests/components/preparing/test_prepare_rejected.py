"""Rows that are malformed: each is rejected whole and counted, and too many of them end it."""

import json

import pytest

from components.common.errors import DataError
from components.preparing.convert import Rejection
from components.preparing.rejections import Rejections
from tests.components.preparing.prepared import closes, failure, flat, pair, rejected_rows, run, write_lines


def test_a_message_that_leads_nowhere_is_rejected_whole(tmp_path):
    known = [flat("a", None, "prompter", "Q"), flat("b", "a", "assistant", "A")]
    lost = [flat("c", "gone", "assistant", "C", rank=1), flat("d", "c", "prompter", "D", labels={"spam": 0.5})]
    path = write_lines(tmp_path / "flat.jsonl", [*known, *lost, flat("e", "e", "assistant", "E")])
    ledger, train, _, out = run(tmp_path, [path], held_out={"fraction": 0}, max_rejected=1)
    assert (len(train), ledger.rejected) == (1, 3)
    assert [row for _, row in rejected_rows(out)] == [*lost, flat("e", "e", "assistant", "E")]
    assert closes(ledger, out)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_tree_too_deep_costs_one_row(tmp_path, processes):
    chain = [flat(f"m{n}", f"m{n - 1}" if n else None, ("prompter", "assistant")[n % 2], f"t{n}") for n in range(3000)]
    path = write_lines(
        tmp_path / "flat.jsonl", [*chain, flat("a", None, "prompter", "Q"), flat("b", "a", "assistant", "A")]
    )
    ledger, train, _, out = run(tmp_path, [path], processes=processes, held_out={"fraction": 0}, max_rejected=1)
    ((why, row),) = rejected_rows(out)
    assert (len(train), why, len(row)) == (1, "the tree is deeper than 199 messages", 3000)
    assert closes(ledger, out)


def test_a_long_row_is_rejected_whole(tmp_path):
    long = '{"prompt": "' + "x" * 3_000_000
    path = write_lines(tmp_path / "a.jsonl", [pair("q", "a"), long, pair("y" * 3_000_000, "")])
    ledger, _, _, out = run(tmp_path, [path], held_out={"fraction": 0}, max_rejected=1)
    assert [row for _, row in rejected_rows(out)] == [long, pair("y" * 3_000_000, "")]
    assert closes(ledger, out)


def test_a_line_that_is_not_utf8_is_rejected_byte_for_byte(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(pair("q", "a")).encode() + b'\n{"prompt": "caf\xe9", "completion": "a"}\n')
    ledger, _, _, out = run(tmp_path, [str(path)], held_out={"fraction": 0}, max_rejected=1)
    ((_, row),) = rejected_rows(out)
    assert row.encode(errors="surrogateescape") == b'{"prompt": "caf\xe9", "completion": "a"}'
    assert closes(ledger, out)


def test_too_many_malformed_rows(tmp_path):
    rows = [pair("q", "a")] * 4 + [pair("q", "")] * 3 + [pair("", "a")] * 2 + ["{"]
    error = failure(tmp_path, rows, max_rejected=0.5)
    assert error.message == (
        "6 of 10 rows are malformed (60.0%, data.max_rejected is 50.0%). Most frequent: `completion` is empty (3); "
        "`prompt` is empty (2); the line is not JSON: Expecting property name enclosed in double quotes (1). "
        f'First: {tmp_path / "a.jsonl"}, line 5: {{"prompt": "q", "completion": ""}}'
    )
    (out,) = [folder for folder in tmp_path.iterdir() if folder.is_dir()]
    assert len((out / "rejected.jsonl").read_text().splitlines()) == 6


def test_a_bad_file_stops_early_and_a_bad_start_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr("components.preparing.containers.CHUNK_BYTES", 1 << 14)
    rows = [pair(f"q{n}", "" if n % 2 else "a") for n in range(20000)]
    seen = int(failure(tmp_path, rows).message.split(" of ")[1].split(" rows read so far")[0])
    assert 1000 < seen < 2000
    # 60 of the first 1,100 rows are malformed (5.5%), and none after them.
    rows = [pair(f"q{n}", "" if n % 18 == 0 and n < 1080 else "a") for n in range(3000)]
    assert run(tmp_path, [write_lines(tmp_path / "b.jsonl", rows)])[0].rejected == 60


def test_before_the_end_only_what_chance_does_not_explain_stops(tmp_path):
    # 1,100 rows at 5%: 55 and four standard deviations of 7.23 are 83.9.
    with Rejections(tmp_path / "rejected.jsonl", 0.05) as rejections:
        for line in range(83):
            rejections.write("a", Rejection(line, "empty", {}))
        rejections.check(1100, at_end=False)
        with pytest.raises(DataError, match="83 of 1100 rows are malformed"):
            rejections.check(1100, at_end=True)
        rejections.write("a", Rejection(84, "empty", {}))
        rejections.check(1000, at_end=False)  # too few rows to tell
        with pytest.raises(DataError, match="84 of 1100 rows read so far are malformed"):
            rejections.check(1100, at_end=False)


def test_nothing_is_left(tmp_path):
    assert (
        failure(tmp_path, []).message == "the sources hold no example: 0 rows read, 0 malformed, 0 left out by weights"
    )
    assert failure(tmp_path, [pair("q", "")], max_rejected=1).message.startswith("the sources hold no example: 1 rows")
    assert failure(tmp_path, [pair("q", "a", held_out=True)]).message == (
        "all 1 examples are held out; none is left to train on"
    )
    with pytest.raises(DataError, match="there is no such file or folder"):
        run(tmp_path, [str(tmp_path / "missing.json")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no data file below it"):
        run(tmp_path, [str(tmp_path / "empty")])
    with pytest.raises(DataError, match="the scheme `gs` is not known"):
        run(tmp_path, ["gs://bucket/x.json"])
