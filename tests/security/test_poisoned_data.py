"""Data from somebody else: bombs, files that lead elsewhere, and data sets with code."""

import gzip
import json

import pytest

from components.common.errors import DataError, UserError
from components.common.objects import open_objects
from components.common.spec import DataSpec
from components.common.verifiers import fault
from components.preparing.chunks import LONGEST_ROW
from components.preparing.containers import read_chunks
from components.preparing.prepare import prepare
from components.preparing.sources import resolve

ROW = json.dumps({"prompt": "1 + 1?", "completion": "2"})


@pytest.fixture
def short_rows(monkeypatch):
    """Rows of 1 MiB at most, so that a bomb is quickly made."""
    for module in ("containers", "json_stream"):
        monkeypatch.setattr(f"components.preparing.{module}.LONGEST_ROW", 1 << 20)


def packed(path, beginning: bytes, filling: bytes, ending: bytes = b""):
    """A gzip file with 256 MiB between its beginning and its ending."""
    with gzip.open(path, "wb", 1) as file:
        file.write(beginning)
        for _ in range(256):
            file.write(filling * ((1 << 20) // len(filling)))
        file.write(ending)
    return path


BOMBS = {
    "one line": ("a.jsonl.gz", b'{"prompt": "', b"x", b'"}\n'),
    "one element": ("a.json.gz", b'[{"prompt": "', b"x", b'"}]'),
    "one element of numbers": ("a.json.gz", b"[[", b"1,", b"1]]"),
    "a member before the rows": ("a.json.gz", b'{\n"more": "', b"x", b'", "data": [{}]}'),
    "one cell": ("a.csv.gz", b"prompt,completion\nq,", b"x"),
    "one quoted cell": ("a.csv.gz", b'prompt,completion\nq,"', b"x\n"),
    "one row of cells": ("a.csv.gz", b"prompt,completion\nq", b",y"),
    "one row over many lines": ("a.csv.gz", b'prompt,completion\nq,"', b'\n","'),
    "a header without an end": ("a.tsv.gz", b"", b"x"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_file_that_unpacks_to_one_endless_row_is_refused_early(tmp_path, short_rows, memory_of, bomb):
    name, *parts = BOMBS[bomb]
    path = packed(tmp_path / name, *parts)
    assert path.stat().st_size < 4 << 20

    def read():
        with pytest.raises(DataError, match=r"longer than \d+ MiB"):
            for _ in read_chunks(path, str(path)):
                pass

    assert memory_of(read) < 64 << 20


def test_rows_below_the_limit_are_rows(tmp_path):
    long = "x" * (4 << 20)
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": long, "completion": "2"}) + "\n" + ROW)
    (tmp_path / "a.csv").write_text(f'prompt,completion\n"{long}",2\nq,"{long}"\n')
    for name in ("a.jsonl", "a.csv"):
        assert sum(len(list(chunk.rows())) for chunk in read_chunks(tmp_path / name, name)) == 2
    assert LONGEST_ROW > 4 << 20


def test_a_gzip_within_a_gzip_is_unpacked_once(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(gzip.compress(ROW.encode())))
    rows = [row for chunk in read_chunks(path, str(path)) for _, row in chunk.rows()]
    assert ROW not in str(rows)


def test_archives_are_no_data(tmp_path):
    import tarfile
    import zipfile

    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "a.zip", "w") as archive:
        archive.writestr("../../escaped.jsonl", ROW)
    with tarfile.open(tmp_path / "in" / "a.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("/escaped.jsonl"))
    for source in ("in", "in/a.zip", "in/a.tar.gz"):
        with pytest.raises(DataError, match=r"no data file below it|no known container"):
            resolve(DataSpec.model_validate({"train": [{"path": str(tmp_path / source)}]}))
    assert [path.name for path in tmp_path.rglob("*escaped*")] == []


@pytest.mark.parametrize("name", ["evil", "data", "train"])
def test_a_data_set_with_a_script_runs_none_of_it(tmp_path, trap, name):
    folder = tmp_path / "owner" / name
    folder.mkdir(parents=True)
    (folder / f"{name}.py").write_text(trap.code)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DataError):
        prepare(DataSpec.model_validate({"train": [{"path": f"hf://{folder}"}]}), 17, out)
    assert not trap.sprung


def test_objects_with_hostile_names_are_read_and_written_nowhere_else(s3, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["hostile/../../up.jsonl", "hostile//etc/rooted.jsonl", "hostile/\u202e.jsonl", "hostile/$(x);`y`.jsonl"]
    for name in names:
        s3.put_object(Bucket="bucket", Key=name, Body=(ROW.replace("1", name) + "\n").encode())
    out = tmp_path / "out"
    out.mkdir()
    before = set(tmp_path.parent.rglob("*.jsonl"))
    data = {"train": [{"path": "s3://bucket/hostile"}], "held_out": {"fraction": 0}}
    assert prepare(DataSpec.model_validate(data), 17, out).examples == len(names)
    assert {path for path in tmp_path.parent.rglob("*.jsonl") if out not in path.parents} == before


def test_a_prefix_is_not_left_by_a_neighbour_that_begins_like_it(s3):
    mine, neighbour = open_objects("s3://bucket/team-a"), open_objects("s3://bucket/team-a-too")
    mine.write("phases/a", b"1")
    neighbour.write("phases/b", b"2")
    assert [item.name for item in mine.list("phases")] == ["phases/a"]
    assert mine.read("../team-a-too/phases/b") is None
    with pytest.raises(UserError):
        open_objects("gs://bucket/team-a")


def test_a_schema_of_the_data_cannot_make_us_fetch_anything():
    assert "may refer only to parts of itself" in (fault("json_schema", '{"$ref": "http://127.0.0.1:1/a"}') or "")
    assert "may refer only to parts of itself" in (fault("json_schema", '{"$ref": "file:///etc/passwd"}') or "")
