"""Prepares the data of a run: sources -> training part, held-out part, malformed rows, and a ledger that closes.

Two passes in constant memory (but for some digests, see `membership.py`): the first converts the rows, drops repeats
and spools the examples in source order; the second, when every tie between prompts and groups is known, deals the
spooled examples out to the two parts.
"""

import json
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from components.common.errors import DataError
from components.common.examples import SCHEMA, Ledger
from components.common.phase_data import NOTHING, Required
from components.common.spec import DataSpec
from components.preparing.chunks import Chunk
from components.preparing.convert import Converted, Settings, convert
from components.preparing.membership import Membership, Repeats
from components.preparing.oasst_messages import as_trees
from components.preparing.parts import deal_out
from components.preparing.recognise import ROWS, is_flat_tree, recognise
from components.preparing.rejections import Rejections
from components.preparing.sources import Part, read_part, resolve
from components.preparing.text_keys import DIGEST_BYTES
from components.preparing.workers import Workers, processes_for

Progress = Callable[[str, int], None]
KEYS = "held_out.keys"
"""The digests of all prompts and groups on the held-out side, one after the other."""


@dataclass(slots=True)
class FileReport:
    """One file in `sources.json`: what it is, how it was read, and what became of its rows."""

    source: str
    path: str
    part: str
    format: str = ""
    why: str = ""
    rows: int = 0
    expanded: int = 0
    examples: int = 0
    duplicates: int = 0
    rejected: int = 0
    unsampled: int = 0


def prepare(
    data: DataSpec,
    seed: int,
    out: Path,
    progress: Progress | None = None,
    processes: int | None = None,
    required: Required | None = None,
    beside: Path | None = None,
) -> Ledger:
    """Read all sources and write the examples, the held-out part, and what became of every row.

    Args:
        data: The spec's sources; paths absolute or with a scheme.
        seed: The data seed: decides what is held out and what a weight leaves out.
        out: An empty folder; gets `train.parquet`, `held_out.parquet`, `held_out.keys`, `rejected.jsonl`,
            `ledger.json` and `sources.json`.
        progress: Called after every chunk with the source's name and the rows read so far in all.
        processes: Processes that convert; by the sources' size where None. The result does not depend on it.
        required: What a row must have, of a phase's data.
        beside: Of a phase's data: the folder of the run's, whose held-out prompts and groups, and all that the
            phase's data tie to them, are held out here too, and so left out of the phase.

    Returns:
        The ledger, which closes.

    Raises:
        DataError: If a source is missing or damaged, no format fits, too many rows are malformed, or no example is
            left to train on.
    """
    parts = resolve(data)
    count = processes if processes is not None else processes_for(sum(part.size for part in parts))
    with (
        tempfile.TemporaryDirectory(dir=out, prefix="spool-") as spool,
        Rejections(out / "rejected.jsonl", data.max_rejected) as rejections,
    ):
        path = Path(spool) / "examples.arrow"
        with Workers(count) as workers, pa.OSFile(str(path), "wb") as file:
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            with pa.ipc.new_stream(file, SCHEMA, options=options) as writer:
                first_pass = _FirstPass(data, seed, rejections, writer.write_batch, progress, required or NOTHING)
                if beside is not None:
                    first_pass.membership.hold_out(_read_keys(beside / KEYS))
                reports = [first_pass.read(part, workers) for part in parts]
        ledger = first_pass.ledger
        rejections.check(ledger.rows_in + ledger.expanded, at_end=True)
        if not ledger.examples:
            raise _nothing_left(ledger, required)
        held_out = [first_pass.membership.held_out(node) for node in first_pass.nodes]
        (out / KEYS).write_bytes(b"".join(first_pass.membership.held_out_keys()))
        ledger.held_out = deal_out(path, held_out, out / "train.parquet", out / "held_out.parquet")
    ledger.check()
    if ledger.held_out == ledger.examples:
        raise _all_held_out(ledger, required)
    _write_json(out / "ledger.json", ledger.to_dict())
    _write_json(out / "sources.json", [asdict(report) for report in reports])
    return ledger


def _nothing_left(ledger: Ledger, required: Required | None) -> DataError:
    where = "data.train" if required is None else "`data` of that phase"
    return DataError(
        f"{_of(required)}the sources hold no example: {ledger.rows_in} rows read, {ledger.rejected} malformed, "
        f"{ledger.unsampled} left out by weights",
        f"check the files under {where}, and their weights",
    )


