"""Every container, also compressed; damaged files and rows."""

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.common.errors import DataError
from components.preparing.chunks import Broken, Lines
from components.preparing.containers import read_chunks
from components.preparing.json_stream import BrokenJson, Scanner, elements

ROWS = [{"instruction": f"Q{n}", "output": 'a "quoted", é\nline' * n} for n in range(1, 4)]


def as_csv(delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["instruction", "output"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def as_parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), buffer, row_group_size=2)
    return buffer.getvalue()


LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CONTAINERS = {
    "array.json": json.dumps(ROWS, indent=1, ensure_ascii=False).encode(),
    "wrapped.json": json.dumps({"version": {"data": ["no"]}, "data": ROWS, "after": 1}).encode(),
    "lines.json": LINES,
    "lines.jsonl": LINES,
    "open_end.jsonl": LINES.rstrip(),
    "bom.ndjson": b"\xef\xbb\xbf" + LINES,
    "array.jsonl": json.dumps(ROWS).encode(),
    "rows.csv": as_csv(","),
    "bom.csv": b"\xef\xbb\xbf" + as_csv(","),
    "rows.tsv": as_csv("\t"),
    "rows.parquet": as_parquet(),
}


def read(path: Path) -> list[tuple[int, object]]:
    return [pair for chunk in read_chunks(path, str(path)) for pair in chunk.rows()]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", CONTAINERS)
def test_each_container(tmp_path, name, packed):
    path = tmp_path / (name + ".gz" if packed else name)
    path.write_bytes(gzip.compress(CONTAINERS[name]) if packed else CONTAINERS[name])
    assert [row for _, row in read(path)] == ROWS


def test_line_numbers(tmp_path):
    lines = tmp_path / "a.jsonl"
    lines.write_bytes(b'{"a": 1}\r\n\n  \n{"a": \n{"a": 2}\n\xff\n')
    assert read(lines) == [
        (1, {"a": 1}),
        (4, Broken("the line is not JSON: Expecting value", '{"a": ')),
        (5, {"a": 2}),
        (6, Broken("the line is not UTF-8", "\udcff")),
    ]
    table = tmp_path / "a.csv"
    table.write_text('x,y\n1,"two\nlines"\n3\n\n5,6\n')
    assert read(table) == [
        (2, {"x": "1", "y": "two\nlines"}),
        (4, Broken("the row has 1 columns, the header 2", ["3"])),
        (6, {"x": "5", "y": "6"}),
    ]


def test_a_damaged_line_in_a_later_chunk_keeps_its_number():
    assert list(Lines(8, b'{"a": 1}\n\n\xff').rows()) == [
        (8, {"a": 1}),
        (10, Broken("the line is not UTF-8", "\udcff")),
    ]


def test_lines_of_several_chunks_keep_their_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr("components.preparing.containers.CHUNK_BYTES", 7)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"a": {n}}}\n' for n in range(1, 30)) + "\n" + '{"a": "' + "x" * 50 + '"}')
    assert read(path) == [(n, {"a": n}) for n in range(1, 30)] + [(31, {"a": "x" * 50})]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1000])
def test_an_array_is_read_whatever_the_blocks(block):
    values = [{"a": 'é\\"]}', "b": [1, {"c": None}]}, 12345, -1.5e10, "x" * 40, [], True, {"d": "😀"}]
    text = io.StringIO(json.dumps(values) + " \n")
    scanner = Scanner(lambda size: text.read(block))
    assert list(elements(scanner)) == values
    assert scanner.peek() == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, {"a": "cut', "element 2: the file ends in the middle of it"),
        ('[{"a": 1}', "element 1: the array is not closed"),
        ('[{"a": 1},', "element 2: the file ends in the middle of it"),
        ('[{"a": 1} {"a": 2}]', "element 1: expected `,`, found `{`"),
        ('[{"a": 1}, {"a" 2, "b": "and so on for a while"}]', "element 2: Expecting ':' delimiter"),
    ],
)
def test_a_broken_array(tmp_path, text, message):
    with pytest.raises(BrokenJson) as error:
        list(elements(Scanner(io.StringIO(text).read)))
    assert str(error.value) == message
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"a\.json: the JSON array is broken or cut off: element"):
        read(path)


def test_what_cannot_be_read_is_one_error_that_names_the_file(tmp_path):
    cases = {
        "cut.jsonl.gz": (gzip.compress(LINES * 100)[:-20], "the gzip file is damaged or cut off"),
        "cut.json.gz": (gzip.compress(json.dumps(ROWS * 50).encode())[:-20], "the gzip file is damaged or cut off"),
        "cut.parquet.gz": (gzip.compress(as_parquet())[:-20], "the gzip file is damaged or cut off"),
        "plain.csv.gz": (b"x,y\n", "the gzip file is damaged or cut off: Not a gzipped file"),
        "rows.parquet": (b"no parquet", "not a readable Parquet file"),
        "cut.parquet": (as_parquet()[:-30], "not a readable Parquet file"),
        "quote.csv": (b'x,y\n1,"open\n2,3\n', "the CSV is broken near line 3"),
        "object.json": (json.dumps({"rows": 1}, indent=1).encode(), "one JSON object without a `data` list"),
        "after.json": (b'[{"a": 1}]\n[{"a": 2}]', "follows the end of the array"),
        "rows.txt": (b"x", "its suffix tells no known container"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError) as error:
            read(path)
        assert name in error.value.message
        assert message in error.value.message
        assert error.value.remedy


def test_a_bad_byte_costs_one_row(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"a": "caf\xe9"}, {"a": "tea"}]')
    assert read(path) == [(1, {"a": "caf\udce9"}), (2, {"a": "tea"})]
