"""Importing much at once: torch, transformers and TRL are five thousand modules."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Import without looking for garbage; what is there afterwards is not looked at again.

    Imports make next to no garbage, and what they make stays. Python's collector would go through all of it again and
    again: a fifth of the time of the imports, and after them 0.7 s whenever a library asks for a collection,
    as accelerate does at the beginning of each training. In a process that forks, the pages stay shared besides.
    """
    wanted, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:  # else there may be garbage, which would stay too
            gc.freeze()
        if wanted:
            gc.enable()
