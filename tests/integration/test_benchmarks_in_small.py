"""The benchmarks in small: they run, memory does not follow the rows, and a limit that is missed is an error."""

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


@pytest.mark.soak
def test_preparing_needs_less_memory_than_its_limit_allows_for_so_many_rows():
    # 1 million rows must stay under 1.5 GB: what grows with the rows, from 100,000 to 300,000, must leave room for that
    small = peak("prepare_million.py", 100_000, r"peak MiB (\d+)")
    large = peak("prepare_million.py", 300_000, r"peak MiB (\d+)")
    assert large + (large - small) / 200_000 * 700_000 < 1536


@pytest.mark.soak
def test_splitting_does_too():
    small = peak("split_million.py", 100_000, r"peak RSS (\d+) MiB")
    large = peak("split_million.py", 300_000, r"peak RSS (\d+) MiB")
    assert large + (large - small) / 200_000 * 700_000 < 1536


@pytest.mark.parametrize(
    ("script", "told", "too_long"),
    [
        ("compile.py", ["12 phases, 3 controls"], "compiling took more than 0 s"),
        pytest.param(
            "reused_step.py",
            ["prepare", "score", "split", "train", "evaluate"],
            "a reused step took more than 0 s",
            marks=pytest.mark.soak,
        ),
    ],
)
def test_a_limit_that_is_missed_is_an_error(script, told, too_long):
    # Nothing takes no time at all; the real limits are for a machine that does nothing else.
    command = [sys.executable, str(BENCHMARKS / script), "--runs", "1", "--limit"]
    ended = subprocess.run([*command, "0"], capture_output=True, text=True, timeout=500)
    assert ended.returncode == 1, ended.stderr
    assert too_long in ended.stderr
    assert [line.split(":")[0].removesuffix("reused").strip() for line in ended.stdout.splitlines()][
        : len(told)
    ] == told
