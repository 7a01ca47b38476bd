"""The spec: what a user writes, with every default, its unit and its source.

This module holds the models and what can be checked on them alone. Reading a file, `--set`, and the wording of
errors are in `spec_file.py`; the expansion of the curriculum into phases is in `curriculum.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Format = Literal[
    "auto",
    "alpaca",
    "dolly",
    "sharegpt",
    "openorca",
    "oasst",
    "flan",
    "self_instruct",
    "evol_instruct",
    "hh",
    "gsm8k",
    "phased_ift",
    "messages",
]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Tier = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    """A model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class ModelSpec(Strict):
    """The base model."""

    path: str = "lab"
    """`lab`, a folder, or a Hugging Face id."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16` computes in it over float32 weights while training; weights are saved and evaluated in this type."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Attention implementation of transformers."""


class Source(Strict):
    """One source of training rows."""

    path: str
    """A file, a folder, `s3://bucket/key`, `lab://instructions?count=3000`, or `hf://dataset-id?split=train`."""
    format: Format = "auto"
    """The rows' format; `auto` recognises it and says why."""
    weight: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the source's examples that is used, chosen by a seeded hash."""
    name: str | None = None
    """Shown in reports; the path's last part where absent."""


class HeldOut(Strict):
    """The held-out part: it shares no prompt and no group with the training part."""

    fraction: Fraction = 0.02
    """Share of the training sources' examples that is held out, by a hash of the group or the prompt."""
    sources: list[Source] = []
    """Further sources that are held out whole (a test set)."""


class DataSpec(Strict):
    """Where the examples come from."""

    train: Annotated[list[Source], Field(min_length=1)]
    held_out: HeldOut = HeldOut()
    seed: int | None = None
    """Fixes the held-out part and the mixing; the spec's seed where absent."""
    max_rejected: Annotated[float, Field(ge=0, le=1)] = 0.05
    """The run stops if a larger share of the rows is malformed."""
    deduplicate: Literal["none", "exact", "normalised"] = "normalised"
    """`normalised` compares case-folded text with white space collapsed; `exact` the text as it is."""


class ScoringSpec(Strict):
    """How difficulty is measured."""

    method: Literal["length", "loss", "ifd", "column"] = "ifd"
    """`length` tokens of the response; `loss` nats per token; `ifd` (Cherry LLM); `column` reads the data."""
    model: str | None = None
    """The scorer's model; the base model where absent."""
    column: str = "difficulty"
    """The field that `column` reads."""
    batch_tokens: Annotated[int, Field(ge=64)] = 8192
    """Tokens in one batch of the scorer, padding included."""


class SplittingSpec(Strict):
    """How scored examples are cut into tiers."""

    tiers: Annotated[int, Field(ge=1, le=100)] = 3
    """Number of tiers; tier 1 is the easiest."""
    cut: Literal["thresholds", "quantiles", "tokens"] = "quantiles"
    """`quantiles`: equal counts; `tokens`: equal tokens; `thresholds`: the values given."""
    thresholds: list[float] = []
    """The `tiers - 1` cuts, increasing; an example at a cut belongs to the harder tier, as in [1, 1.5), [1.5, 3.5)."""

    @model_validator(mode="after")
    def _thresholds_fit(self) -> Self:
        if self.cut == "thresholds":
            if len(self.thresholds) != self.tiers - 1:
                raise ValueError(f"{self.tiers} tiers need {self.tiers - 1} thresholds, got {len(self.thresholds)}")
            if any(low >= high for low, high in zip(self.thresholds, self.thresholds[1:], strict=False)):
                raise ValueError("thresholds must increase")
        elif self.thresholds:
            raise ValueError("thresholds are given, but cut is not `thresholds`")
        return self


class SftSettings(Strict):
    """Hyperparameters of a supervised phase. Defaults: Phased IFT (arXiv 2406.04371), where it has one."""

    epochs: Annotated[int, Field(ge=1)] = 2
    """Passes over the phase's examples."""
    learning_rate: Annotated[float, Field(gt=0)] = 5.0e-6
    """Peak learning rate of AdamW."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Examples in one optimizer step, over all workers (Tulu 3; the paper gives 16 for each device)."""
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Examples in one forward pass of one worker; null: as many as the step needs from it."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """AdamW's; not applied to biases and norms."""
    warmup_ratio: Fraction = 0.1
    """Share of the phase's steps in which the learning rate rises."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    adam_betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    max_length: Annotated[int, Field(ge=8)] = 2048
    """Tokens of an example that are kept; longer ones are cut at the end and counted."""


class SftOverrides(Strict):
    """Settings of one phase that differ from `curriculum.sft`; null keeps the shared value."""

    epochs: Annotated[int, Field(ge=1)] | None = None
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    warmup_ratio: Fraction | None = None
    schedule: Literal["cosine", "linear", "constant"] | None = None
    adam_betas: tuple[Fraction, Fraction] | None = None
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    max_length: Annotated[int, Field(ge=8)] | None = None


class PhaseSpec(SftOverrides):
    """One phase of an explicit `curriculum.phases` or of `curriculum.then`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$", max_length=64)] | None = None
    """Shown in reports; after the tiers where absent."""
    method: Literal["sft"] = "sft"
    """The training method."""
    tiers: list[Tier] = []
    """The tiers that the phase trains on."""
    replay: Fraction = 0.0
    """Share of the phase's examples drawn from the tiers of earlier phases."""


