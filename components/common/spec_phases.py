"""The part of the spec that says how phases are trained: methods with their hyperparameters, and the curriculum."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from components.common.spec_base import Fraction, Source, Strict, Tier

Method = Literal["sft", "dpo", "grpo"]
Schedule = Literal["cosine", "linear", "constant"]
Batching = Literal["auto", "packed", "grouped", "padded"]
Adaptation = Literal["continue", "merge", "fresh"]
PreferenceLoss = Literal["sigmoid", "sigmoid_norm", "ipo"]
PolicyLoss = Literal["dapo", "grpo", "dr_grpo", "bnpo"]
Generator = Literal["auto", "vllm", "transformers"]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Divergence = Annotated[str, Field(pattern=r"^(fail|rollback\((0?\.[0-9]*[1-9][0-9]*)\))$")]
Selection = Annotated[str, Field(pattern=r"^(last|best\((loss|accuracy)\))$")]


class Optimising(Strict):
    """What every method has: the optimizer, its schedule, and how a phase stands to the one before it."""

    learning_rate: Positive = 5.0e-6
    """Peak learning rate of AdamW."""
    batch_size: Count = 128
    """Examples in one optimizer step, over all workers (grpo: prompts)."""
    micro_batch_size: Count | None = None
    """Examples in one forward pass of one worker (grpo: completions); null: as many as the step needs from it."""
    weight_decay: NotNegative = 0.1
    """AdamW's; not applied to biases and norms."""
    warmup_ratio: Fraction = 0.1
    """Share of the phase's steps in which the learning rate rises."""
    schedule: Schedule = "cosine"
    """How the learning rate falls after the warm-up."""
    adam_betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """AdamW's."""
    max_grad_norm: Positive = 1.0
    """Longer gradients are cut to this norm."""
    max_length: Annotated[int, Field(ge=8)] = 2048
    """Tokens of an example that are kept; longer ones are cut at the end and counted."""
    adapter: Adaptation = "continue"
    """With `model.adapter`: `continue` trains the parent's adapter on, `merge` merges it into the weights and adds a
    new one, `fresh` leaves the parent's adapter aside and starts a new one on the same weights."""
    carry: Literal["none", "optimizer"] = "none"
    """`optimizer` keeps the parent's optimizer state, and one schedule spans the phases that carry on from each
    other; `none` starts both anew, as the code of Phased IFT does."""
    select: Selection = "last"
    """The checkpoint that the phase leaves: `last`, or the `best(loss)` or `best(accuracy)` on half of the held-out
    part, which evaluation then leaves out."""
    select_every: Count | None = None
    """Steps between the checkpoints that `select` chooses from; null: an eighth of the phase."""
    on_divergence: Divergence = "fail"
    """At a loss that is not a number: `fail`, or `rollback(0.5)`: back to the last good checkpoint with the learning
    rate times the factor, three times at most."""


class SftSettings(Optimising):
    """Hyperparameters of a supervised phase. Defaults: Phased IFT (arXiv 2406.04371), where it has one."""

    epochs: Count = 2
    """Passes over the phase's examples."""
    batch_size: Count = 128
    """Examples in one optimizer step, over all workers (Tulu 3; the paper gives 16 for each device)."""
    batching: Batching = "auto"
    """`packed`: examples share rows that keep them apart; `grouped`: like lengths share a step, shuffled within
    windows of eight steps; `padded`; `auto`: packed where the model is seen to keep examples apart, else grouped."""


class DpoSettings(Optimising):
    """Hyperparameters of a preference phase. Defaults: Tulu 3 (arXiv 2411.15124, table 13)."""

    epochs: Count = 1
    """Passes over the phase's pairs."""
    learning_rate: Positive = 5.0e-7
    """Peak learning rate of AdamW."""
    weight_decay: NotNegative = 0.0
    """AdamW's; not applied to biases and norms."""
    schedule: Schedule = "linear"
    """How the learning rate falls after the warm-up."""
    loss: PreferenceLoss = "sigmoid_norm"
    """`sigmoid` (DPO, arXiv 2305.18290), `sigmoid_norm` (length-normalised, Tulu 3), `ipo` (arXiv 2310.12036)."""
    beta: Positive | None = None
    """Strength of the pull to the reference, the phase's start; null: 5 for `sigmoid_norm`, else 0.1."""


