"""A step of a run, seen by whoever has started it."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from components.common.step import process_started

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


def test_the_start_of_this_process_is_known_to_a_fraction_of_a_second():
    """Overhead is counted from it; the boot's time in whole seconds would be off by up to one."""
    code = "from components.common.step import process_started; print(process_started())"
    found = []
    for _ in range(3):
        before = time.time()
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        found.append((before, float(told), time.time()))
    tick = 2.0 / os.sysconf("SC_CLK_TCK")
    assert all(before - tick <= started <= after for before, started, after in found), found
    assert process_started() == pytest.approx(process_started(), abs=tick)
