"""Deals spooled examples out to the training part and the held-out part."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from components.common.examples import SCHEMA

ROWS_PER_GROUP = 8192
"""Rows of a row group: what a reader holds in memory at once."""


class _Part:
    """A Parquet file in the making, with row groups of one size whatever the batches' sizes."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd")
        self._waiting: list[pa.RecordBatch] = []
        self._rows = 0
        self.count = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows."""
        if not batch.num_rows:
            return
        self._waiting.append(batch)
        self._rows += batch.num_rows
        self.count += batch.num_rows
        whole = self._rows - self._rows % ROWS_PER_GROUP
        if whole:
            self._flush(whole)

    def _flush(self, rows: int) -> None:
        table = pa.Table.from_batches(self._waiting, SCHEMA)
        self._writer.write_table(table.slice(0, rows), row_group_size=ROWS_PER_GROUP)
        self._waiting = table.slice(rows).to_batches()
        self._rows -= rows

    def close(self) -> None:
        """Write the last row group and the footer."""
        if self._rows:
            self._flush(self._rows)
        self._writer.close()


def deal_out(spool: Path, held_out: Sequence[bool], train: Path, held: Path) -> int:
    """Write the two parts, each in the spool's order.

    Args:
        spool: The examples, an Arrow stream.
        held_out: For each of them, whether it is held out.
        train: The training part's path.
        held: The held-out part's path.

    Returns:
        How many were held out.
    """
    parts = _Part(train), _Part(held)
    done = 0
    with pa.OSFile(str(spool), "rb") as file, pa.ipc.open_stream(file) as reader:
        for batch in reader:
            mask = pa.array(held_out[done : done + batch.num_rows], pa.bool_())
            done += batch.num_rows
            parts[0].write(_without_slice(batch.filter(pc.invert(mask))))
            parts[1].write(batch.filter(mask))
    for part in parts:
        part.close()
    return parts[1].count


def _without_slice(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A slice names a test of its own; in training there is none."""
    place = SCHEMA.get_field_index("slice")
    if batch.column(place).null_count == batch.num_rows:
        return batch
    return batch.set_column(place, "slice", pa.nulls(batch.num_rows, pa.string()))
