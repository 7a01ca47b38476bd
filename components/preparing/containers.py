"""Reads the rows of one local file: JSON, JSON lines, CSV or Parquet, each also compressed with gzip.

Everything is read in constant memory. A row that cannot be parsed travels on as `Broken`; a file that cannot be read
to its end is one clear error that names it.
"""

import csv
import gzip
import io
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from components.common.errors import DataError
from components.preparing.chunks import CHUNK_BYTES, CHUNK_ROWS, LONGEST_ROW, Broken, Chunk, Lines, Rows, in_chunks
from components.preparing.json_stream import BrokenJson, Scanner, elements, find_array

_BOM = b"\xef\xbb\xbf"


def container(name: str) -> str | None:
    """The container that a file's name tells, with `.gz` left out: `.json`, `.jsonl`, `.csv`, ...; None if none."""
    suffix = Path(name.lower().removesuffix(".gz")).suffix
    return suffix if suffix in _READERS else None


def known_suffixes() -> str:
    """The suffixes that can be read, for errors."""
    return ", ".join(_READERS) + ", each also with .gz"


def read_chunks(path: Path, shown: str) -> Iterator[Chunk]:
    """The rows of a file in chunks.

    Args:
        path: Where it lies now.
        shown: Its name for errors and for its suffix (a download lies elsewhere than its source).

    Raises:
        DataError: If the file is of no known container, cannot be opened, or breaks off.
    """
    suffix = container(shown)
    if suffix is None:
        raise DataError(f"{shown}: its suffix tells no known container", f"data files end in {known_suffixes()}")
    try:
        yield from _READERS[suffix](path, shown)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{shown}: the gzip file is damaged or cut off: {error}", "fetch the file again") from error
    except OSError as error:
        raise DataError(
            f"{shown}: cannot be read: {error.strerror or error}", "check the path and its rights"
        ) from error


def _open(path: Path, shown: str) -> IO[bytes]:
    if shown.lower().endswith(".gz"):
        return io.BufferedReader(gzip.open(path, "rb"))
    return path.open("rb")


def _open_text(path: Path, shown: str) -> IO[str]:
    # newline="" leaves line ends alone: the csv module wants them as they are. A byte that is not UTF-8 becomes half
    # of a surrogate pair, for which its row, and no other, is rejected.
    return io.TextIOWrapper(_open(path, shown), encoding="utf-8-sig", errors="surrogateescape", newline="")


def _json(path: Path, shown: str) -> Iterator[Chunk]:
    """An array, an object with `data`, or (as files named .json often are) lines."""
    with _open_text(path, shown) as file:
        scanner = Scanner(file.read)
        shape = find_array(scanner)
        if shape in ("array", "data"):
            yield from _array(scanner, shown, whole=shape == "array")
            return
    if shape == "object":
        raise DataError(
            f"{shown}: one JSON object without a `data` list of objects",
            "give a JSON array, JSON lines, or an object with the rows in `data`",
        )
    yield from _lines(path, shown)


def _array(scanner: Scanner, shown: str, whole: bool) -> Iterator[Chunk]:
    try:
        yield from in_chunks(enumerate(elements(scanner), start=1))
        if whole and scanner.peek():
            raise BrokenJson(f"`{scanner.peek()}` follows the end of the array")
    except BrokenJson as error:
        raise DataError(f"{shown}: the JSON array is broken or cut off: {error}", "fetch or mend the file") from error


def _lines(path: Path, shown: str) -> Iterator[Chunk]:
    first, length = 1, 0
    held: list[bytes] = []
    with _open(path, shown) as file:
        block = file.read(CHUNK_BYTES).removeprefix(_BOM)
        while block:
            cut = block.rfind(b"\n") + 1
            if cut:
                text = b"".join([*held, block[:cut]])
                yield Lines(first, text)
                first += text.count(b"\n")
                held, length = [], 0
            held.append(block[cut:])
            length += len(held[-1])
            if length > LONGEST_ROW:
                raise _too_long(shown, f"line {first}")
            block = file.read(CHUNK_BYTES)
    if any(held):
        yield Lines(first, b"".join(held))


def _too_long(shown: str, where: str) -> DataError:
    return DataError(
        f"{shown}: {where} is longer than {LONGEST_ROW >> 20} MiB, which no row of training data is",
        "check that the file holds what its suffix says, and take the row out",
    )


def _json_lines(path: Path, shown: str) -> Iterator[Chunk]:
    """Lines; an array under the name .jsonl is read as what it is."""
    with _open_text(path, shown) as file:
        is_array = Scanner(file.read).peek() == "["
    yield from _json(path, shown) if is_array else _lines(path, shown)


def _csv(delimiter: str) -> Callable[[Path, str], Iterator[Chunk]]:
    def read(path: Path, shown: str) -> Iterator[Chunk]:
        csv.field_size_limit(LONGEST_ROW)  # the module's own limit is 128 KiB
        with _open_text(path, shown) as file:
            text = _CsvText(file, shown)
            reader = csv.reader(text, delimiter=delimiter, strict=True)
            try:
                yield from in_chunks(_csv_rows(reader, text))
            except csv.Error as error:
                raise DataError(
                    f"{shown}: the CSV is broken near line {reader.line_num}: {error}",
                    "quote every field that holds a quote, a comma or a line end, and double the quotes in it",
                ) from error

    return read


class _CsvText:
    """The lines of a CSV file, counted: a row may go over several of them, and neither may have no end."""

    def __init__(self, file: IO[str], shown: str) -> None:
        self._file, self._shown = file, shown
        self._line = 0
        self.row = 0
        """Characters since the last whole row; set to 0 by who reads the rows."""

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(LONGEST_ROW):
            self._line += 1
            self.row += len(line)
            if self.row > LONGEST_ROW or (len(line) == LONGEST_ROW and not line.endswith("\n")):
                raise _too_long(self._shown, f"the row near line {self._line}")
            yield line


def _csv_rows(reader: Any, text: _CsvText) -> Iterator[tuple[int, Any]]:
    header: list[str] = next(reader, [])
    line = reader.line_num + 1
    for cells in reader:
        text.row = 0
        if len(cells) == len(header):
            yield line, dict(zip(header, cells, strict=True))
        elif cells:
            yield line, Broken(f"the row has {len(cells)} columns, the header {len(header)}", cells)
        line = reader.line_num + 1


def _parquet(path: Path, shown: str) -> Iterator[Chunk]:
    if not shown.lower().endswith(".gz"):
        yield from _parquet_rows(path, shown)
        return
    # Parquet is read from its end: a compressed one has to be unpacked to a file first.
    with tempfile.NamedTemporaryFile(suffix=".parquet") as unpacked:
        with gzip.open(path, "rb") as packed:
            shutil.copyfileobj(packed, unpacked, CHUNK_BYTES)
        unpacked.flush()
        yield from _parquet_rows(Path(unpacked.name), shown)


def _parquet_rows(path: Path, shown: str) -> Iterator[Chunk]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = 1
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=CHUNK_ROWS):
                yield Rows(list(enumerate(batch.to_pylist(), start=first)))
                first += batch.num_rows
    except pa.ArrowException as error:
        raise DataError(f"{shown}: not a readable Parquet file: {error}", "fetch or write the file again") from error


_READERS: dict[str, Callable[[Path, str], Iterator[Chunk]]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _csv(","),
    ".tsv": _csv("\t"),
    ".parquet": _parquet,
}
