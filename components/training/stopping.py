"""Stopping a phase in good order: Ctrl-C and SIGTERM ask for a checkpoint, and training ends after it.

The process that called `fit` notes the wish in a file of the phase's scratch folder, which the workers look for after
every step: signals do not reach workers of Ray, files do. In the other direction a worker notes that it is done, or
what the user must mend: Ray would start a worker that fails again, to fail again.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TypeVar

from components.common import errors
from components.common.errors import UserError

T = TypeVar("T")
PATIENCE = 20.0
"""Seconds that a stop may take: what preempts a machine gives 30."""
ASKED, DONE, FAILED = "stop-asked", "stop-done", "failed.json"
"""The notes, files of the scratch folder; for workers on other machines `nodes` carries them."""


class Stopped(Exception):
    """Training ended because it was asked to; its state is saved."""


def asked(scratch: Path) -> bool:
    """Whether the phase whose scratch folder this is shall stop."""
    return (scratch / ASKED).exists()


def told_as(failure: UserError) -> str:
    """What the note of a failure says."""
    return json.dumps([type(failure).__name__, failure.message, failure.remedy])


def rest(scratch: Path, failure: UserError | None = None) -> None:
    """A worker of Ray says that it is done, or why it cannot go on, and waits for its end.

    On another machine than the driver's its copy of the folder is gone by now, and `nodes` has said so.
    """
    if scratch.is_dir():
        if failure is not None:
            partial = scratch / f"{FAILED}.{os.getpid()}"
            partial.write_text(told_as(failure), encoding="utf-8")
            partial.replace(scratch / FAILED)
        (scratch / DONE).touch()
    time.sleep(PATIENCE)


@contextmanager
def on_signals(scratch: Path) -> Iterator[None]:
    """While inside, SIGINT and SIGTERM ask the workers to stop rather than ending this process.

    On the way out a wish that was heard becomes what it would have been: KeyboardInterrupt, or SystemExit(143).
    """
    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield
        return

    heard: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        (scratch / ASKED).touch()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except (Exception, KeyboardInterrupt):
        if heard and heard[0] == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM) from None
        if heard:
            raise KeyboardInterrupt from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def watched(work: Callable[[], T], scratch: Path) -> T:
    """Do work of Ray's workers in a thread, and leave it when a worker says so or a stop takes too long.

    In the main thread Ray would take over the handling of signals.

    Raises:
        UserError: What a worker said.
        KeyboardInterrupt: If the phase was asked to stop.
    """
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="ray-train", daemon=True)
    thread.start()
    wished: float | None = None
    while thread.is_alive():
        thread.join(0.05)
        if (scratch / FAILED).exists():
            kind, message, remedy = json.loads((scratch / FAILED).read_text(encoding="utf-8"))
            raise getattr(errors, kind, UserError)(message, remedy)
        if asked(scratch):
            wished = wished or time.monotonic()
            if (scratch / DONE).exists() or time.monotonic() - wished > PATIENCE:
                raise KeyboardInterrupt
    if failures:
        raise failures[0]
    return results[0]
