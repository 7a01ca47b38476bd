"""Run the tests in two processes at once: much of what they do is waiting, for servers and for processes that start.

Run as `python tests/streams.py MARKER FOLDER...`: the tests of the folders go to one process, all others to another,
but for the house's rules, which `make check` has looked at. What the first prints is shown when both have ended.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_NONE = 5
"""Pytest's exit code where there is no test."""


def main() -> int:
    """Run both; returns 0 where every test has passed."""
    marker, *folders = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
    command = [sys.executable, "-m", "pytest", "-q", "--durations=12", "--durations-min=10", "-m", marker]
    others = [f"--ignore={folder}" for folder in ("tests/house", *folders)]
    with tempfile.TemporaryFile() as kept:
        beside = subprocess.Popen([*command, *folders], cwd=ROOT, stdout=kept, stderr=subprocess.STDOUT)
        try:
            code = subprocess.run([*command, *others], cwd=ROOT, check=False).returncode
            codes = {code, beside.wait()}
        except KeyboardInterrupt:  # which the terminal has sent to both
            codes = {130, beside.wait()}
        kept.seek(0)
        print(f"\n=== {' '.join(folders)}", flush=True)
        sys.stdout.buffer.write(kept.read())
        sys.stdout.flush()
    return max(codes - {_NONE}, default=_NONE)


if __name__ == "__main__":
    sys.exit(main())
