"""One step of a run: what it is asked, how it finds or makes its result, and the record it leaves."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, ParamSpec

from components.common.errand import CALL, INSIDE, Errand, goes_elsewhere, run_errand
from components.common.errors import mendable, redact
from components.common.joining import joined
from components.common.launcher import StepFailed, launch
from components.common.lease import Lease, acquire, began_tick, describe, held
from components.common.progress import say
from components.common.records import RunInfo, RunRecords, StepRecord
from components.common.spec import Spec
from components.common.store import Entry, Kind, Store, reading

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Reference:
    """A result that one step hands to another: its key, and where it lies."""

    key: str
    uri: str

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps({"key": self.key, "uri": self.uri})

    @classmethod
    def from_json(cls, text: str) -> Reference | None:
        """The inverse; None for an empty text."""
        return cls(**json.loads(text)) if text else None

    @property
    def folder(self) -> Path:
        """A local folder with its files, verified; of S3 a copy, fetched when it is first asked for.

        Raises:
            Damaged: If the files are not what their maker left there; the result is set aside for a rerun to make.
        """
        return reading(self.uri)


def process_started() -> float:
    """Unix time at which this process was started: what passed before our first line is overhead."""
    tick = began_tick(os.getpid())
    if sys.platform == "linux" and tick:
        # psutil adds the ticks to the time of the boot, which the kernel tells in whole seconds: up to one too many.
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(tick) / os.sysconf("SC_CLK_TCK")
        return time.time() - max(0.0, age)
    import psutil

    return float(psutil.Process().create_time())


def errors_said(function: Callable[P, str]) -> Callable[P, str]:
    """Tell the run's driver why a step fails, before its process ends with a traceback that users never see.

    What is called is noted, so that the step can ask a driver elsewhere to call the same.
    """

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> str:
        bound = signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            # As in all that a shell starts in the background (`phasetune run SPEC &` in a script); but it is how the
            # run's driver, and the loss of a lease, stop a step.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        CALL.set((f"{function.__module__}:{function.__name__}", dict(bound.arguments)))
        try:
            return function(*args, **kwargs)
        except Exception as error:
            known = mendable(error)
            if known is None:
                say(failed=redact((str(error).splitlines() or [type(error).__name__])[0]))
            else:
                say(failed=known.message, remedy=known.remedy, kind=type(known).__name__)
            raise

    return wrapper


class Step:
    """A step of a run.

    Args:
        context: The run, as `RunInfo.to_json` gives it; on a cluster the rest of it is in the run's records.
        name: The step's name, see `records.step_name`.
        started: Unix time at which it began; the start of this process where absent.

    Attributes:
        lease: While a result is made, the lease that it is made under: its token goes to whatever writes checkpoints.
    """

    def __init__(self, context: str, name: str, started: float | None = None) -> None:
        self.info = joined(RunInfo.from_json(context))
        self.spec: Spec = self.info.parsed()
        self.name = name
        self.store = Store(self.info.store)
        self.records = RunRecords(self.info.store, self.info.run)
        self._started = process_started() if started is None else started
        self.lease: Lease | None = None
        self._work = self._waited = 0.0
        say(step=name, state="started")

    def find_or_make(
        self,
        kind: Kind,
        key: str,
        make: Callable[[Path], dict[str, Any]],
        published: Callable[[], None] | None = None,
        heavy: Spec | None = None,
    ) -> tuple[Entry, bool]:
        """The result under a key, made if it is not there; where another process makes it, its result is waited for.

        Args:
            kind: Of the result.
            key: Of the result.
            make: Fills an empty folder and returns what the manifest records beside the files.
            published: Called when the result is in the store, still under the lease.
            heavy: For heavy work the spec as this stage reads it, which says where the work is done.

        Returns:
            The entry, and whether it was found.

        Raises:
            LeaseLost: If this process gave no sign of life for so long that another took over.
            StepFailed: If the work was sent elsewhere and failed there.
        """
        if heavy is not None and goes_elsewhere(heavy):
            return self._find_or_send(kind, key, heavy)
        lease = None
        while lease is None:
            entry = self.store.whole(kind, key)
            if entry is not None:
                return entry, True
            lease = self._lease(kind, key)
        with held(lease):
            entry = self.store.whole(kind, key)  # another may have made it while we came to the lease
            if entry is not None:
                return entry, True
            self.lease = lease
            info: dict[str, Any] = {}
            try:
                with self.store.make(kind, key, info, lease) as folder:
                    info.update(make(folder))
                if published is not None:
                    published()
            finally:
                self.lease = None
        made = self.store.find(kind, key)
        if made is None:
            raise AssertionError(f"{kind}/{key} was made and is not there")
        return made, False

    def _find_or_send(self, kind: Kind, key: str, spec: Spec) -> tuple[Entry, bool]:
        """The result under a key; where it is not there, a driver in a Ray cluster makes it, under its own lease."""
        entry = self.store.whole(kind, key)
        if entry is not None:
            return entry, True
        target, arguments = CALL.get()
        began = time.time()
        done = run_errand(Errand(self.name, self.info.run, kind, key, target, arguments), spec)
        self._waited += done.waited
        self._work += time.time() - began - done.waited
        entry = self.store.whole(kind, key)
        if entry is None:
            raise StepFailed(f"the driver of {self.name} ended well, but {kind}/{key} is not in the store")
        return entry, not done.ours

    def _lease(self, kind: Kind, key: str) -> Lease | None:
        """The lease of a result; None where another process made the result while we waited for it."""

        def waits(holder: dict[str, Any]) -> None:
            say(step=self.name, state="waiting", kind=kind, key=key, holder=describe(holder))

        began = time.time()
        try:
            return acquire(
                self.store.objects, kind, key, self.info.run, lambda: self.store.find(kind, key) is not None, waits
            )
        finally:
            self._waited += time.time() - began

    def heavy(self, target: str, **arguments: Any) -> Any:
        """Call a heavy function where heavy work belongs; what its start took counts as overhead."""
        result, began = launch(target, **arguments)
        spent = time.time() - began
        # A function that knows what its own processes cost to start says so.
        self._work += spent - (float(result.get("overhead_seconds", 0.0)) if isinstance(result, dict) else 0.0)
        return result

    def light(self, function: Callable[[], Any]) -> Any:
        """Call a function in this process; its time is work."""
        began = time.time()
        try:
            return function()
        finally:
            self._work += time.time() - began

    def finish(self, entry: Entry, reused: bool, info: dict[str, Any]) -> str:
        """Leave the record, and return the reference for the next step.

        The driver of an errand leaves none: the step that waits for it does, and so does one of another run.
        """
        if INSIDE in os.environ:
            return Reference(entry.key, entry.uri).to_json()
        seconds = time.time() - self._started
        overhead = max(0.0, seconds - self._work - self._waited)
        self.records.write(StepRecord(self.name, entry.kind, entry.key, entry.uri, reused, seconds, overhead, info))
        say(step=self.name, state="done", seconds=seconds, reused=reused)
        return Reference(entry.key, entry.uri).to_json()
