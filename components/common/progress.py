"""Progress of a step, for whoever shows it: lines of JSON in a file that the run's driver reads."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

EVENTS = "PHASETUNE_EVENTS"
"""The variable that names the file; without it nothing is shown."""


def say(**event: Any) -> None:
    """Tell the run's driver something, if there is one."""
    place = os.environ.get(EVENTS)
    if place is not None:
        # One short write to a file opened for appending is whole, whichever process it comes from. What cannot be
        # said (a full disk) must not hide what was to be said, nor stop the work.
        with contextlib.suppress(OSError), Path(place).open("a", encoding="utf-8") as out:
            out.write(json.dumps(event) + "\n")


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
