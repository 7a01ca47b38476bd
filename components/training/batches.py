"""The promised order, as batches: which examples each worker sees at each optimizer step.

Step s trains on the s-th slice of the phase's sequence, whatever the number of workers. The slice is dealt to the
workers in contiguous parts of equal size (within one); where a slice is too short to give everyone something, a
worker gets a filler row without a label, which adds nothing to the loss. So nothing is dropped and nothing doubled.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from components.common.digests import unit_hash

WINDOW = 8
"""Steps whose examples `grouped` may exchange."""


def split_evenly(items: Sequence[int], parts: int) -> list[list[int]]:
    """Contiguous parts whose sizes differ by at most one, the larger first."""
    size, larger = divmod(len(items), parts)
    cuts = [part * size + min(part, larger) for part in range(parts + 1)]
    return [list(items[low:high]) for low, high in itertools.pairwise(cuts)]


def accumulation(batch_size: int, workers: int, micro_batch_size: int | None) -> int:
    """Forward passes of one worker for one optimizer step."""
    share = math.ceil(batch_size / workers)
    return math.ceil(share / min(micro_batch_size or share, share))


def group_by_length(rows: Sequence[int], lengths: Sequence[int], batch_size: int, seed: int) -> list[int]:
    """The sequence with like lengths in one step: examples change places within windows of `WINDOW` steps only.

    Within a window the examples are sorted by length and cut into steps, and the steps are put into a seeded order,
    so that length does not tell where in the window a step stands. A last step that is not full stays last.

    Args:
        rows: Row numbers in the promised order.
        lengths: Tokens of every row, by row number.
        batch_size: Rows in one optimizer step.
        seed: Of the order of a window's steps.
    """
    grouped: list[int] = []
    for number, start in enumerate(range(0, len(rows), WINDOW * batch_size)):
        window = sorted(rows[start : start + WINDOW * batch_size], key=lambda row: lengths[row])
        steps = [window[low : low + batch_size] for low in range(0, len(window), batch_size)]
        whole = [step for step in steps if len(step) == batch_size]
        order = sorted(range(len(whole)), key=lambda place: unit_hash(f"{number}:{place}", seed, "length groups"))
        for step in [*(whole[place] for place in order), *steps[len(whole) :]]:
            grouped += step
    return grouped


class StepBatches:
    """The micro-batches of one worker; a batch sampler for torch's DataLoader.

    Args:
        sequence: Row numbers in the promised order.
        batch_size: Rows in one optimizer step, over all workers.
        workers: Number of workers.
        rank: This worker's number, from 0.
        passes: Micro-batches of one worker in one step.
        filler: The row number of the filler; None where every slice is full and the workers share it evenly.
        start: Optimizer steps that are done already.
    """

    def __init__(
        self,
        sequence: Sequence[int],
        batch_size: int,
        workers: int,
        rank: int,
        passes: int,
        filler: int | None,
        start: int = 0,
    ) -> None:
        self.sequence = sequence
        self.batch_size = batch_size
        self.workers, self.rank = workers, rank
        self.passes = passes
        self.filler = filler
        self.start = start

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole phase."""
        return math.ceil(len(self.sequence) / self.batch_size)

    def slice(self, step: int) -> Sequence[int]:
        """The rows of one optimizer step (from 1), of all workers."""
        return self.sequence[(step - 1) * self.batch_size : step * self.batch_size]

    def __len__(self) -> int:
        return (self.steps - self.start) * self.passes

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.steps):
            mine = split_evenly(self.slice(step + 1), self.workers)[self.rank]
            for micro in split_evenly(mine, self.passes):
                if micro or self.filler is not None:
                    yield micro or [self.filler]  # type: ignore[list-item]  # it is a row number here
