"""The driver of an errand: what it says, how it ends, and work that needs a GPU of another node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from components.common.errand import ERRAND, Errand, failure_in
from components.common.errors import DataError
from components.common.progress import heard

IN_TASK = """
import os, signal, sys, time
from pathlib import Path
from components.common import ray_driver
from components.common.errand import INSIDE
import ray

ray.init(num_cpus=1, num_gpus=1, _node_ip_address="127.0.0.1", include_dashboard=False, log_to_driver=False)
os.environ[INSIDE] = "1"

def work(folder, fails):
    import time
    from pathlib import Path
    from components.common.errors import DataError
    from components.training.stopping import Stopped, asked, on_signals
    if fails:
        raise DataError("the rows are no rows", "mend them")
    with on_signals(Path(folder)):
        Path(folder, "gpus").write_text(str(ray.get_gpu_ids()))
        while not asked(Path(folder)):
            time.sleep(0.05)
        Path(folder, "saved").touch()
        raise Stopped

signal.signal(signal.SIGTERM, ray_driver._leave)
try:
    ray_driver.in_task(work, sys.argv[1], sys.argv[2] == "fails")
except BaseException as error:
    code = 143 if isinstance(error, SystemExit) else ray_driver._failed(error)
ray_driver._end_quietly(code)
"""


def driver(errand: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "components.common.ray_driver"]
    environment = {**os.environ, ERRAND: errand}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


def test_what_is_no_errand_is_refused():
    ended = driver("nonsense")
    assert ended.returncode == 1
    assert ended.stdout.splitlines()[-1].startswith("failed: ValueError: this is no errand")


def test_only_our_own_functions_are_called(tmp_path):
    errand = Errand(
        "prepare", "r", "prepared", "k" * 32, "os:system", {"context": "{}", "command": f"touch {tmp_path}/x"}
    )
    ended = driver(errand.encoded())
    assert ended.returncode == 1
    assert ended.stdout.splitlines()[-1] == "failed: ValueError: os:system is not ours to call"
    assert not (tmp_path / "x").exists()


@pytest.fixture
def in_task(tmp_path: Path):
    """Starts a driver whose work is a task on a node with a GPU; Ray takes its word for the GPU."""
    environment = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t" * 32}
    started = []

    def start(how: str) -> subprocess.Popen[str]:
        code = textwrap.dedent(IN_TASK)
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), how],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **environment},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.proof
@pytest.mark.timeout(200)
def test_a_wish_to_stop_reaches_the_task(in_task, tmp_path):
    process = in_task("works")
    until = time.monotonic() + 120
    while not (tmp_path / "gpus").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    assert (tmp_path / "gpus").read_text() == "[0]"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143, out
    assert (tmp_path / "saved").exists()


@pytest.mark.proof
@pytest.mark.timeout(200)
def test_what_the_task_says_is_the_last_line(in_task):
    process = in_task("fails")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    told = failure_in(out.splitlines()[-1])
    assert (type(told), told.message, told.remedy) == (DataError, "the rows are no rows", "mend them")


STEPS = {"label": "train main 1 (a)", "done": 3, "total": 7, "unit": "steps"}


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ("progress: train main 1 (a): 3 of 7 steps", STEPS),
        ("\x1b[36m(RayTrainWorker pid=3, ip=10.0.0.1)\x1b[0m warning: x: y", {"warning": "x: y"}),
        ("the warning: x", None),
        ("progress: half of it", None),
    ],
)
def test_a_printed_line_is_heard(line, event):
    assert heard(line + "\n") == event
