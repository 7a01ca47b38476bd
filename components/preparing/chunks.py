"""Chunks: some rows of one file, as they travel from the reader to the process that converts them.

JSON lines travel as text and are parsed where they are converted; rows of the other containers are parsed already.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

CHUNK_BYTES = 1 << 20
"""Text of one chunk of lines, about."""
CHUNK_ROWS = 512
"""Rows of one chunk of parsed rows."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that could not be parsed.

    Attributes:
        reason: Why.
        raw: Its text, or what there is of it.
    """

    reason: str
    raw: Any


@dataclass(frozen=True, slots=True)
class Lines:
    """JSON lines that are not parsed yet.

    Attributes:
        first: Number of the first line, from 1.
        text: Whole lines.
    """

    first: int
    text: bytes

    def rows(self) -> Iterator[tuple[int, Any]]:
        """Pairs of line number and row; blank lines are passed over."""
        try:
            lines = self.text.decode().split("\n")
        except UnicodeDecodeError:
            yield from self._damaged_rows()
            return
        for number, line in enumerate(lines, start=self.first):
            if line and not line.isspace():
                yield number, parse_line(line)

    def _damaged_rows(self) -> Iterator[tuple[int, Any]]:
        for number, raw in enumerate(self.text.split(b"\n"), start=self.first):
            try:
                line = raw.decode()
            except UnicodeDecodeError:
                yield number, Broken("the line is not UTF-8", raw.decode(errors="replace"))
                continue
            if line and not line.isspace():
                yield number, parse_line(line)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that are parsed: pairs of line (or row) number and row."""

    numbered: list[tuple[int, Any]]

    def rows(self) -> Iterator[tuple[int, Any]]:
        """The pairs."""
        return iter(self.numbered)


Chunk = Lines | Rows


def parse_line(line: str) -> Any:
    """The value of one JSON line, or what is broken about it."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return Broken(f"the line is not JSON: {error.msg}", line)
    except (RecursionError, ValueError) as error:
        return Broken(f"the line cannot be read: {error}", line)


def in_chunks(numbered: Iterable[tuple[int, Any]]) -> Iterator[Rows]:
    """Numbered rows, gathered."""
    gathered: list[tuple[int, Any]] = []
    for pair in numbered:
        gathered.append(pair)
        if len(gathered) >= CHUNK_ROWS:
            yield Rows(gathered)
            gathered = []
    if gathered:
        yield Rows(gathered)
