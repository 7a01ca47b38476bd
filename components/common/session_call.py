"""One call of a session: in a process of its own, with the caller's folder, environment and output.

It is a fork of the session, or a new program: `python -m components.common.session_call CONNECTION REQUEST`, two open
file descriptors.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from components.common.errors import mendable

_OURS = ("components", "pipelines")
_PR_SET_PDEATHSIG = 1


def module_of(target: str) -> str:
    """The module that a target is in."""
    module = target.partition(":")[0]
    if module.split(".")[0] not in _OURS:
        raise ValueError(f"{target} is not ours to call")
    return module


def resolve(target: str) -> Callable[..., Any]:
    """The function that `package.module:name` names, among our own packages only."""
    function: Callable[..., Any] = getattr(importlib.import_module(module_of(target)), target.partition(":")[2])
    # Our modules import functions of others (`shutil.rmtree`), which are not ours by that.
    if str(getattr(function, "__module__", "")).split(".")[0] not in _OURS:
        raise ValueError(f"{target} is not ours to call")
    return function


def die_with_parent(how: int = signal.SIGKILL) -> None:
    """Ask the kernel to end this process when its parent ends (Linux), so that nothing is left behind.

    Args:
        how: The signal that it gets; SIGTERM for one that has processes of its own to end first.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, how)


def call(target: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Call a function and describe how it ended, as JSON values."""
    try:
        function = resolve(target)
        started = time.time()  # importing is overhead, not work
        # Through JSON also where nothing is sent, so that a caller gets the same in every place.
        return {"result": json.loads(json.dumps(function(**arguments))), "started": started}
    except KeyboardInterrupt:
        return {"interrupted": 130}
    except SystemExit as stop:
        if stop.code != 143:
            return {"error": f"the work ended itself with code {stop.code}", "traceback": traceback.format_exc()}
        return {"interrupted": 143}
    except BaseException as error:
        known = mendable(error)
        if known is not None:
            return {"user_error": [type(known).__name__, known.message, known.remedy]}
        return {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}


def become_a_new_program(connection: socket.socket, request: dict[str, Any]) -> None:
    """Go on as a process that has imported nothing, with the same parent, output and caller."""
    file = tempfile.TemporaryFile("w+")  # noqa: SIM115  # stays open in the program that this one becomes
    json.dump(request, file)
    file.flush()
    file.seek(0)
    for kept in (file.fileno(), connection.fileno()):
        os.set_inheritable(kept, True)
    program = [sys.executable, "-m", "components.common.session_call", str(connection.fileno()), str(file.fileno())]
    os.execv(sys.executable, program)  # noqa: S606  # this interpreter, and numbers


def serve_call(connection: socket.socket, request: dict[str, Any]) -> None:
    """Do the one call that this process is for."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a new program of Python's has a handler of its own
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    connection.sendall(json.dumps(_call_there(request)).encode())
    connection.close()


def _call_there(request: dict[str, Any]) -> dict[str, Any]:
    """Call what is asked for, in the caller's folder and environment."""
    try:
        os.chdir(request["directory"])
    except OSError as error:
        return {"error": f"the working directory is gone: {error}"}
    os.environ.clear()
    os.environ.update(request["environment"])
    answer = call(request["target"], request["arguments"])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # whoever listened may be gone
            stream.flush()
    return answer


def _end_with(connection: socket.socket) -> None:
    """End this process when the step that asked has ended: nobody would take its result."""
    watch = select.poll()
    watch.register(connection, 0)  # a hang-up is told in any case
    with contextlib.suppress(OSError):  # the answer is sent and the connection closed
        watch.poll()
        os._exit(1)


if __name__ == "__main__":
    try:
        with os.fdopen(int(sys.argv[2])) as its_request:
            asked = json.load(its_request)
        serve_call(socket.socket(fileno=int(sys.argv[1])), asked)
    finally:
        os._exit(0)
