"""A server that a command starts ends with it, and so do the server's own processes."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

SERVER = """
import signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
def leave(*_):
    child.terminate(); child.wait(); sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print(child.pid, flush=True)
time.sleep(600)
"""
"""As MLflow does: it ends its processes when it is asked to end itself."""
COMMAND = "import sys; from pipelines.alone import serve; sys.exit(serve([sys.executable, '-c', sys.argv[1]]))"


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_nothing_is_left(how, code):
    command = subprocess.Popen([sys.executable, "-c", COMMAND, SERVER], stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    child = psutil.Process(int(command.stdout.readline()))
    server = child.parent()
    assert server.ppid() == command.pid
    os.kill(command.pid, how)
    assert command.wait(60) == code
    _, left = psutil.wait_procs([server, child], timeout=60)
    for one in left:
        one.kill()
    assert left == []