class CurriculumSpec(Strict):
    """The order of the phases: a shorthand, or the list itself."""

    order: Literal["ascending", "descending", "random"] | list[Tier] = "ascending"
    """Order of the tiers; a list names each tier once."""
    replay: Fraction = 0.0
    """Share of each later phase that is drawn from the tiers already seen."""
    sft: SftSettings = SftSettings()
    then: list[PhaseSpec] = []
    """Phases after the tiers; controls get them too."""
    phases: list[PhaseSpec] | None = None
    """The phases in full; `order` and `replay` are then not allowed."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.phases is not None:
            given = [
                name for name, default in (("order", "ascending"), ("replay", 0.0)) if getattr(self, name) != default
            ]
            if given:
                raise ValueError(f"`phases` lists the phases in full; remove {', '.join(given)}")
            if not self.phases:
                raise ValueError("`phases` must not be empty")
        if any(not phase.tiers for phase in [*(self.phases or []), *self.then]):
            raise ValueError("a phase must name its `tiers`")
        return self


class OnlyControl(Strict):
    """Train on these tiers alone, in the main curriculum's order."""

    only: Annotated[list[Tier], Field(min_length=1)]


Control = Literal["one_off", "random_tiers", "hardest_only", "one_off_restarts"] | OnlyControl


class EvaluationSpec(Strict):
    """What is measured on the base model and after every phase."""

    suites: list[Literal["loss", "verifiable"]] = ["loss", "verifiable"]
    """`loss`: held-out nats per token; `verifiable`: greedy answers that a verifier accepts."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    """Longest generated answer, tokens."""
    max_examples: Annotated[int, Field(ge=1)] | None = None
    """At most so many held-out examples of each tier, the first by a seeded hash; null: all."""
    batch_tokens: Annotated[int, Field(ge=64)] = 8192
    """Tokens in one batch, padding included."""
    resamples: Annotated[int, Field(ge=100)] = 2000
    """Bootstrap resamples."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Of every interval, and of the verdict's test."""


class TrackingSpec(Strict):
    """Where MLflow keeps the run."""

    uri: str = "sqlite:///mlflow.db"
    """`sqlite:///FILE` (relative to the working directory) or `http(s)://HOST`."""
    experiment: str = "phasetune"
    """MLflow's experiment."""
    enabled: bool = True
    """False keeps the run out of MLflow."""


class ComputeSpec(Strict):
    """What the heavy steps run on."""

    workers: Annotated[int, Field(ge=1)] = 1
    """Training workers; 1 trains in the step's own process."""
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] = 0
    """0 trains on the CPU."""
    ray: Literal["local"] = "local"
    """Where Ray runs: an instance on this machine, started when first needed."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads of torch in all workers together; null: every core."""


class SecretRef(Strict):
    """A secret by name; its value is never written."""

    secret: str
    key: str


class Spec(Strict):
    """One run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
    """Names the output folder and the tracked run; never enters a key."""
    seed: int = 17
    """Everything random is derived from it, by purpose."""
    seeds: Annotated[list[int], Field(min_length=1)] | None = None
    """Repeats the whole run with each seed; the verdict then includes the spread between them."""
    model: ModelSpec = ModelSpec()
    data: DataSpec
    scoring: ScoringSpec = ScoringSpec()
    splitting: SplittingSpec = SplittingSpec()
    curriculum: CurriculumSpec = CurriculumSpec()
    controls: list[Control] = ["one_off", "random_tiers"]
    """Curricula run beside the main one: all at once, random tiers of the same sizes, the hardest tier alone, all at
    once with the phases' restarts of the learning rate, or `{only: [tiers]}`."""
    evaluation: EvaluationSpec = EvaluationSpec()
    tracking: TrackingSpec = TrackingSpec()
    compute: ComputeSpec = ComputeSpec()
    secrets: dict[str, SecretRef] = {}
    """Secrets by name, as the cluster keeps them; never a value."""
    store: str = "runs/store"
    """A folder, relative to the working directory."""

    @property
    def all_seeds(self) -> list[int]:
        """The seeds of the repetitions, the main one first."""
        return list(self.seeds) if self.seeds is not None else [self.seed]

    @property
    def data_seed(self) -> int:
        """The seed of the held-out part and the mixing."""
        return self.seed if self.data.seed is None else self.data.seed

    @model_validator(mode="after")
    def _tiers_exist(self) -> Self:
        tiers = self.splitting.tiers
        every = set(range(1, tiers + 1))
        order = self.curriculum.order
        if self.curriculum.phases is None and isinstance(order, list) and sorted(order) != sorted(every):
            raise ValueError(f"curriculum.order {order} must name each of the tiers 1 to {tiers} once")
        for phase in [*(self.curriculum.phases or []), *self.curriculum.then]:
            if set(phase.tiers) - every:
                raise ValueError(f"a phase names the tiers {phase.tiers}; there are the tiers 1 to {tiers}")
            if len(set(phase.tiers)) != len(phase.tiers):
                raise ValueError(f"a phase names the tiers {phase.tiers}; each may be named once")
        trained = {tier for phase in self.curriculum.phases or [] for tier in phase.tiers} or every
        for control in self.controls:
            if isinstance(control, OnlyControl) and set(control.only) - every:
                raise ValueError(f"a control names the tiers {control.only}; there are the tiers 1 to {tiers}")
            if isinstance(control, OnlyControl) and set(control.only) - trained:
                raise ValueError(f"a control names the tiers {control.only}; the phases train on {sorted(trained)}")
        if self.seeds is not None and len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {self.seeds} must differ from each other")
        return self