class GrpoSettings(Optimising):
    """Hyperparameters of a phase of reinforcement learning with verifiable rewards (GRPO, arXiv 2402.03300)."""

    steps: Count | None = None
    """Optimizer steps; the prompts come again, in a new order, as often as that takes; null: `epochs` passes."""
    epochs: Count = 1
    """Passes over the phase's prompts, where `steps` is null; the last step is filled up from a further pass."""
    learning_rate: Positive = 1.0e-6
    """Peak learning rate of AdamW."""
    batch_size: Count = 8
    """Prompts in one optimizer step, over all workers; a multiple of the workers."""
    weight_decay: NotNegative = 0.0
    """AdamW's; not applied to biases and norms."""
    warmup_ratio: Fraction = 0.0
    """Share of the phase's steps in which the learning rate rises."""
    schedule: Schedule = "constant"
    """How the learning rate falls after the warm-up."""
    samples: Annotated[int, Field(ge=2)] = 8
    """Completions of one prompt: the group that rewards are compared in."""
    temperature: Positive = 1.0
    """Of the sampling."""
    max_new_tokens: Count = 256
    """Longest completion, tokens."""
    rewards: list[str] = []
    """Verifiers, or functions `package.module:name`; their mean is the reward. Empty: each example's own verifier."""
    beta: NotNegative = 0.0
    """Weight of the KL divergence from the phase's start; 0: not computed."""
    epsilon: Positive = 0.2
    """Clip range of the probability ratio."""
    loss: PolicyLoss = "dapo"
    """How tokens are averaged (names of TRL): `dapo` over the batch's tokens, `grpo` within each completion first."""
    generator: Generator = "auto"
    """`vllm` on a GPU; `transformers` anywhere; `auto`: vllm where there is a GPU and it is installed."""


Settings = SftSettings | DpoSettings | GrpoSettings
SETTINGS: dict[Method, type[Settings]] = {"sft": SftSettings, "dpo": DpoSettings, "grpo": GrpoSettings}


class GenerateSpec(Strict):
    """Preference pairs made from the phase's own model: sampled replies, ranked by a verifier."""

    samples: Annotated[int, Field(ge=2)] = 8
    """Replies to each prompt; the first that is accepted and the first that is not make the pair."""
    temperature: Positive = 1.0
    """Of the sampling."""
    max_new_tokens: Count = 256
    """Longest reply, tokens."""
    verifier: str | None = None
    """The verifier that ranks; null: each example's own."""


