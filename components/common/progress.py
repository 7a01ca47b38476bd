"""Progress of a step, for whoever shows it: lines of JSON in a file that the run's driver reads.

The driver of an errand in a Ray cluster has nobody to read such a file: it prints lines of text, which the step that
waits for it reads in the job's log and tells the run's driver.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any

EVENTS = "PHASETUNE_EVENTS"
"""The variable that names the file, or is PRINTED; without it nothing is shown."""
PRINTED = "-"
"""Instead of a file: events are printed as lines of text, progress not more often than every ten seconds."""
_EVERY = 10.0
_PRINTED_AT: dict[str, float] = {}
"""When each piece of work was printed last."""
_LINE = re.compile(r"(?:\([^()]*\) )?(?:(warning): (.+)|progress: (.+): (\d+) of (\d+) (\S+))$")
"""A line as `_print` writes it; Ray puts the process in brackets before what its workers print, in colour."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def say(**event: Any) -> None:
    """Tell the run's driver something, if there is one."""
    place = os.environ.get(EVENTS)
    if place == PRINTED:
        _print(event)
    elif place is not None:
        # One short write to a file opened for appending is whole, whichever process it comes from. What cannot be
        # said (a full disk) must not hide what was to be said, nor stop the work.
        with contextlib.suppress(OSError), Path(place).open("a", encoding="utf-8") as out:
            out.write(json.dumps(event) + "\n")


def _print(event: dict[str, Any]) -> None:
    if "label" in event:
        now, done = time.monotonic(), event["done"] == event["total"]
        if now - _PRINTED_AT.get(event["label"], float("-inf")) >= _EVERY or done:
            _PRINTED_AT[event["label"]] = now
            line = f"progress: {event['label']}: {event['done']} of {event['total']} {event['unit']}"
            print(line, flush=True)
    elif "warning" in event:
        print(f"warning: {event['warning']}", flush=True)
    elif event.get("state") == "waiting" and "holder" in event:
        print(f"waiting for {event['holder']}, which makes {event['kind']}/{event['key'][:12]}", flush=True)


def heard(line: str) -> dict[str, Any] | None:
    """The event that a printed line tells of; None where it is any other line."""
    found = _LINE.match(_COLOUR.sub("", line).rstrip())
    if found is None:
        return None
    if found[1]:
        return {"warning": found[2]}
    return {"label": found[3], "done": int(found[4]), "total": int(found[5]), "unit": found[6]}


class Progress:
    """Says how far a piece of work is, at most five times a second.

    Args:
        label: What is being done.
        total: How much there is; 0 where unknown.
        unit: What is counted.
    """

    def __init__(self, label: str, total: int, unit: str) -> None:
        self._event = {"label": label, "total": total, "unit": unit}
        self._total = total
        self._said = 0.0
        self.update(0)

    def update(self, done: int) -> None:
        """Say that `done` of the total is done."""
        now = time.monotonic()
        if now - self._said < 0.2 and (done < self._total or not self._total):
            return
        self._said = now
        say(**self._event, done=done)
