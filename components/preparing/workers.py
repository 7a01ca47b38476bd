"""Runs a function over chunks in several processes, with the results in the order of the chunks."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

SMALL = 24 << 20
"""Bytes of sources below which starting processes costs more than they save."""
MOST = 4
"""Processes at most: beyond it the reader, which is one process, is what takes the time."""


def processes_for(size: int) -> int:
    """How many processes to convert with.

    Args:
        size: Bytes of all sources.
    """
    # A process of a multiprocessing pool may not have children of its own.
    if size < SMALL or multiprocessing.current_process().daemon:
        return 1
    return min(MOST, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class Workers:
    """Some processes, or none; a context manager.

    They are spawned, not forked: the caller may run threads (Ray, Arrow, torch).

    Args:
        count: Number of processes; with 1 the work is done here.
    """

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(count, mp_context=context) if count > 1 else None
        self._ahead = 2 * count

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """The function's results in the items' order; only a few items are taken ahead of time."""
        if self._pool is None:
            yield from map(function, items)
            return
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(self._pool.submit(function, item))
            if len(waiting) > self._ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
