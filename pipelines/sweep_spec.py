"""The sweep's spec: a base spec, a space of changes to it, how the space is searched, and what decides."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from components.common.errors import SpecError, redact
from components.common.spec import Spec
from components.common.spec_base import Strict
from components.common.spec_file import check, override, read_yaml, spec_from
from pipelines.sweep_vary import ORDER, TIERS, check_base, check_keys

_DOCS = "docs/sweeps.md lists every key of a sweep; start from pipelines/specs/sweep_orders.yaml"


class Sample(Strict):
    """So many of the orders of the tiers, drawn at random, each another one."""

    sample: Annotated[int, Field(ge=1)]
    """Orders for each number of tiers; all where there are no more."""


class Uniform(Strict):
    """A number between two, all equally likely."""

    uniform: Annotated[list[float], Field(min_length=2, max_length=2)]
    """The lower and the upper end of a range of numbers, all equally likely."""
    points: Annotated[int, Field(ge=2)] | None = None
    """Points of a grid, evenly spaced, of `log_uniform` in the logarithm; only for `search.method: grid`."""


class LogUniform(Strict):
    """A number between two, equally likely in each decade."""

    log_uniform: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)]
    """The lower and the upper end of a range of numbers, equally likely in each decade."""
    points: Annotated[int, Field(ge=2)] | None = None
    """Points of a grid, evenly spaced, of `log_uniform` in the logarithm; only for `search.method: grid`."""


class Integers(Strict):
    """A whole number between two, both included."""

    integers: Annotated[list[int], Field(min_length=2, max_length=2)]
    """The least and the greatest of whole numbers, all equally likely; a grid takes each."""


Dimension = (
    Annotated[list[Any], Field(min_length=1)] | Literal["permutations"] | Sample | Uniform | LogUniform | Integers
)


def ends(dimension: Uniform | LogUniform | Integers) -> list[float] | list[int]:
    """The lower and the upper end of a range."""
    if isinstance(dimension, Integers):
        return dimension.integers
    return dimension.uniform if isinstance(dimension, Uniform) else dimension.log_uniform


class SearchSpec(Strict):
    """How the space is searched."""

    method: Literal["grid", "random", "optuna"] = "grid"
    """`grid` tries every combination, `random` draws, `optuna` (TPE) learns from the trials before."""
    trials: Annotated[int, Field(ge=1)] = 40
    """Trials that are drawn; of a grid, the most that it may have."""
    seeds: Annotated[int, Field(ge=1)] = 1
    """Runs of each promising trial: evaluation and training are noisy, so the best of many is also the luckiest."""
    promising: Annotated[int, Field(ge=2)] = 4
    """Trials that are repeated with the further seeds: the best of the first round."""
    seed: int = 17
    """Of what is drawn."""


class StopSpec(Strict):
    """Early stopping, off by default: after one phase a curriculum has seen one tier only."""

    scheduler: Literal["none", "asha"] = "none"
    """`asha` (arXiv 1810.05934) ends trials that are behind at a rung; trials are compared with those of the same
    number of tiers only."""
    grace_tokens: Annotated[int, Field(ge=1)] = 200_000
    """Training tokens before a trial may be ended; the first rung."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """One in so many goes on at each rung; a rung has so many times the tokens of the one before."""


class ObjectiveSpec(Strict):
    """What decides."""

    metric: str = "verifiable.accuracy"
    """A metric of the evaluation: `verifiable.accuracy` or `loss.nats_per_token`."""
    mode: Literal["max", "min"] = "max"
    """Whether more or less is better."""
    on: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] = "held_out"
    """`held_out`: all of the held-out part; `tier_3`: one tier of it; or the name of a slice."""

    @property
    def name(self) -> str:
        """The metric's name in an evaluation, such as `verifiable.tier_3.accuracy`."""
        suite, _, measure = self.metric.partition(".")
        return self.metric if self.on == "held_out" else f"{suite}.{self.on}.{measure}"


class BudgetSpec(Strict):
    """What the sweep may cost; what is under way when it is spent comes to its end."""

    hours: Annotated[float, Field(gt=0)] | None = None
    """Wall time; null: no limit."""
    phases: Annotated[int, Field(ge=1)] | None = None
    """Phases that are trained, by this command; null: no limit."""


