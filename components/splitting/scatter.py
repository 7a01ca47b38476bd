"""Writes the rows of one Parquet file into several, each in an order of its own, in memory that does not grow.

Rows go where they belong in two passes over *buckets*: a bucket is a run of neighbouring output rows that fits into
memory. The first pass reads the source once and appends each row to its bucket's scratch file; the second reads one
bucket at a time, puts its rows in order, and writes them.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from components.common.examples import SCORED_SCHEMA

Rows = npt.NDArray[np.int64]

_BUCKET_BYTES = 48 * 2**20
_MAX_BUCKETS = 256
"""Scratch files open at once, besides at most one for each target; the usual limit of a process is 1024."""
_GROUP = 8192
"""Rows in a row group of the targets, as `ParquetRows` writes them."""
_BATCH = 16384


def scatter(source: Path, targets: dict[Path, Rows], schema: pa.Schema = SCORED_SCHEMA) -> None:
    """Write rows of ``source`` to the targets.

    Args:
        source: A Parquet file with at least the schema's columns.
        targets: For each file to write, the numbers of the source's rows in the order to write them. A row may be in
            one target only. Scratch files lie beside the first target and are removed, also after an error.
        schema: Columns of the targets.
    """
    with pq.ParquetFile(source) as file:
        metadata = file.metadata
    size = _bucket_rows(metadata)
    bucket_of = np.full(metadata.num_rows, -1, np.int64)
    buckets: list[tuple[Path, Rows]] = []
    for target, rows in targets.items():
        for start in range(0, len(rows), size):
            bucket_of[rows[start : start + size]] = len(buckets)
            buckets.append((target, rows[start : start + size]))
    with tempfile.TemporaryDirectory(prefix=".scratch-", dir=next(iter(targets)).parent) as folder:
        scratch = [Path(folder) / f"{index}.arrow" for index in range(len(buckets))]
        _fill(source, bucket_of, scratch, schema)
        with ExitStack() as stack:
            writers = {
                target: stack.enter_context(pq.ParquetWriter(target, schema, compression="zstd")) for target in targets
            }
            for path, (target, rows) in zip(scratch, buckets, strict=True):
                _write_bucket(path, rows, writers[target])
                path.unlink()


def _bucket_rows(metadata: pq.FileMetaData) -> int:
    """Rows of a bucket: whole row groups, by the mean size of a row."""
    total = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    mean = max(1.0, total / max(1, metadata.num_rows))
    rows = max(_BUCKET_BYTES / mean, metadata.num_rows / _MAX_BUCKETS)
    groups: int = max(1, round(rows / _GROUP))
    return _GROUP * groups


def _fill(source: Path, bucket_of: Rows, scratch: list[Path], schema: pa.Schema) -> None:
    """First pass: append each row, in the source's order, to the scratch file of its bucket."""
    with ExitStack() as stack:
        file = stack.enter_context(pq.ParquetFile(source))
        writers = [
            stack.enter_context(pa.ipc.new_stream(stack.enter_context(pa.OSFile(str(path), "wb")), schema))
            for path in scratch
        ]
        start = 0
        for batch in file.iter_batches(batch_size=_BATCH, columns=schema.names):
            table = pa.Table.from_batches([batch]).select(schema.names).cast(schema)
            where = bucket_of[start : start + len(batch)]
            start += len(batch)
            for bucket in np.unique(where[where >= 0]):
                writers[bucket].write_table(table.take(pa.array(np.flatnonzero(where == bucket))))


def _write_bucket(path: Path, rows: Rows, writer: pq.ParquetWriter) -> None:
    """Second pass: a bucket's rows stand in the source's order; write them in the target's."""
    with pa.OSFile(str(path), "rb") as file, pa.ipc.open_stream(file) as reader:
        table = reader.read_all().combine_chunks()
    place = np.empty(len(rows), np.int64)
    place[np.argsort(rows)] = np.arange(len(rows))
    for start in range(0, len(rows), _GROUP):
        writer.write_table(table.take(pa.array(place[start : start + _GROUP])))
