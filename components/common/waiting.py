"""Who waits for a job that several runs may share, so that the last one to give up stops it.

`waiting/<job>/<run>` in the store is written again and again while the run waits; one that is no longer written is
nobody's. Its age is by the store's own clock.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from components.common.errors import UserError
from components.common.names import listed_parts
from components.common.objects import Objects

FOLDER = "waiting"
_EVERY = 60.0
"""Seconds between two signs of life."""
_GONE = 600.0
"""Seconds without one after which nobody waits any more."""


def note(objects: Objects, job: str, run: str) -> None:
    """Say that a run waits for a job."""
    objects.write(f"{FOLDER}/{job}/{run}", b"")


def leave(objects: Objects, job: str, run: str) -> bool:
    """Say that a run waits no longer; returns whether nobody else does.

    Of two that leave at once both may be told that they are the last.
    """
    objects.remove([f"{FOLDER}/{job}/{run}"])
    listed = list(objects.list(f"{FOLDER}/{job}"))
    objects.remove(item.name for item in listed if item.age >= _GONE)
    return all(item.age >= _GONE for item in listed)


def jobs_of(objects: Objects, run: str) -> list[str]:
    """The jobs that a run waits for, or waited for when it was killed."""
    places = (listed_parts(item.name) for item in objects.list(FOLDER))
    return sorted(parts[1] for parts in places if len(parts) == 3 and parts[2] == run)


def forgotten(objects: Objects) -> list[str]:
    """The names that runs left which were killed while they waited."""
    return sorted(item.name for item in objects.list(FOLDER) if item.age >= _GONE)


@contextmanager
def noted(objects: Objects, job: str, run: str) -> Iterator[None]:
    """While inside, the run is known to wait for the job. On the way out nothing is done: see `leave`."""
    note(objects, job, run)
    done = threading.Event()

    def go_on() -> None:
        while not done.wait(_EVERY):
            with contextlib.suppress(UserError, OSError):  # the store is away: the next one may get through
                note(objects, job, run)

    thread = threading.Thread(target=go_on, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5.0)