class SweepSpec(Strict):
    """One sweep."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=48)]
    """Names the output folder and the tracked run."""
    base: str
    """The spec that is varied, a file relative to the sweep's."""
    space: Annotated[dict[str, Dimension], Field(min_length=1)]
    """By the key of the spec: a list of values; for `curriculum.order` also `permutations` or `{sample: 8}`; or a range
    `{uniform: [a, b]}`, `{log_uniform: [a, b]}`, `{integers: [a, b]}`."""
    search: SearchSpec = SearchSpec()
    stop: StopSpec = StopSpec()
    objective: ObjectiveSpec = ObjectiveSpec()
    budget: BudgetSpec = BudgetSpec()
    slots: Annotated[int, Field(ge=1)] | None = None
    """Phases that are trained at the same time; null: as the machine's cores or GPUs allow; on a cluster one."""

    @model_validator(mode="after")
    def _space_makes_sense(self) -> Self:
        for key, dimension in self.space.items():
            if isinstance(dimension, Uniform | LogUniform | Integers):
                low, high = ends(dimension)
                if low >= high:
                    raise ValueError(f"space.{key}: the range {low} to {high} is empty")
            ordered = dimension == "permutations" or isinstance(dimension, Sample)
            if ordered and key != ORDER:
                raise ValueError(f"space.{key}: `permutations` and `sample` are for {ORDER} alone")
            continuous = isinstance(dimension, Uniform | LogUniform)
            if self.search.method == "grid" and continuous and dimension.points is None:  # type: ignore[union-attr]  # mypy does not follow the name
                raise ValueError(f"space.{key}: a grid needs points: give a list, or `points: 5` beside the range")
        return self


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep that has been read.

    Attributes:
        spec: What the user wrote.
        file: Where.
        base_file: The base spec's file.
        values: The base spec's values, `--set` applied.
    """

    spec: SweepSpec
    file: Path
    base_file: Path
    values: dict[str, Any]

    def resolved(self, params: Mapping[str, Any], seed: int | None = None) -> Spec:
        """The spec of one trial.

        Args:
            params: Values by the key of the spec.
            seed: Of this repetition; the base spec's where None. The held-out part stays the same for all.

        Raises:
            SpecError: If the values do not go together.
        """
        values = copy.deepcopy(self.values)
        for key, value in params.items():
            override(values, key, copy.deepcopy(value))
        values.setdefault("seed", Spec.model_fields["seed"].default)
        values["data"].setdefault("seed", values["seed"])
        if seed is not None:
            values["seed"] = seed
        if "controls" not in params:
            values["controls"] = []
        named = ", ".join(f"{key}={value}" for key, value in params.items())
        spec = spec_from(values, f"the trial {named}", self.base_file.parent)
        phases = [*(spec.curriculum.phases or []), *spec.curriculum.then]
        if self.spec.stop.scheduler != "none" and any(phase.data for phase in phases):
            raise SpecError(
                f"the sweep {self.file}: `stop.scheduler: {self.spec.stop.scheduler}` counts rungs in training tokens, "
                "and a phase has `data` of its own, whose tokens nobody knows before it has been trained",
                "use `stop.scheduler: none`, or train that phase on tiers",
            )
        return spec

    def to_json(self) -> str:
        """The sweep as it is sent to a cluster, where its files are not."""
        values = copy.deepcopy(self.values)
        if "uri" in (values.get("tracking") or {}):
            values["tracking"]["uri"] = redact(str(values["tracking"]["uri"]))  # credentials come from a secret there
        spec = self.spec.model_dump(mode="json", exclude_defaults=True)
        spec["base"] = self.base_file.name  # not the folders of whoever sends it: nobody reads it there
        sent = {"spec": spec, "values": values}
        return json.dumps(sent, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Sweep:
        """The inverse; what was relative to a file is relative to the working directory."""
        sent = json.loads(text)
        return cls(SweepSpec.model_validate(sent["spec"]), Path("sweep.yaml"), Path("base.yaml"), sent["values"])


def load_sweep(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read and check a sweep and its base spec.

    Args:
        path: The sweep's YAML file.
        overrides: `key.path=value` of the sweep where it has that key, else of the base spec.

    Raises:
        SpecError: If either cannot be read, or the space has what cannot be varied, or cannot be at all.
    """
    values = read_yaml(path)
    objective = values.get("objective")
    if isinstance(objective, dict) and True in objective:
        objective["on"] = objective.pop(True)  # which is how YAML 1.1 reads the key `on`
    own = [item for item in overrides if item.partition("=")[0].split(".")[0] in SweepSpec.model_fields]
    for item in own:
        override(values, item)
    try:
        spec = SweepSpec.model_validate(values)
    except ValidationError as error:
        raise SpecError(check(f"the sweep {path}", values, error, SweepSpec), _DOCS) from None
    base_file = path.parent / spec.base
    base = read_yaml(base_file)
    for item in overrides:
        if item not in own:
            override(base, item)
    whole = spec_from(base, f"the base spec {base_file}", base_file.parent)
    check_keys(spec.space, path)
    check_base(spec, whole, path)
    sweep = Sweep(spec, path, base_file, base)
    if spec.search.method == "optuna":
        from pipelines.sweep_suggest import choices

        for params in choices(sweep):
            sweep.resolved(params)
    return sweep


__all__ = [
    "ORDER",
    "TIERS",
    "Integers",
    "LogUniform",
    "ObjectiveSpec",
    "Sample",
    "Sweep",
    "SweepSpec",
    "Uniform",
    "ends",
    "load_sweep",
]
