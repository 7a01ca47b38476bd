"""Where a step's heavy work runs: a warm child of the run's session, or this process where there is none."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from components.common import errors
from components.common.errand import INSIDE
from components.common.ray_instance import FOLDER, cluster_environment, environment
from components.common.session import FOLDER_PREFIX
from components.common.session_call import call

WAIT_POLICY = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
"""Threads that spin while they wait take the cores from every other process: beside other torch processes, a small
phase took more than five times as long. Alone it is faster with them (docs/benchmarks.md): a machine that runs nothing
else may set OMP_WAIT_POLICY=ACTIVE."""
SESSION = "PHASETUNE_SESSION"
"""The variable that names the session's socket."""
SESSION_MODULE = "components.common.session"
STOPPING = 25.0
"""Seconds that heavy work may take to stop after a Ctrl-C, which is when a phase saves its state."""
_LONGEST = 16
OUTPUT: ContextVar[int | None] = ContextVar("OUTPUT", default=None)
"""The file descriptor that heavy work called from here prints to; this process's own output where None."""
DEVICE: ContextVar[str | None] = ContextVar("DEVICE", default=None)
"""The one GPU that heavy work called from here sees, by its name in CUDA_VISIBLE_DEVICES; None: all that this process
sees."""


class StepFailed(Exception):
    """The heavy work of a step failed in a way that is not the user's to mend; carries the traceback's text."""


def launch(target: str, **arguments: Any) -> tuple[Any, float]:
    """Call `package.module:function` with JSON arguments where heavy work belongs.

    Returns:
        The function's JSON result and the Unix time at which it began: what came before was overhead.

    Raises:
        UserError: As the function raised it.
        StepFailed: If it failed otherwise or its process was killed.
    """
    path = os.environ.get(SESSION)
    arguments = json.loads(json.dumps(arguments))
    answer = call(target, arguments) if path is None else _ask(path, target, arguments)
    if "user_error" in answer:
        kind, message, remedy = answer["user_error"]
        raise getattr(errors, kind, errors.UserError)(message, remedy)
    if "interrupted" in answer:
        raise KeyboardInterrupt if answer["interrupted"] == 130 else SystemExit(answer["interrupted"])
    if "error" in answer:
        raise StepFailed(answer["error"] + "\n" + answer.get("traceback", ""))
    return answer["result"], float(answer["started"])


def _ask(path: str, target: str, arguments: dict[str, Any]) -> dict[str, Any]:
    device = DEVICE.get()
    request = {
        "op": "call",
        "target": target,
        "arguments": arguments,
        "pid": os.getpid(),
        "directory": str(Path.cwd()),
        "environment": {**os.environ, **({} if device is None else {"CUDA_VISIBLE_DEVICES": device})},
    }
    output = OUTPUT.get()
    text = _exchange(path, request, [1, 2] if output is None else [output, output], stoppable=True)
    if not text:
        return {"error": f"the process of {target} was killed; was there enough memory?"}
    answer: dict[str, Any] = json.loads(text)
    return answer


def _exchange(path: str, request: dict[str, Any], descriptors: list[int], stoppable: bool = False) -> str:
    """The session's answer; empty where whoever should give it has ended.

    Args:
        path: The session's socket.
        request: What is asked.
        descriptors: Passed with it.
        stoppable: On a Ctrl-C, ask whoever is at work to stop, and wait for it: it may have something to save.
    """
    parts = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(path)
            message = json.dumps(request).encode()
            sent = socket.send_fds(connection, [message], descriptors)
            connection.sendall(message[sent:])
            connection.shutdown(socket.SHUT_WR)
            try:
                while part := connection.recv(1 << 16):
                    parts.append(part)
            except (KeyboardInterrupt, SystemExit):
                if stoppable:
                    connection.settimeout(STOPPING)
                    with _deaf(), suppress(OSError):  # the session may be gone
                        _exchange(path, {"op": "stop", "pid": os.getpid()}, [])
                        while connection.recv(1 << 16):
                            pass
                raise
        except (ConnectionError, FileNotFoundError):
            return ""
    return b"".join(parts).decode()


def stop_work() -> None:
    """Ask all heavy work that this process waits for to stop, as by a Ctrl-C: each piece saves its state first."""
    path = os.environ.get(SESSION)
    if path is not None:
        with suppress(OSError):
            _exchange(path, {"op": "stop", "pid": os.getpid()}, [])


@contextmanager
def _deaf() -> Iterator[None]:
    """Hear no further wish to stop: a Ctrl-C comes from the terminal, and once more from the run's driver."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def set_ray_environment() -> None:
    """Set what Ray reads when it is imported, where no session has: to be called before that."""
    if INSIDE in os.environ:
        os.environ.update(cluster_environment())
    elif SESSION not in os.environ:
        os.environ.update(environment())


def connect_ray() -> None:
    """Connect this process to the run's one Ray instance, which the session starts when first asked.

    In a Ray cluster that is the cluster.
    """
    from components.common import ray_instance

    if INSIDE in os.environ:
        set_ray_environment()
        ray_instance.join_cluster()
        return
    path = os.environ.get(SESSION)
    if path is None:
        os.environ.update(environment())
        ray_instance.connect(None)
        return
    variables = {name: value for name, value in os.environ.items() if name.startswith(("RAY_", "PHASETUNE_"))}
    answer = json.loads(_exchange(path, {"op": "ray", "environment": variables}, []) or '{"error": "no answer"}')
    if "error" in answer:
        raise errors.UserError(f"Ray did not start: {answer['error']}", "see the run's log; is there memory left?")
    ray_instance.connect(answer["address"])


def _short_place() -> str | None:
    """The folder for sockets, whose paths may have 107 bytes, of which Ray's own take 80; None: the usual one."""
    usual = tempfile.gettempdir()
    return None if len(usual) <= _LONGEST or not os.access("/tmp", os.W_OK) else "/tmp"  # noqa: S108  # as a fallback


@contextmanager
def session(logs: Path) -> Iterator[None]:
    """Open a session for the steps of one run; on the way out it and all that it started end.

    Args:
        logs: Where Ray's logs are kept if the run fails.

    Raises:
        UserError: If it does not start.
    """
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX, dir=_short_place(), ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "socket"
        ray_folder = Path(folder) / "ray"
        added = {SESSION: str(path), FOLDER: str(ray_folder), "OMP_WAIT_POLICY": WAIT_POLICY, **environment()}
        added["HF_HUB_DISABLE_TELEMETRY"] = os.environ.get("HF_HUB_DISABLE_TELEMETRY", "1")  # read when it is imported
        before = {name: os.environ.get(name) for name in added}
        os.environ.update(added)
        process = subprocess.Popen([sys.executable, "-m", SESSION_MODULE, str(path)], stdin=subprocess.PIPE)
        try:
            until = time.monotonic() + 30
            while not path.exists() and process.poll() is None and time.monotonic() < until:
                time.sleep(0.01)
            if not path.exists():
                raise errors.UserError("the process that does the heavy work did not start", "see what it wrote above")
            yield
        except BaseException:
            with suppress(OSError):  # Ray may not have come to write any, and the reason of the failure comes first
                shutil.copytree(ray_folder / "session_latest" / "logs", logs, dirs_exist_ok=True)
            raise
        finally:
            try:
                process.communicate(timeout=30)  # closes the pipe, which ends the session
            except subprocess.TimeoutExpired:
                process.kill()  # its children are bound to die with it
                process.wait()
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.update({name: value})
