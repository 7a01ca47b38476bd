"""The quickstart, first and second run: seconds, peak memory of all its processes, and the share of overhead."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

SPEC = Path(__file__).resolve().parents[2] / "pipelines" / "specs" / "quickstart.yaml"


def memory(process: psutil.Process) -> int:
    """Bytes that a process and its descendants hold, shared pages counted once (proportional set size)."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def timed_run(folder: Path) -> tuple[float, float]:
    """Run the quickstart in a folder; returns seconds and peak GiB."""
    command = [str(Path(sys.executable).with_name("phasetune")), "run", str(SPEC)]
    began, peak = time.perf_counter(), 0
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as running:
        process = psutil.Process(running.pid)
        while running.poll() is None:
            peak = max(peak, memory(process))
            time.sleep(0.5)
    if running.returncode:
        raise SystemExit(f"the quickstart ended with code {running.returncode}")
    return time.perf_counter() - began, peak / 2**30


def main() -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first, peak = timed_run(folder)
        timing = json.loads((folder / "runs/quickstart/summary.json").read_text())["timing"]
        second, peak_second = timed_run(folder)
    overhead = sum(step["overhead_seconds"] for step in timing)
    print(f"first run   {first:6.1f} s  peak {peak:.2f} GiB  overhead of the steps {overhead:.1f} s")
    print(f"second run  {second:6.1f} s  peak {peak_second:.2f} GiB  ({second / first:.2f} of the first)")
    for step in timing:
        print(f"  {step['step']:<32} {step['seconds']:6.1f} s, overhead {step['overhead_seconds']:5.1f} s")


if __name__ == "__main__":
    main()
