"""Making a phase's results for the store: what it leaves, and its optimizer where the next phase goes on with it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from components.common.checkpoints import CheckpointPlace, clear, clear_finished
from components.common.digests import digest_file
from components.common.progress import say
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

    def find_or_make(self, with_optimizer: bool) -> tuple[Entry, bool]:
        """The phase's entry, and whether it was found.

        Args:
            with_optimizer: Whether the optimizer's state must be in the store too, as an entry of its own: only the
                next phase tells, so it is no part of the phase.
        """
        spec = self._step.spec
        entry, reused = self._step.find_or_make(
            "phases", self._key, self._make, lambda: clear(self._place()), heavy=spec
        )
        if reused:  # whoever made it may have been killed before it could clear up
            clear_finished(self._step.info.store, self._key, self._step.info.run)
        if with_optimizer and self._step.store.whole("optimizers", self._key) is None:
            weights = self._step.store.files(entry)
            self._step.find_or_make(
                "optimizers", self._key, lambda folder: self._make_again(folder, weights), heavy=spec
            )
        return entry, reused

    def _place(self) -> CheckpointPlace:
        token = 0 if self._step.lease is None else self._step.lease.token
        return CheckpointPlace(self._step.info.store, self._key, token)

    def _fit(self, folder: Path) -> dict[str, Any]:
        job = {**self._job(), "out": str(folder), "checkpoints": asdict(self._place())}
        result: dict[str, Any] = self._step.heavy("components.training.fit:fit", job=job)
        return result

    def _make(self, folder: Path) -> dict[str, Any]:
        result = self._fit(folder)
        if (folder / "optimizer").is_dir():
            # Before the phase itself: once that is there, nobody would train it again for its optimizer's sake.
            with self._step.store.make("optimizers", self._key, {"phase": self._key}) as place:
                _empty(folder / "optimizer", place)
        return {**{name: result[name] for name in RESULTS}, **self._about}

    def _make_again(self, folder: Path, weights: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Train a phase that was made without its optimizer: equal keys train equally."""
        again = folder / "again"
        again.mkdir()
        self._fit(again)
        changed = [
            name
            for name, file in weights.items()
            if name.endswith(".safetensors") and digest_file(again / name) != file["sha256"]
        ]
        if changed:  # as a GPU's kernels may: the carried moments are then those of weights that differ by rounding
            say(warning=f"the phase {self._key[:12]}, trained again for its optimizer, came out with other weights")
        _empty(again / "optimizer", folder)
        shutil.rmtree(again)
        clear(self._place())
        return {"phase": self._key}


def _empty(source: Path, target: Path) -> None:
    for file in sorted(source.iterdir()):
        shutil.move(file, target / file.name)
    source.rmdir()