class PhaseSpec(Strict):
    """One phase of an explicit `curriculum.phases` or of `curriculum.then`.

    A hyperparameter that is absent has the value of `curriculum.<method>`.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$", max_length=64)] | None = None
    """Shown in reports; after the tiers or the method where absent."""
    method: Method = "sft"
    """The training method."""
    tiers: list[Tier] = []
    """The tiers that the phase trains on."""
    data: list[Source] = []
    """Data of the phase's own, instead of tiers; what the held-out part holds is left out and counted."""
    replay: Fraction = 0.0
    """Share of the phase's examples drawn from the tiers of earlier phases."""
    generate: GenerateSpec | None = None
    """dpo: make the pairs from the phase's own model on the prompts of its data."""

    epochs: Count | None = None
    learning_rate: Positive | None = None
    batch_size: Count | None = None
    micro_batch_size: Count | None = None
    weight_decay: NotNegative | None = None
    warmup_ratio: Fraction | None = None
    schedule: Schedule | None = None
    adam_betas: tuple[Fraction, Fraction] | None = None
    max_grad_norm: Positive | None = None
    max_length: Annotated[int, Field(ge=8)] | None = None
    adapter: Adaptation | None = None
    carry: Literal["none", "optimizer"] | None = None
    select: Selection | None = None
    select_every: Count | None = None
    on_divergence: Divergence | None = None
    batching: Batching | None = None
    """sft"""
    loss: PreferenceLoss | PolicyLoss | None = None
    """dpo, grpo"""
    beta: NotNegative | None = None
    """dpo, grpo"""
    steps: Count | None = None
    """grpo"""
    samples: Annotated[int, Field(ge=2)] | None = None
    """grpo"""
    temperature: Positive | None = None
    """grpo"""
    max_new_tokens: Count | None = None
    """grpo"""
    rewards: list[str] | None = None
    """grpo"""
    epsilon: Positive | None = None
    """grpo"""
    generator: Generator | None = None
    """grpo"""

    @property
    def overrides(self) -> dict[str, object]:
        """The hyperparameters that the phase sets itself."""
        own = {"name", "method", "tiers", "data", "replay", "generate"}
        given = {name: getattr(self, name) for name in type(self).model_fields if name not in own}
        return {name: value for name, value in given.items() if value is not None}

    def resolved(self, shared: Settings) -> Settings:
        """The phase's hyperparameters: its own over the shared ones of its method."""
        return type(shared).model_validate({**shared.model_dump(), **self.overrides})

    @model_validator(mode="after")
    def _fits_its_method(self) -> Self:
        known = SETTINGS[self.method].model_fields
        foreign = sorted(set(self.overrides) - set(known))
        if foreign:
            raise ValueError(f"{', '.join(f'`{name}`' for name in foreign)} is not a setting of {self.method}")
        if self.generate is not None and self.method != "dpo":
            raise ValueError("`generate` makes preference pairs: it belongs to a dpo phase")
        if bool(self.tiers) == bool(self.data):
            raise ValueError("a phase must name its `tiers` or its own `data`, one of them")
        if self.data and self.replay:
            raise ValueError("`replay` draws from tiers: it belongs to a phase with `tiers`")
        if self.method == "dpo" and self.tiers and self.generate is None:
            raise ValueError("a dpo phase on tiers needs `generate`: tiers hold no rejected replies")
        if self.method == "grpo" and self.epochs is not None and self.steps is not None:
            raise ValueError("`steps` and `epochs` both say how long the phase is; give one")
        self._allowed()
        return self

    def _allowed(self) -> None:
        """What the method allows of a name that several have (`beta`, `loss`)."""
        try:
            SETTINGS[self.method].model_validate(self.overrides)
        except ValidationError as error:
            told = [f"`{item['loc'][0]}` of a {self.method} phase: {item['msg']}" for item in error.errors()]
            raise ValueError("; ".join(told)) from None


class CurriculumSpec(Strict):
    """The order of the phases: a shorthand, or the list itself."""

    order: Literal["ascending", "descending", "random"] | list[Tier] = "ascending"
    """Order of the tiers; a list names each tier once."""
    replay: Fraction = 0.0
    """Share of each later phase that is drawn from the tiers already seen."""
    sft: SftSettings = SftSettings()
    dpo: DpoSettings = DpoSettings()
    grpo: GrpoSettings = GrpoSettings()
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
        return self

    def shared(self, method: Method) -> Settings:
        """The settings that phases of a method share."""
        found: Settings = getattr(self, method)
        return found

    @property
    def selects(self) -> bool:
        """Whether some phase chooses its checkpoint by a measure."""
        phases = [*(self.phases or []), *self.then]
        shorthand = [] if self.phases is not None else [self.sft]
        return any(s.select != "last" for s in [*shorthand, *(p.resolved(self.shared(p.method)) for p in phases)])


def rollback_factor(on_divergence: str) -> float | None:
    """What the learning rate is multiplied with after a rollback; None for `fail`."""
    found = re.fullmatch(r"rollback\((.+)\)", on_divergence)
    return None if found is None else float(found[1])
