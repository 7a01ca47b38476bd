"""The slots of a sweep: so many pieces of work at a time, each in a process of its own."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from components.common.errors import DataError, LeaseLost, UserError
from components.common.launcher import DEVICE, OUTPUT, STOPPING, StepFailed, launch, stop_work
from components.common.spec import ComputeSpec
from pipelines.sweep_chains import Task


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a piece of work ended.

    Attributes:
        task: The work.
        seconds: Wall time that it held its slot.
        error: Why it failed; None where its result is in the store.
    """

    task: Task
    seconds: float
    error: BaseException | None = None

    @property
    def lost(self) -> bool:
        """Whether another attempt may succeed: the process was killed, or another one took the work over."""
        return isinstance(self.error, StepFailed | LeaseLost)

    @property
    def trials_own(self) -> bool:
        """Whether the failure is the trial's (it diverged, its data is empty), so that the sweep goes on."""
        return isinstance(self.error, DataError)


@dataclass(frozen=True, slots=True)
class Where:
    """Where work is done.

    Attributes:
        do: Does a piece of work with all its arguments, and returns when it has ended.
        stop: Asks all work under way to end, as by a Ctrl-C: each piece saves its state first.
        cores: That so many slots have together; None: this machine's.
    """

    do: Callable[[Task, dict[str, Any]], None]
    stop: Callable[[], None]
    cores: Callable[[int], int | None] = lambda slots: None


def _in_session(task: Task, arguments: dict[str, Any]) -> None:
    launch(task.target, **arguments)


SESSION = Where(_in_session, stop_work)
"""In warm processes of the run's session, on this machine."""


def devices_of(compute: ComputeSpec, count: int, gpus: int) -> list[str]:
    """The GPU of each slot on this machine, by its name in CUDA_VISIBLE_DEVICES; none where Ray deals them out.

    A phase of one process takes the first GPU that it sees: where all slots saw all of them, they would share one.

    Args:
        compute: Of the base spec.
        count: Slots.
        gpus: GPUs that this process may use.
    """
    if not gpus or not compute.gpus_per_worker or compute.most_workers > 1:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(number) for number in range(gpus)] if visible is None else visible.split(",")[:gpus]
    return [names[slot % gpus].strip() for slot in range(count)]


class Slots:
    """Does work in threads that wait for it; a context manager.

    Args:
        count: Pieces of work at a time.
        log: What the work prints is appended to this file, where it is done on this machine.
        where: Work is done.
        devices: The GPU of each slot, see `devices_of`; empty where slots have none of their own.
    """

    def __init__(self, count: int, log: Path, where: Where = SESSION, devices: Sequence[str] = ()) -> None:
        self.count = count
        self._devices: list[str] = list(devices)
        """Of the slots that are free."""
        self._held: dict[str, str] = {}
        self._where = where
        self._log = log
        self._file: IO[bytes] | None = None
        self._ended: queue.Queue[Outcome] = queue.Queue()
        self._threads: dict[str, threading.Thread] = {}

    def __enter__(self) -> Self:
        self._file = self._log.open("ab", buffering=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._threads:
            self._where.stop()
            until = time.monotonic() + STOPPING
            for thread in self._threads.values():
                thread.join(max(0.0, until - time.monotonic()))
        if self._file is not None:
            self._file.close()

    @property
    def free(self) -> int:
        """Slots that nothing holds."""
        return self.count - len(self._threads)

    def start(self, task: Task, arguments: dict[str, Any]) -> None:
        """Begin a piece of work in a free slot."""
        device = self._devices.pop(0) if self._devices else None
        if device is not None:
            self._held[task.work.key] = device
        thread = threading.Thread(target=self._work, args=(task, arguments, device), daemon=True)
        self._threads[task.work.key] = thread
        thread.start()

    def wait(self, seconds: float) -> list[Outcome]:
        """What has ended; waits for so long until something has."""
        ended: list[Outcome] = []
        try:
            ended.append(self._ended.get(timeout=seconds))
            while True:
                ended.append(self._ended.get_nowait())
        except queue.Empty:
            pass
        for outcome in ended:
            key = outcome.task.work.key
            self._threads.pop(key).join()
            if key in self._held:
                self._devices.append(self._held.pop(key))
        return ended

    def _work(self, task: Task, arguments: dict[str, Any], device: str | None) -> None:
        if self._file is None:
            raise AssertionError("slots are used inside `with`")
        began = time.monotonic()
        error: BaseException | None = None
        OUTPUT.set(self._file.fileno())
        DEVICE.set(device)
        try:
            self._where.do(task, arguments)
        except BaseException as failure:  # told to whoever waits; a thread has nobody else to tell
            error = failure
        self._ended.put(Outcome(task, time.monotonic() - began, error))


def fatal(outcome: Outcome) -> UserError | None:
    """What ends the whole sweep: what the user must mend and no other trial can get round (a full disk)."""
    error = outcome.error
    return error if isinstance(error, UserError) and not outcome.trials_own and not outcome.lost else None
