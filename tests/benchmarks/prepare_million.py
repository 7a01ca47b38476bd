"""Measures preparing on a million rows like Alpaca's: rows, seconds, and peak memory with all child processes.

Run it as `python tests/benchmarks/prepare_million.py [ROWS] [SUFFIX]`; SUFFIX is `.jsonl` or `.json`.
"""

import json
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from components.common.spec import DataSpec
from components.preparing.prepare import prepare

MIB = 1 << 20


def write_rows(path: Path, count: int) -> None:
    """Rows with about Alpaca's 440 bytes: an instruction, in 4 of 10 an input, an output; 1 of 100 is a repeat."""
    rng = random.Random(17)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 10))) for _ in range(20000)]
    array = path.suffix == ".json"
    with path.open("w", encoding="utf-8") as file:
        file.write("[\n" if array else "")
        line = ""
        for index in range(count):
            if not line or index % 100:
                given = " ".join(rng.choices(words, k=12)) if rng.random() < 0.4 else ""
                row = {
                    "instruction": " ".join(rng.choices(words, k=9)) + f" {index}",
                    "input": given,
                    "output": " ".join(rng.choices(words, k=rng.randint(5, 75)))
                    + (" caf\u00e9." if index % 5 else "."),
                }
                line = json.dumps(row, ensure_ascii=False)
            file.write(line + (",\n" if array and index < count - 1 else "\n"))
        file.write("]\n" if array else "")


class PeakMemory(threading.Thread):
    """Samples the memory of this process and its children, bytes; shared pages count in each."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.done = threading.Event()

    def run(self) -> None:
        own = psutil.Process()
        while not self.done.wait(0.1):
            total = own.memory_info().rss
            for child in own.children(recursive=True):
                try:
                    total += child.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            self.peak = max(self.peak, total)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    suffix = sys.argv[2] if len(sys.argv) > 2 else ".jsonl"
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / f"rows{suffix}", Path(folder) / "out"
        out.mkdir()
        write_rows(source, count)
        memory = PeakMemory()
        memory.start()
        start = time.perf_counter()
        ledger = prepare(DataSpec.model_validate({"train": [{"path": str(source)}]}), 17, out)
        seconds = time.perf_counter() - start
        memory.done.set()
        memory.join()
        size = source.stat().st_size / MIB
    print(f"rows {ledger.rows_in}  MiB {size:.0f}  seconds {seconds:.1f}  peak MiB {memory.peak / MIB:.0f}  {ledger}")


if __name__ == "__main__":
    main()
