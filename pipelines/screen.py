"""What the user sees while a run goes on: a bar for long work, a line for each step; plain lines without a terminal."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from components.common.errors import UserError
from components.common.progress import EVENTS, Progress

_PATIENCE = 2.0
"""Seconds after which work is worth a bar."""
_LINE_EVERY = 20.0
"""Seconds between two lines about the same work where there is no terminal."""


def warn(console: Console, what: str) -> None:
    """Show a warning as a line."""
    console.print("warning: ", style="yellow", end="")
    console.print(what, highlight=False)


@contextmanager
def tracking_warnings(console: Console) -> Iterator[None]:
    """Show what the tracking has to say as lines, rather than as Python's warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for item in caught:
        if item.category.__name__ == "TrackingWarning":
            warn(console, str(item.message))


@contextmanager
def working(console: Console, what: str) -> Iterator[None]:
    """Show how far one piece of work is: a bar, or a line at its start where there is no terminal."""
    console.print(what, highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        events = Path(folder) / "events.jsonl"
        os.environ[EVENTS] = str(events)
        try:
            with Screen(console, events, 0).following():
                Progress(what, 0, "")
                yield
        finally:
            os.environ.pop(EVENTS, None)


class Screen:
    """Follows the events that the steps write (see `components.common.progress`).

    Attributes:
        failure: What the last failing step said, or None.
        steps: Steps that ended.
    """

    def __init__(self, console: Console, events: Path, total_steps: int) -> None:
        self._console = console
        self._events = events
        self._total = total_steps
        self._read = 0
        self._shown: dict[str, Any] = {}
        self._since: dict[str, float] = {}
        self._lines: dict[str, float] = {}
        self._waiting: dict[str, dict[str, Any]] = {}
        self._warned: set[str] = set()
        self._bars = Bars(
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.failure: UserError | None = None
        self.crash: str | None = None
        self.steps = 0

    @contextmanager
    def following(self) -> Iterator[None]:
        """Show what happens until the block ends."""
        done = threading.Event()

        def follow() -> None:
            while not done.wait(0.1):
                self._drain()
                for event in list(self._waiting.values()):  # work that says nothing more still gets its bar
                    self._bar(event)

        thread = threading.Thread(target=follow, daemon=True)
        with self._bars:
            thread.start()
            try:
                yield
            finally:
                done.set()
                thread.join()
                self._drain()

    def _drain(self) -> None:
        if not self._events.exists():
            return
        with self._events.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            self._show(json.loads(line))

    def _show(self, event: dict[str, Any]) -> None:
        if "warning" in event:
            if event["warning"] not in self._warned:
                self._warned.add(event["warning"])
                warn(self._console, event["warning"])
        elif "failed" in event:
            if "kind" in event:
                self.failure = UserError(event["failed"], event.get("remedy", ""))
            else:
                self.crash = event["failed"]
        elif event.get("state") == "waiting":
            self._console.print(
                f"  {event['step']}: waiting for {event['holder']}, which makes {event['kind']}/{event['key'][:12]}",
                highlight=False,
            )
        elif event.get("state") == "done":
            self.steps += 1
            self._clear()
            how = "found in the store" if event["reused"] else f"{event['seconds']:.1f} s"
            self._console.print(f"[{self.steps:>2}/{self._total}] {event['step']:<34} {how}", highlight=False)
        elif "label" in event:
            self._bar(event)

    def _bar(self, event: dict[str, Any]) -> None:
        label = event["label"]
        since = self._since.setdefault(label, time.monotonic())
        if not self._console.is_terminal:
            self._line(event)
            return
        if label not in self._shown and time.monotonic() - since < _PATIENCE:
            self._waiting[label] = event
            return
        self._waiting.pop(label, None)
        if label not in self._shown:
            self._shown[label] = self._bars.add_task(label, total=event["total"] or None)
        self._bars.update(self._shown[label], completed=event["done"])

    def _line(self, event: dict[str, Any]) -> None:
        """Without a terminal: a plain line now and then."""
        now, label = time.monotonic(), event["label"]
        if now - max(self._lines.get(label, 0.0), self._since[label]) >= _LINE_EVERY:
            self._lines[label] = now
            of = f" of {event['total']:,}" if event["total"] else ""
            self._console.print(f"  {label}: {event['done']:,}{of} {event['unit']}", highlight=False)

    def _clear(self) -> None:
        for task in self._shown.values():
            self._bars.remove_task(task)
        self._shown, self._since, self._waiting = {}, {}, {}
