"""One step of a run: what it is asked, how it finds or makes its result, and the record it leaves."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

from components.common.errors import mendable
from components.common.launcher import launch
from components.common.progress import say
from components.common.records import RunInfo, RunRecords, StepRecord
from components.common.spec import Spec
from components.common.store import Entry, Kind, Store

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Reference:
    """A result that one step hands to another: its key, its folder, and for a phase the key of what it started from."""

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
        """Its folder."""
        return Path(self.uri)


def process_started() -> float:
    """Unix time at which this process was started: what passed before our first line is overhead."""
    import psutil

    return float(psutil.Process().create_time())


def errors_said(function: Callable[P, str]) -> Callable[P, str]:
    """Tell the run's driver why a step fails, before its process ends with a traceback that users never see."""

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> str:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            known = mendable(error)
            if known is None:
                say(failed=(str(error).splitlines() or [type(error).__name__])[0])
            else:
                say(failed=known.message, remedy=known.remedy, kind=type(known).__name__)
            raise

    return wrapper


class Step:
    """A step of a run.

    Args:
        context: The run, as `RunInfo.to_json` gives it.
        name: The step's name, see `records.step_name`.
        started: Unix time at which it began; the start of this process where absent.
    """

    def __init__(self, context: str, name: str, started: float | None = None) -> None:
        self.info = RunInfo.from_json(context)
        self.spec: Spec = self.info.parsed()
        self.name = name
        self.store = Store(self.info.store)
        self.records = RunRecords(self.info.store, self.info.run)
        self._started = process_started() if started is None else started
        self._work = 0.0
        say(step=name, state="started")

    def find_or_make(self, kind: Kind, key: str, make: Callable[[Path], dict[str, Any]]) -> tuple[Entry, bool]:
        """The result under a key, made if it is not there.

        Args:
            kind: Of the result.
            key: Of the result.
            make: Fills an empty folder and returns what the manifest records beside the files.

        Returns:
            The entry, and whether it was found.
        """
        entry = self.store.find(kind, key)
        if entry is not None:
            return entry, True
        info: dict[str, Any] = {}
        with self.store.make(kind, key, info) as folder:
            info.update(make(folder))
        made = self.store.find(kind, key)
        if made is None:
            raise AssertionError(f"{kind}/{key} was made and is not there")
        return made, False

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
        """Leave the record, and return the reference for the next step."""
        seconds = time.time() - self._started
        overhead = max(0.0, seconds - self._work)
        self.records.write(StepRecord(self.name, entry.kind, entry.key, entry.uri, reused, seconds, overhead, info))
        say(step=self.name, state="done", seconds=seconds, reused=reused)
        return Reference(entry.key, entry.uri).to_json()
