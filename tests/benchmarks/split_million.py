"""Times the split of a million scored examples and prints its peak memory.

Run as ``python tests/benchmarks/split_million.py [rows] [folder]``; the data are made first, by another process,
so that the peak is the split's alone.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.common.examples import SCORED_SCHEMA
from components.common.spec import SplittingSpec
from components.splitting.split import split


def peak_kib() -> int:
    """The most memory that this program has held, KiB.

    `ru_maxrss` would begin with what the process that started this one held.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def make(path: Path, rows: int, seed: int) -> None:
    """A scored file of Alpaca's proportions: some 650 bytes of text in a row, responses of uneven length."""
    random = np.random.default_rng(seed)
    words = np.array(
        [
            "".join(chr(97 + letter) for letter in random.integers(26, size=size))
            for size in random.integers(2, 10, size=4000)
        ]
    )
    text = " ".join(random.choice(words, size=400_000))
    with pq.ParquetWriter(path, SCORED_SCHEMA, compression="zstd") as writer:
        for start in range(0, rows, 8192):
            count = min(8192, rows - start)
            lengths = np.minimum(random.lognormal(5.8, 0.9, count).astype(int) + 1, 20_000)
            places = random.integers(len(text) - 20_000, size=(count, 2))
            messages = [
                [
                    {"role": "user", "content": text[ask : ask + 150]},
                    {"role": "assistant", "content": text[reply : reply + length]},
                ]
                for (ask, reply), length in zip(places, lengths, strict=True)
            ]
            columns = {
                "id": [f"{number:032x}" for number in range(start, start + count)],
                "source": ["alpaca"] * count,
                "messages": messages,
                "fields": [json.dumps({"difficulty": float(value)}) for value in random.random(count)],
                "difficulty": random.normal(0.7, 0.2, count),
                "tokens": lengths // 4 + 40,
                "response_tokens": lengths // 4 + 1,
            }
            absent = {name: [None] * count for name in SCORED_SCHEMA.names if name not in columns}
            writer.write_table(pa.table({**columns, **absent}, schema=SCORED_SCHEMA))


def main(rows: int = 1_000_000, folder: str | None = None) -> None:
    """Make the data, split them, print seconds and peak memory."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        home = Path(scratch)
        for name, count, seed in (("scores", rows, 1), ("held_out_scores", rows // 50, 2)):
            maker = multiprocessing.get_context("spawn").Process(
                target=make, args=(home / f"{name}.parquet", count, seed)
            )
            maker.start()
            maker.join()
        before = peak_kib()
        started = time.perf_counter()
        split(home / "scores.parquet", home / "held_out_scores.parquet", SplittingSpec(tiers=3), 17, home / "out")
        seconds = time.perf_counter() - started
        peak = peak_kib()
        size = (home / "scores.parquet").stat().st_size
        print(
            f"rows {rows}, file {size / 1e6:.0f} MB: {seconds:.1f} s, peak RSS {peak / 1024:.0f} MiB "
            f"({before / 1024:.0f} MiB before the split)"
        )


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:2]), *sys.argv[2:3])
