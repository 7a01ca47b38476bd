"""A step of a run, seen by whoever has started it."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import os, signal, sys, time
if "-c" == sys.argv[0] and len(sys.argv) == 1:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for what it starts in the background
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], "again"])
from components.common.step import errors_said

@errors_said
def step():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
    return ""

try:
    step()
except KeyboardInterrupt:
    raise SystemExit(7)
"""


def test_a_step_of_a_run_in_the_background_can_be_stopped():
    assert subprocess.run([sys.executable, "-c", CODE], timeout=60, check=False).returncode == 7
