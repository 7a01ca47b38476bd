"""Keeping a phase's state while it trains: checkpoints in the background, and the best weights so far."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from components.common.checkpoints import CheckpointPlace, save
from components.training import state
from components.training.state import Progressed, Tensors


class Keeper:
    """Saves the state of a phase; of one worker, the first.

    A checkpoint costs the training a copy of its tensors in memory; a thread writes and uploads them. One is under
    way at a time: a further one waits for it, so that no more than two copies are in memory.

    Args:
        place: Where checkpoints go; None keeps none.
        scratch: A folder for what is being written.
    """

    def __init__(self, place: CheckpointPlace | None, scratch: Path) -> None:
        self._place = place
        self._scratch = scratch
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None
        self.best: Tensors | None = None
        self.stall = 0.0

    def save(self, progressed: Progressed, tensors: Callable[[], tuple[Tensors, Tensors]]) -> None:
        """Take a copy of the state and write it in the background.

        Args:
            progressed: What is done.
            tensors: Gives copies of the trained weights and of the optimizer's tensors.

        Raises:
            Exception: What went wrong with the checkpoint before this one.
        """
        if self._place is None:
            return
        began = time.monotonic()
        self.wait()
        weights, optimizer = tensors()
        self._thread = threading.Thread(
            target=self._write, args=(progressed, weights, optimizer, self.best), name="checkpoint", daemon=True
        )
        self._thread.start()
        self.stall += time.monotonic() - began

    def wait(self) -> None:
        """Wait for the checkpoint that is being written.

        Raises:
            Exception: What went wrong with it.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed

    def _write(self, progressed: Progressed, weights: Tensors, optimizer: Tensors, best: Tensors | None) -> None:
        folder = self._scratch / f"checkpoint-{progressed.step}"
        try:
            if self._place is None:
                raise AssertionError("a checkpoint needs a place")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            state.write(folder, progressed, weights, optimizer, best)
            save(self._place, progressed.step, folder)
        except BaseException as error:  # handed to the training thread, which decides
            self._failed = error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


class Selection:
    """Compares the phase's checkpoints on a measure and remembers the best.

    Args:
        measure: The value of the model as it is; lower is better for `loss`, higher for `accuracy`.
        lower: Whether lower is better.
        every: Steps between comparisons; the last step is always compared.
    """

    def __init__(self, measure: Callable[[Any], float], lower: bool, every: int) -> None:
        self._measure = measure
        self._sign = 1.0 if lower else -1.0
        self._every = every

    def due(self, step: int, steps: int) -> bool:
        """Whether the model is compared after this step."""
        return step % self._every == 0 or step == steps

    def compare(self, model: Any, progressed: Progressed, keeper: Keeper) -> None:
        """Measure the model, and keep a copy of it if it is the best so far; of equals the earliest stays."""
        value = self._measure(model)
        progressed.selected.append({"step": float(progressed.step), "value": value})
        if progressed.best is None or self._sign * value < self._sign * progressed.best["value"]:
            progressed.best = {"step": float(progressed.step), "value": value}
            keeper.best = state.copied(state.trained(model))