def _all_held_out(ledger: Ledger, required: Required | None) -> DataError:
    remedy = "check that data.held_out.sources do not repeat the training data"
    if required is not None:
        remedy = "give the phase data that the held-out part does not hold"
    return DataError(
        f"{_of(required)}all {ledger.examples} examples are held out; none is left to train on",
        f"lower data.held_out.fraction, or {remedy}",
    )


def _of(required: Required | None) -> str:
    return "" if required is None else f"{required.phase}: "


def _read_keys(path: Path) -> Iterator[bytes]:
    keys = path.read_bytes()
    return (keys[start : start + DIGEST_BYTES] for start in range(0, len(keys), DIGEST_BYTES))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


class _FirstPass:
    """Reads the sources one after the other; what it knows of earlier rows decides about later ones."""

    def __init__(
        self,
        data: DataSpec,
        seed: int,
        rejections: Rejections,
        write: Callable[[pa.RecordBatch], None],
        progress: Progress | None,
        required: Required,
    ) -> None:
        self.ledger = Ledger()
        self.membership = Membership()
        self.nodes = array("q")
        self._data = data
        self._seed = seed
        self._required = required
        self._rejections = rejections
        self._write = write
        self._progress = progress or (lambda source, rows: None)
        self._repeats = Repeats(drop=data.deduplicate != "none")

    def read(self, part: Part, workers: Workers) -> FileReport:
        """Convert a file's rows and spool the examples that stay."""
        report = FileReport(part.source, part.shown, "held_out" if part.held_out else "train")
        chunks = self._recognised(part, report)
        settings = Settings(
            source=part.source,
            format=report.format,
            weight=part.spec.weight,
            fraction=self._data.held_out.fraction,
            seed=self._seed,
            deduplicate=self._data.deduplicate,
            held_out=part.held_out,
            required=self._required,
        )
        for made in workers.map(partial(convert, settings=settings), chunks):
            self._take(made, part, report)
            self._progress(part.source, self.ledger.rows_in)
        return report

    def _recognised(self, part: Part, report: FileReport) -> Iterable[Chunk]:
        """The file's chunks, after its first rows have told the format."""
        chunks = read_part(part, self._data, self._seed)
        held, rows = _first_rows(chunks)
        report.format, report.why = part.spec.format, "given in the spec"
        if not rows:
            report.why = "the file holds no rows"
            return []
        if part.spec.format == "auto":
            report.format, report.why = recognise(rows, part.shown)
        every: Iterator[Chunk] = chain(held, chunks)
        return as_trees(every) if report.format == "oasst" and is_flat_tree(rows) else every

    def _take(self, made: Converted, part: Part, report: FileReport) -> None:
        """Count a chunk, drop its repeats, tie its prompts and groups, and spool what stays."""
        nodes = list(map(self.membership.add, made.prompts, made.groups, made.bits))
        keep = self._repeats.keep(made)
        kept = sum(keep)
        counts = {
            "expanded": made.expanded,
            "examples": kept,
            "duplicates": len(keep) - kept,
            "rejected": len(made.rejected),
            "unsampled": made.unsampled,
        }
        report.rows += made.rows
        self.ledger.rows_in += made.rows
        for name, count in counts.items():
            setattr(report, name, getattr(report, name) + count)
            setattr(self.ledger, name, getattr(self.ledger, name) + count)
        for rejection in made.rejected:
            self._rejections.write(part.shown, rejection)
        self._rejections.check(self.ledger.rows_in + self.ledger.expanded, at_end=False)
        self.nodes.extend(node for node, stays in zip(nodes, keep, strict=True) if stays)
        batch = made.batch if kept == len(keep) else made.batch.filter(pa.array(keep, pa.bool_()))
        if self._data.deduplicate == "none":
            ids = self._repeats.distinct(batch.column("id").to_pylist())
            batch = batch.set_column(SCHEMA.get_field_index("id"), "id", pa.array(ids, pa.string()))
        if kept:
            self._write(batch)


def _first_rows(chunks: Iterator[Chunk]) -> tuple[list[Chunk], list[Any]]:
    """The first chunks, and the first rows in them; the rows come again with the chunks."""
    held: list[Chunk] = []
    rows: list[Any] = []
    while len(rows) < ROWS and (chunk := next(chunks, None)) is not None:
        held.append(chunk)
        rows += (row for _, row in islice(chunk.rows(), ROWS - len(rows)))
    return held, rows
