"""The session: one process beside a run that keeps what is slow to start, so that every step need not start it.

Importing torch and TRL takes seconds and a Ray instance more; a small phase takes less. The session imports once, also
the modules of ours that are called, forks a child for each heavy call, and starts the run's one Ray instance when the
first step asks for it. Where an import has started CUDA (bitsandbytes does), forks cannot use a GPU: there each heavy
call is a new program, and slower to start.

It is a single-threaded server on a Unix socket in a private folder, holds the read end of a pipe whose write end the
run's driver holds, and ends with everything it started when that pipe closes, however the driver ended.

Run as `python -m components.common.session SOCKET`, with the pipe as standard input.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import warnings
from pathlib import Path
from typing import Any

from components.common.importing import importing
from components.common.session_call import become_a_new_program, die_with_parent, module_of, serve_call

PRELOAD = (
    "torch",
    "transformers.trainer",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.tokenization_auto",
    "datasets",
    "trl.trainer.sft_trainer",
    "ray.train.torch",
    "ray.tune",
)
FOLDER_PREFIX = "phasetune-"
"""What the name of a session's own folder begins with."""
_PR_SET_CHILD_SUBREAPER = 36
_ASKING = 10.0
"""Seconds within which a request must have arrived whole."""


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends (Linux), so that none is out of reach."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _cuda_has_started() -> bool:
    """Whether this process has a CUDA context, which none of its forks can use."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_initialized()


class Session:
    """The server.

    Args:
        path: The Unix socket to listen on; its folder must be private to the user.
    """

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Under its name only once it answers: whoever sees the socket may ask.
        early = path.with_suffix(".new")
        self._listener.bind(str(early))
        self._listener.listen(16)
        early.rename(path)
        self._ray: tuple[int, str] | None = None
        self._preloaded = False
        self._at_work: dict[int, int] = {}
        """The children that do heavy work, and for whom."""

    def serve(self) -> None:
        """Answer until the driver's pipe closes; then end every child."""
        try:
            while True:
                ready, _, _ = select.select([self._listener, sys.stdin], [], [], 1.0)
                self._reap()
                if sys.stdin in ready:
                    break
                if self._listener in ready:
                    connection, _ = self._listener.accept()
                    # A step that ends while it asks (Ctrl-C) breaks its own connection, never the session.
                    with connection, contextlib.suppress(OSError, ValueError, KeyError):
                        self._answer(connection)
        finally:
            self._end_children()

    def _answer(self, connection: socket.socket) -> None:
        connection.settimeout(_ASKING)
        message, descriptors, _, _ = socket.recv_fds(connection, 1 << 16, 2)
        try:
            parts = [message]
            while part := connection.recv(1 << 16):
                parts.append(part)
            request = json.loads(b"".join(parts))
            connection.settimeout(None)
            if request["op"] == "stop":
                self._stop(request["pid"])
            elif request["op"] == "ray":
                connection.sendall(json.dumps(self._ray_address(request["environment"], connection)).encode())
            else:
                self._preload(request["target"])
                self._fork_call(connection, request, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _preload(self, target: str) -> None:
        """Import once what every child would import, the module of what is called among it."""
        with importing():
            if not self._preloaded:
                for name in PRELOAD:
                    importlib.import_module(name)
                from transformers.conversion_mapping import get_checkpoint_conversion_mapping

                get_checkpoint_conversion_mapping("llama")  # makes the table of all architectures: a third of a second
                self._preloaded = True
            with contextlib.suppress(Exception):  # the child meets it again, and has somebody to tell
                importlib.import_module(module_of(target))

    def _fork_call(self, connection: socket.socket, request: dict[str, Any], descriptors: list[int]) -> None:
        afresh = _cuda_has_started()  # asked here: of a fork torch says that it has not
        child = os.fork()
        if child:
            self._at_work[child] = request["pid"]
            return
        try:
            die_with_parent()
            for heard in (signal.SIGINT, signal.SIGTERM):
                signal.signal(heard, signal.SIG_DFL)
            self._listener.close()
            for number, descriptor in zip((1, 2), descriptors, strict=False):
                os.dup2(descriptor, number)
                os.close(descriptor)
            if afresh:
                become_a_new_program(connection, request)
            serve_call(connection, request)
        finally:
            os._exit(0)  # whatever happens: a child that returned would be a second session

    def _ray_address(self, environment: dict[str, str], asking: socket.socket) -> dict[str, Any]:
        if self._ray is None or not _alive(self._ray[0]):
            reader, writer = os.pipe()
            child = os.fork()
            if not child:
                # What the child keeps open, its peer never sees closed: the asking step would wait for ever.
                asking.close()
                self._listener.close()
                os.close(reader)
                os.environ.update(environment)
                _host_ray(writer)
            os.close(writer)
            with os.fdopen(reader) as answer:
                text = answer.read()
            if not text.startswith("{"):
                return {"error": text or "the process ended"}
            self._ray = (child, json.loads(text)["address"])
        return {"address": self._ray[1]}

    def _stop(self, asker: int) -> None:
        """Ask what works for a step to stop."""
        self._reap()
        for child, pid in self._at_work.items():
            if pid == asker:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGINT)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while ended := os.waitpid(-1, os.WNOHANG)[0]:
                self._at_work.pop(ended, None)

    def _end_children(self) -> None:
        """End every descendant at once: nothing unfinished is taken for a result, so there is no need to be gentle."""
        import psutil

        descendants = psutil.Process().children(recursive=True)
        for process in descendants:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(descendants, timeout=5)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _host_ray(writer: int) -> None:
    """Hold the run's Ray instance until killed; Ray's own processes are bound to die with the one that began them."""
    die_with_parent()
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    with os.fdopen(writer, "w") as answer:
        try:
            from components.common.ray_instance import start

            answer.write(json.dumps({"address": start()}))
        except BaseException as error:
            answer.write(f"{type(error).__name__}: {error}")
            answer.flush()
            os._exit(1)
    while True:
        signal.pause()


def main() -> None:
    """Serve a run; see the top."""
    # A Ctrl-C reaches the whole terminal group; the session ends by its pipe, after its children have been told.
    # So does a SIGTERM to a whole group or control group.
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    # Python 3.12 warns on the user's screen. The other threads are idle pools of libraries, which hold no lock.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded, use of fork", DeprecationWarning)
    adopt_orphans()
    place = Path(sys.argv[1])
    Session(place).serve()
    if place.parent.name.startswith(FOLDER_PREFIX):  # also of a driver that was killed, which cannot do it itself
        shutil.rmtree(place.parent, ignore_errors=True)


if __name__ == "__main__":
    main()
