"""Making a phase's results for the store: what it leaves, and its optimizer where the next phase goes on with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from components.common.checkpoints import CheckpointPlace, clear
from components.common.step import Step
from components.common.store import Entry

RESULTS = (
    "examples",
    "sequence",
    "tokens",
    "response_tokens",
    "truncated",
    "steps",
    "learning",
    "batching",
    "best",
    "selected",
    "rollbacks",
    "resumed_at",
    "checkpoint_seconds",
    "marks",
    "train_seconds",
    "extra",
)
"""What of `fit`'s result goes into the manifest."""


class PhaseMaker:
    """Finds or makes one phase.

    Args:
        step: The step of the run.
        key: The phase's key.
        job: Gives what `fit` is asked to do, but for its output folder and its checkpoints; asked only if the phase
            is made, as it brings the parent's weights here.
        about: What the manifest records beside the results.
    """

    def __init__(self, step: Step, key: str, job: Callable[[], dict[str, Any]], about: dict[str, Any]) -> None:
        self._step = step
        self._key = key
        self._job = job
        self._about = about
        self._aside: Path | None = None

    def find_or_make(self, with_optimizer: bool) -> tuple[Entry, bool]:
        """The phase's entry, and whether it was found.

        Args:
            with_optimizer: Whether the optimizer's state must be in the store too, as an entry of its own: only the
                next phase tells, so it is no part of the phase.
        """
        try:
            entry, reused = self._step.find_or_make("phases", self._key, self._make, lambda: clear(self._place()))
            if with_optimizer:
                self._step.find_or_make("optimizers", self._key, self._make_optimizer)
        finally:
            if self._aside is not None:
                shutil.rmtree(self._aside, ignore_errors=True)
        return entry, reused

    def _place(self) -> CheckpointPlace:
        token = 0 if self._step.lease is None else self._step.lease.token
        return CheckpointPlace(self._step.info.store, self._key, token)

    def _fit(self, folder: Path, checkpoints: CheckpointPlace | None) -> dict[str, Any]:
        job = {**self._job(), "out": str(folder), "checkpoints": None if checkpoints is None else asdict(checkpoints)}
        result: dict[str, Any] = self._step.heavy("components.training.fit:fit", job=job)
        return result

    def _make(self, folder: Path) -> dict[str, Any]:
        result = self._fit(folder, self._place())
        if (folder / "optimizer").is_dir():
            self._aside = (folder / "optimizer").rename(folder.with_name(f"{folder.name}-optimizer"))
        return {**{name: result[name] for name in RESULTS}, **self._about}

    def _make_optimizer(self, folder: Path) -> dict[str, Any]:
        made = self._aside
        if made is None:  # the phase was found, made without its optimizer: equal keys train equally
            again = folder / "again"
            again.mkdir()
            self._fit(again, None)
            made = again / "optimizer"
        for file in sorted(made.iterdir()):
            file.rename(folder / file.name)
        shutil.rmtree(folder / "again", ignore_errors=True)
        return {"phase": self._key}
