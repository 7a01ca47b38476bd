"""Examples: one training row, its Parquet form, and the ledger that counts every row.

An example is a conversation that ends with the assistant's reply. What was a `prompt` and a `completion` is a
conversation of two messages. Files of examples are Parquet with `SCHEMA` (before scoring) or `SCORED_SCHEMA`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from components.common.digests import digest

_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("group", pa.string()),
        ("messages", pa.list_(_MESSAGE)),
        ("rejected", pa.string()),
        ("answer", pa.string()),
        ("verifier", pa.string()),
        ("slice", pa.string()),
        ("fields", pa.string()),
    ]
)
SCORED_SCHEMA = pa.schema(
    [*SCHEMA, ("difficulty", pa.float64()), ("tokens", pa.int32()), ("response_tokens", pa.int32())]
)
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Example:
    """One example.

    Attributes:
        messages: The turns as (role, content); roles are `system`, `user`, `assistant`; the last is `assistant`.
        source: The name of the source it came from.
        group: The problem behind the wording; None where the source does not know one.
        rejected: The rejected last reply of a preference pair, else None.
        answer: The gold answer that a verifier compares with, else None.
        verifier: The verifier's name (docs/verifiers.md), None where the example is not verifiable.
        slice: None for ordinary examples; a name for held-out examples that make a test of their own
            (`unseen_wording`) and stay out of the tiers' metrics.
        fields: Further scalar columns of the row (what the `column` scorer reads).
        id: Digest of the content; filled in by `identified`.
    """

    messages: tuple[tuple[str, str], ...]
    source: str = ""
    group: str | None = None
    rejected: str | None = None
    answer: str | None = None
    verifier: str | None = None
    slice: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    id: str = ""

    @property
    def prompt(self) -> tuple[tuple[str, str], ...]:
        """All turns before the last reply."""
        return self.messages[:-1]

    @property
    def response(self) -> str:
        """The last reply."""
        return self.messages[-1][1]

    def content_digest(self) -> str:
        """32 hexadecimal digits over what the example teaches: its messages, rejected reply and answer."""
        return digest([self.messages, self.rejected, self.answer, self.verifier])

    def to_row(self) -> dict[str, Any]:
        """The Parquet row (see `SCHEMA`)."""
        return {
            "id": self.id,
            "source": self.source,
            "group": self.group,
            "messages": [{"role": role, "content": content} for role, content in self.messages],
            "rejected": self.rejected,
            "answer": self.answer,
            "verifier": self.verifier,
            "slice": self.slice,
            "fields": json.dumps(self.fields, ensure_ascii=False, sort_keys=True) if self.fields else None,
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        """The inverse of `to_row`; further columns of the row are ignored."""
        return cls(
            id=row["id"],
            source=row["source"],
            group=row["group"],
            messages=tuple((turn["role"], turn["content"]) for turn in row["messages"]),
            rejected=row["rejected"],
            answer=row["answer"],
            verifier=row["verifier"],
            slice=row["slice"],
            fields=json.loads(row["fields"]) if row["fields"] else {},
        )


def given_difficulty(fields: str | None) -> float:
    """The number in an example's own `difficulty` field, as its row spells the fields; NaN where there is none."""
    if fields is None or '"difficulty"' not in fields:
        return math.nan
    value = json.loads(fields).get("difficulty")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    # A whole number may be past any float. In this order of the arguments NaN stays NaN.
    return float(min(max(value, -sys.float_info.max), sys.float_info.max))


class ParquetRows:
    """Writes dictionaries to one Parquet file in row groups, in constant memory.

    Use as a context manager; the file is complete only after a clean exit.
    """

    def __init__(self, path: Path, schema: pa.Schema = SCHEMA, rows_per_group: int = 8192) -> None:
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._schema = schema
        self._rows: list[dict[str, Any]] = []
        self._limit = rows_per_group
        self.count = 0

    def write(self, row: dict[str, Any]) -> None:
        """Add one row; columns outside the schema are dropped, missing ones are null."""
        self._rows.append(row)
        self.count += 1
        if len(self._rows) >= self._limit:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()


def write_rows(path: Path, rows: Iterable[dict[str, Any]], schema: pa.Schema = SCHEMA) -> int:
    """Write rows to a Parquet file and return how many there were."""
    with ParquetRows(path, schema) as writer:
        for row in rows:
            writer.write(row)
    return writer.count


def read_rows(path: Path, columns: list[str] | None = None, batch_size: int = 8192) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file as dictionaries, in order and in constant memory."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=batch_size, columns=columns):
            yield from batch.to_pylist()


def read_examples(path: Path) -> Iterator[Example]:
    """Examples of a Parquet file, in order."""
    return (Example.from_row(row) for row in read_rows(path))


@dataclass(slots=True)
class Ledger:
    """Where every row went. ``rows_in + expanded = examples + duplicates + rejected + unsampled``.

    Attributes:
        rows_in: Rows read from all sources.
        expanded: Surplus from rows that became several examples (a row that became 3 counts 2).
        examples: Examples kept, training and held-out together.
        duplicates: Examples dropped because an earlier one equals them.
        rejected: Malformed rows, written to `rejected.jsonl`.
        unsampled: Left out by a source's weight.
        held_out: Of the examples, those in the held-out part.
    """

    rows_in: int = 0
    expanded: int = 0
    examples: int = 0
    duplicates: int = 0
    rejected: int = 0
    unsampled: int = 0
    held_out: int = 0

    def check(self) -> None:
        """Assert that the ledger closes: an open ledger is our mistake, never the user's."""
        incoming = self.rows_in + self.expanded
        outgoing = self.examples + self.duplicates + self.rejected + self.unsampled
        if incoming != outgoing or not 0 <= self.held_out <= self.examples:
            raise AssertionError(f"the ledger does not close: {asdict(self)}")

    def to_dict(self) -> dict[str, int]:
        """The counts by name."""
        return asdict(self)
