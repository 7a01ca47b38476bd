"""The child of `judging`: loads one verifier's judgement, then answers lines of JSON until its pipe closes.

Run as `python -m components.common.judging_process NAME SECONDS MEMORY`: CPU seconds for one judgement and bytes beyond
what the loaded verifier holds (0: no limit).
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import resource
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from components.common.errors import UserError

JUDGES = {
    "boxed_math": "components.common.verifiers_math",
    "json_schema": "components.common.verifiers_schema",
    "ifeval": "components.common.verifiers_ifeval",
}
"""The module of a verifier; its `load` gives the function that judges a response by an answer."""
_LOOK = 5.0
"""Seconds between looks at whether the parent is still there: its end of the pipe may live on in another process."""


def limit(what: int, value: int) -> None:
    """Set a soft limit of this process, at most its hard one."""
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def held() -> int:
    """Bytes of address space that this process has now; 0 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def judged(function: Callable[[str, str], bool], request: list[str], seconds: int) -> dict[str, Any]:
    """One verdict, or the user's error, as JSON values. Whatever else goes wrong in it: False."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime) + seconds)
    try:
        return {"result": bool(function(*request))}
    except UserError as error:
        return {"user_error": [error.message, error.remedy]}
    except Exception:  # a library's, at a text that nobody foresaw; MemoryError and RecursionError are among them
        return {"result": False}


def serve(name: str, seconds: int, memory: int) -> None:
    """Answer until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's, which then closes the pipe
    logging.disable()  # libraries log the texts that they cannot read
    limit(resource.RLIMIT_CORE, 0)
    parent = os.getppid()
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints is no answer
    function: Callable[[str, str], bool] | None = None
    with open(0, "rb", buffering=0, closefd=False) as pipe:
        waiting = b""
        while os.getppid() == parent:
            if not select.select([pipe], [], [], _LOOK)[0]:
                continue
            part = pipe.read(1 << 16)
            if not part:
                return
            waiting += part
            if not waiting.endswith(b"\n"):
                continue
            request, waiting = json.loads(waiting), b""
            if function is None:
                try:
                    function = importlib.import_module(JUDGES[name]).load()
                    reply: dict[str, Any] = {"result": True}
                except UserError as error:
                    reply = {"user_error": [error.message, error.remedy]}
                if memory:
                    limit(resource.RLIMIT_AS, held() + memory)
            else:
                reply = judged(function, request, seconds)
            os.write(out, json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
