"""The benchmarks in small: they run, and memory does not follow the number of rows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"

pytestmark = pytest.mark.proof


def peak(script: str, rows: int, pattern: str) -> int:
    """MiB that a benchmark says it needed at most."""
    command = [sys.executable, str(BENCHMARKS / script), str(rows)]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=500).stdout
    found = re.search(pattern, said)
    assert found is not None, said
    return int(found[1])


def test_preparing_needs_less_memory_than_its_limit_allows_for_so_many_rows():
    # 1 million rows must stay under 1.5 GB: what grows with the rows, from 100,000 to 300,000, must leave room for that
    small = peak("prepare_million.py", 100_000, r"peak MiB (\d+)")
    large = peak("prepare_million.py", 300_000, r"peak MiB (\d+)")
    assert large + (large - small) / 200_000 * 700_000 < 1536


def test_splitting_does_too():
    small = peak("split_million.py", 100_000, r"peak RSS (\d+) MiB")
    large = peak("split_million.py", 300_000, r"peak RSS (\d+) MiB")
    assert large + (large - small) / 200_000 * 700_000 < 1536
