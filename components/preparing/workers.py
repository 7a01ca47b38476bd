"""Runs a function over chunks in several processes, with the results in the order of the chunks."""

import logging
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Self, TypeVar

_log = logging.getLogger(__name__)
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
        waiting: deque[tuple[Item, Future[Result] | None]] = deque()
        for item in items:
            waiting.append((item, self._submit(function, item)))
            if len(waiting) > self._ahead:
                yield self._result(function, *waiting.popleft())
        while waiting:
            yield self._result(function, *waiting.popleft())

    def _submit(self, function: Callable[[Item], Result], item: Item) -> Future[Result] | None:
        if self._pool is None:
            return None
        try:
            return self._pool.submit(function, item)
        except BrokenProcessPool:
            return None

    def _result(self, function: Callable[[Item], Result], item: Item, future: Future[Result] | None) -> Result:
        """The future's result; made here where its process died, or could not start (a caller without a main file)."""
        if future is not None:
            try:
                return future.result()
            except BrokenProcessPool as error:
                if self._pool is not None:
                    _log.warning("the processes that convert rows are gone; going on in this one: %s", error)
                self._pool = None
        return function(item)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
