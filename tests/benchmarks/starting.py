"""What a run costs before it works: the session's imports, and Ray on this machine, each beside how it was.

Each measurement is a process of its own, and the ways take turns. Told are the seconds that the processor worked, of
the process and all that it started, so other work beside it matters little, and the seconds until it was ready.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

import psutil

IMPORTS = """
import contextlib, importlib
from components.common.importing import importing
from components.common.session import PRELOAD
with {way}():
    for name in PRELOAD:
        importlib.import_module(name)
"""
RAY = """
import os
from components.common import ray_instance
os.environ.update(ray_instance.environment())
from ray._private import node
whole = {{name: getattr(node.Node, name) for name in ("start_api_server", "start_monitor", "start_log_monitor")}}
lean = ray_instance._ray
def as_it_is():
    ray = lean()
    for name, function in whole.items():
        setattr(node.Node, name, function)
    return ray
ray_instance._ray = {way}
ray_instance.start()
"""
CASES = {
    "the session's imports": (IMPORTS, "contextlib.nullcontext", "importing"),
    "Ray": (RAY, "as_it_is", "lean"),
}
TIMED = """
import time
began = time.time()
{code}
seconds = time.time() - began
time.sleep({rest})
print(seconds, flush=True)
input()
"""


def measured(code: str, rest: float) -> tuple[float, float]:
    """Run code in a new process; returns its processor's seconds, with all that it started, and its own."""
    program = TIMED.format(code=code, rest=rest)
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout is not None
    ready = float(child.stdout.readline())
    family = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
    busy = sum(times.user + times.system for times in (process.cpu_times() for process in family))
    child.communicate("\n")
    return busy, ready


def main() -> None:
    """Measure every case in both ways, and print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rest", type=float, default=6.0, help="seconds in which what was started comes to rest")
    asked = parser.parse_args()
    for name, (code, *ways) in CASES.items():
        rest = asked.rest if code is RAY else 0.0
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(asked.runs):
            for way in ways:
                found[way].append(measured(code.format(way=way), rest))
        before, after = ([statistics.median(column) for column in zip(*found[way], strict=True)] for way in ways)
        print(
            f"{name}: {before[0]:.2f} -> {after[0]:.2f} s of the processor ({after[0] / before[0]:.2f}), "
            f"ready after {before[1]:.2f} -> {after[1]:.2f} s ({after[1] / before[1]:.2f})"
        )


if __name__ == "__main__":
    main()
