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
LONGEST_ROW = 64 << 20
"""Bytes or characters of one row. A file that packs a longer one would fill the memory: a gzip file holds a thousand
times its size."""
DEEPEST = 400
"""Levels of lists and objects in a row; what is deeper could not travel between processes (Python's own stack)."""
TOO_DEEP = f"the row is nested deeper than {DEEPEST} levels"


@dataclass(frozen=True, slots=True)
class Broken:
    """A row that could not be parsed.

    Attributes:
        reason: Why.
        raw: Its text or its columns, whole; a byte that is not UTF-8 is half of a surrogate pair.
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
                yield number, Broken("the line is not UTF-8", raw.decode(errors="surrogateescape"))
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
        row = json.loads(line)
        return Broken(TOO_DEEP, line) if too_deep(row, line) else row
    except json.JSONDecodeError as error:
        return Broken(f"the line is not JSON: {error.msg}", line)
    except (RecursionError, ValueError) as error:
        return Broken(f"the line cannot be read: {error}", line)


def too_deep(row: Any, text: str) -> bool:
    """Whether a row has more than `DEEPEST` levels; its text tells at once of most that they have not."""
    if text.count("{") + text.count("[") <= DEEPEST:
        return False
    level = [row]
    for _ in range(DEEPEST + 1):
        level = [inner for outer in level if isinstance(outer, dict | list) for inner in _inside(outer)]
    return bool(level)


def _inside(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


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
