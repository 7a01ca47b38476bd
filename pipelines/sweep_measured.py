"""Whether what decides a sweep is measured, and alike in all trials: seen before phases are paid for.

The spec tells which suites there are. Which slices there are, whether an answer can be verified, and how many tokens it
has, the held-out part tells once it is split; whether an evaluation measured it after all, the first of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.common.errors import SpecError
from components.common.examples import read_rows
from components.common.selection import selects
from components.common.spec import Spec
from components.common.store import Store
from pipelines.sweep_run import SweepRun, Trial
from pipelines.sweep_spec import ObjectiveSpec

_COLUMNS = ["id", "group", "slice", "tier", "verifier", "tokens"]
_REMEDY = "name one of them by `objective.metric` and `objective.on`"


class Measured:
    """Ends a sweep whose evaluations do not measure what decides, or not alike.

    Args:
        objective: What decides.
    """

    def __init__(self, objective: ObjectiveSpec) -> None:
        self._objective = objective
        self._found = False
        self._seen: set[tuple[str, bool, int]] = set()
        self._counted: dict[str, int] = {}

    def look(self, store: Store, trial: Trial) -> None:
        """Look at the held-out part of a trial whose phases are known and not yet begun.

        Raises:
            SpecError: If its evaluation cannot measure what decides, or counts the same answers otherwise than the
                trials before it.
        """
        split = next(task.work.key for task in trial.chain.tasks if task.kind == "splits") if trial.chain else ""
        spec, entry = trial.spec, store.find("splits", split) if split else None
        about = (split, spec.curriculum.selects, spec.curriculum.sft.max_length)
        if entry is None or about in self._seen:
            return
        self._seen.add(about)
        rows = _evaluated(spec, entry.path / "held_out.parquet")
        names = measurable(spec, rows)
        if rows and self._objective.name not in names:  # of an empty part the evaluation says what to do
            raise SpecError(
                f"the objective {self._objective.name} is not measured on these data; there are: {', '.join(names)}",
                _REMEDY,
            )
        if self._objective.metric.startswith("loss"):
            self._count(spec, rows)

    def _count(self, spec: Spec, rows: Sequence[dict[str, Any]]) -> None:
        limit, on = spec.curriculum.sft.max_length, self._objective.on
        differing = 0
        for row in rows:
            if on in _parts(row):
                tokens = min(row["tokens"], limit)
                differing += self._counted.setdefault(row["id"], tokens) != tokens
        if differing:
            raise SpecError(
                f"the trials count the tokens of {differing} held-out answers differently, so their losses cannot be "
                "compared",
                "give all trials one tokenizer and a `curriculum.sft.max_length` that cuts no answer, or take "
                "`objective.metric: verifiable.accuracy`",
            )

    def check(self, store: Store, key: str) -> None:
        """Look at an evaluation.

        Raises:
            SpecError: If neither it nor one before it measured what decides.
        """
        entry = store.find("evaluations", key)
        if entry is None:
            return
        names = sorted(entry.info["metrics"])
        self._found = self._found or self._objective.name in names
        if not self._found:
            raise SpecError(
                f"the objective {self._objective.name} was not measured; measured were: {', '.join(names)}",
                f"{_REMEDY}; what is trained stays in the store",
            )

    def settle(self, run: SweepRun, trials: Sequence[Trial]) -> None:
        """Look at the trials that are done, whose evaluations may all have been stored before.

        Raises:
            SpecError: If none measured what decides.
        """
        for trial in trials:
            if not self._found and trial.chain is not None and run.state(trial) == "done":
                self.check(run.store, trial.chain.evaluations[-1])


def _evaluated(spec: Spec, held_out: Path) -> list[dict[str, Any]]:
    """The held-out rows that are evaluated: not those that checkpoints are selected on."""
    rows = read_rows(held_out, _COLUMNS)
    without = spec.curriculum.selects
    return [row for row in rows if not (without and selects(row["id"], row["group"], row["slice"]))]


def _parts(row: dict[str, Any]) -> tuple[str, ...]:
    """The parts that an example counts in, as `objective.on` names them."""
    return ("held_out", f"tier_{row['tier']}") if row["slice"] is None else (row["slice"],)


def measurable(spec: Spec, rows: Sequence[dict[str, Any]]) -> list[str]:
    """The metrics that an evaluation of some held-out rows has."""
    suites = {"loss": "nats_per_token", "verifiable": "accuracy"}
    found: set[tuple[str, str]] = set()
    for row in rows:
        for part in _parts(row):
            found |= {(suite, part) for suite in spec.evaluation.suites if suite == "loss" or row["verifier"]}
    names = {ObjectiveSpec.model_construct(metric=f"{suite}.{suites[suite]}", on=part).name for suite, part in found}
    return sorted(names)
