"""The promised order, as batches: which examples each worker sees at each optimizer step.

Step s trains on the s-th slice of the phase's sequence, whatever the number of workers. The slice is dealt to the
workers in contiguous parts of equal size (within one); where a slice is too short to give everyone something, a
worker gets a filler row without a label, which adds nothing to the loss. So nothing is dropped and nothing doubled.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence


def split_evenly(items: Sequence[int], parts: int) -> list[list[int]]:
    """Contiguous parts whose sizes differ by at most one, the larger first."""
    size, larger = divmod(len(items), parts)
    cuts = [part * size + min(part, larger) for part in range(parts + 1)]
    return [list(items[low:high]) for low, high in itertools.pairwise(cuts)]


def accumulation(batch_size: int, workers: int, micro_batch_size: int | None) -> int:
    """Forward passes of one worker for one optimizer step."""
    share = math.ceil(batch_size / workers)
    return math.ceil(share / min(micro_batch_size or share, share))


class StepBatches:
    """The micro-batches of one worker; a batch sampler for torch's DataLoader.

    Args:
        sequence: Row numbers in the promised order.
        batch_size: Rows in one optimizer step, over all workers.
        workers: Number of workers.
        rank: This worker's number, from 0.
        passes: Micro-batches of one worker in one step.
        filler: The row number of the filler.
    """

    def __init__(
        self, sequence: Sequence[int], batch_size: int, workers: int, rank: int, passes: int, filler: int
    ) -> None:
        self.sequence = sequence
        self.batch_size = batch_size
        self.workers, self.rank = workers, rank
        self.passes = passes
        self.filler = filler

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return math.ceil(len(self.sequence) / self.batch_size)

    def __len__(self) -> int:
        return self.steps * self.passes

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self.sequence), self.batch_size):
            mine = split_evenly(self.sequence[start : start + self.batch_size], self.workers)[self.rank]
            for micro in split_evenly(mine, self.passes):
                yield micro or [self.filler]
