"""Judging in a process of its own: what a model wrote meets libraries that may never end, or want all the memory.

`9^{9^9}` asks math-verify for a number that fills the memory; a pattern of a schema or a keyword of IFEval can keep a
regular expression busy for a year. Python cannot interrupt either, and signals (what math-verify uses) work in the main
thread only. So each such verifier has one child process with limits that the kernel enforces: CPU seconds for a
judgement, and memory. A child that meets one is gone, the response is wrong, and the next one gets a new child.
CPU seconds, not seconds of the clock: a verdict must not depend on what else the machine does.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import select
import subprocess
import sys
import threading
from pathlib import Path

from components.common.errors import UserError

_log = logging.getLogger(__name__)
SECONDS = 2
"""CPU seconds for one judgement; the kernel counts in whole ones, so it may be one more."""
MEMORY = 1 << 30
"""Bytes that judging may take beyond what the loaded verifier holds."""
_BACKSTOP = 120.0
"""Seconds of the clock after which a child that uses no CPU is given up."""
_ROOT = Path(__file__).resolve().parents[2]
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "NLTK_DATA", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH")
"""Variables that a child gets: none of them is a secret."""


class Judge:
    """One verifier's child process, started when first asked; safe to use from several threads.

    Args:
        name: The verifier; one of `judging_process.JUDGES`.
        seconds: CPU seconds for one judgement.
        memory: Bytes for judging.
    """

    def __init__(self, name: str, seconds: int = SECONDS, memory: int = MEMORY) -> None:
        self.name = name
        self._limits = [str(seconds), str(memory)]
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the child and load what it judges with, if it is not there.

        Raises:
            UserError: If that is not installed, or does not load.
        """
        with self._lock:
            self._started()

    def ask(self, response: str, answer: str) -> bool:
        """The child's verdict; False where it met a limit.

        Raises:
            UserError: As the child raised it: of the answer or of what is installed, never of the response.
        """
        with self._lock:
            process = self._started()
            try:
                return bool(self._exchange(process, [response, answer]))
            except _Gone:
                _log.info("a response that %s could not judge within its limits counts as wrong", self.name)
                self._end()
                return False

    def close(self) -> None:
        """End the child, if there is one."""
        with self._lock:
            self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        self._process = self._spawn()
        try:
            self._exchange(self._process, None)
        except _Gone:
            code = self._end()
            raise UserError(
                f"the process of the verifier {self.name} ended while it loaded (exit code {code})",
                f"see what `{Path(sys.executable).name} -m components.common.judging_process {self.name} 2 0` writes; "
                "is there memory left?",
            ) from None
        except BaseException:
            self._end()
            raise
        return self._process

    def _spawn(self) -> subprocess.Popen[bytes]:
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        path = os.pathsep.join([str(_ROOT), *filter(None, [kept.get("PYTHONPATH")])])
        # One seed for hashes: the order of sets reaches SymPy's verdicts. No hub: nothing here asks it.
        fixed = {"PYTHONPATH": path, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        # -P: the directory that the run was started in is no place to import from.
        command = [sys.executable, "-P", "-m", "components.common.judging_process", self.name, *self._limits]
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**kept, **fixed},
            bufsize=0,
        )

    def _exchange(self, process: subprocess.Popen[bytes], request: list[str] | None) -> object:
        given, shown = process.stdin, process.stdout
        if given is None or shown is None:
            raise ValueError("the child was started without pipes")
        reply = b""
        try:
            # A raw pipe takes as much as it likes at a time.
            rest = memoryview(json.dumps(request).encode() + b"\n")
            while rest:
                rest = rest[given.write(rest) or 0 :]
            readable = select.poll()  # select() knows no descriptor beyond 1023
            readable.register(shown, select.POLLIN)
            while not reply.endswith(b"\n"):
                part = shown.read(1 << 16) if readable.poll(_BACKSTOP * 1000) else b""
                if not part:
                    raise _Gone
                reply += part
        except OSError as error:
            raise _Gone from error
        answered = json.loads(reply)
        if "user_error" in answered:
            raise UserError(*answered["user_error"])
        return answered["result"]

    def _end(self) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        return process.wait()


class _Gone(Exception):
    """The child has ended, or was given up."""


_judges: dict[str, Judge] = {}
_lock = threading.Lock()


def judge(name: str) -> Judge:
    """The one child of a verifier in this process."""
    with _lock:
        return _judges.setdefault(name, Judge(name))


def close_all() -> None:
    """End every child of this process."""
    for one in list(_judges.values()):
        one.close()


def _forget() -> None:
    # A forked process shares the pipes of its parent's children: two would read each other's verdicts.
    global _lock
    _lock = threading.Lock()
    _judges.clear()


atexit.register(close_all)
os.register_at_fork(after_in_child=_forget)
