"""Small sources, what is prepared of them, and what is asked of that: for the tests of preparing."""

import json
import tempfile
from pathlib import Path

import pytest

from components.common.errors import DataError
from components.common.examples import Ledger, read_examples
from components.common.spec import DataSpec
from components.preparing.prepare import prepare


def write_lines(path: Path, rows: list) -> str:
    """Write rows, or lines as they are, to a file; returns its path."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def run(tmp_path: Path, train: list, seed: int = 17, processes: int | None = None, **options: object):
    """Prepare and return the ledger, the two parts' examples, and the folder."""
    sources = [source if isinstance(source, dict) else {"path": source} for source in train]
    out = Path(tempfile.mkdtemp(dir=tmp_path))
    ledger = prepare(DataSpec.model_validate({"train": sources, **options}), seed, out, processes=processes)
    return ledger, list(read_examples(out / "train.parquet")), list(read_examples(out / "held_out.parquet")), out


def pair(prompt: str, completion: str, **extra: object) -> dict:
    """A row of a prompt and its completion."""
    return {"prompt": prompt, "completion": completion, **extra}


def flat(name: str, parent: str | None, role: str, text: str, **more: object) -> dict:
    """A message of a tree that is written message by message."""
    return {"message_id": name, "parent_id": parent, "role": role, "text": text, **more}


def closes(ledger: Ledger, out: Path) -> bool:
    """Whether the files' counts add up to the ledger's, and the rejected rows are all in their file."""
    ledger.check()
    files = json.loads((out / "sources.json").read_text())
    counts = ledger.to_dict()
    sums = {"rows_in": sum(file["rows"] for file in files)}
    sums |= {name: sum(file[name] for file in files) for name in counts if name not in ("rows_in", "held_out")}
    lines = (out / "rejected.jsonl").read_text().splitlines()
    return sums == {name: counts[name] for name in sums} and len(lines) == ledger.rejected


def rejected_rows(out: Path) -> list[tuple[str, object]]:
    """Reason and row of what was rejected, in order."""
    rows = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    return [(row["reason"], row["row"]) for row in rows]


def failure(tmp_path: Path, rows: list, **options: object) -> DataError:
    """The error that preparing these rows ends with."""
    with pytest.raises(DataError) as error:
        run(tmp_path, [write_lines(tmp_path / "a.jsonl", rows)], **options)
    assert error.value.remedy
    return error.value
