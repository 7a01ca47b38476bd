"""A day by a clock that tests turn, and what a process keeps of it after each hour."""

from __future__ import annotations

import gc
import tracemalloc

DAY, HOUR = 86_400.0, 3_600.0
ROOM = 256 * 1024
"""Bytes by which the memory may differ between the second hour and the last."""


class Day:
    """The clock; it stands in for the module `time` where code asks that.

    Attributes:
        now: Seconds that have passed.
        memory: Bytes in use after each hour, of which `tracemalloc` must keep count.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.memory: list[int] = []

    def pass_(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        if self.now >= HOUR * (len(self.memory) + 1):
            gc.collect()
            self.memory.append(tracemalloc.get_traced_memory()[0])

    def time(self) -> float:
        """See the module `time`."""
        return self.now

    monotonic = time
    sleep = pass_


def constant(memory: list[int]) -> bool:
    """Whether no more is kept at the end of the day than after its second hour."""
    return max(memory[2:]) - memory[1] < ROOM
