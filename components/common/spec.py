"""The spec: what a user writes, with every default, its unit and its source.

This module and `spec_phases.py` hold the models and what can be checked on them alone. Reading a file, `--set`, and
the wording of errors are in `spec_file.py`; the expansion of the curriculum into phases is in `curriculum.py`.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from components.common.spec_base import Fraction, Source, Strict, Tier, texts
from components.common.spec_kubernetes import KubernetesSpec, ObjectName, PodSpec, VariableName
from components.common.spec_phases import CurriculumSpec, GrpoSettings, PhaseSpec, Settings, SftSettings


class AdapterSpec(Strict):
    """Low-rank adaptation (LoRA, arXiv 2106.09685) instead of training every weight."""

    rank: Annotated[int, Field(ge=1)] = 16
    """Rank of the update."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The update is scaled by alpha / rank."""
    dropout: Fraction = 0.0
    """Of the adapter's input while training."""
    target_modules: list[str] = []
    """Names of the linear layers that get an adapter; empty: all but the output layer."""
    quantize: Literal["none", "nf4"] = "none"
    """`nf4` keeps the base weights in four bits (QLoRA, arXiv 2305.14314); it needs a GPU and bitsandbytes."""


class ModelSpec(Strict):
    """The base model."""

    path: str = "lab"
    """`lab`, a folder, `s3://bucket/prefix`, or a Hugging Face id."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16` computes in it over float32 weights while training; weights are saved and evaluated in this type."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Attention implementation of transformers."""
    adapter: AdapterSpec | None = None
    """Train an adapter; null trains every weight."""


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


Workers = Annotated[int, Field(ge=1)]


Ray = Annotated[str, Field(pattern=r"^(local|rayjob|https?://[^\s/@?#]+)$")]


class StepCompute(Strict):
    """What one kind of step runs on, where that is not what training runs on; null: as training."""

    workers: Workers | None = None
    """Ray's workers."""
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] | None = None
    """0: the CPU."""
    ray: Ray | None = None
    """See `compute.ray`."""
    head: PodSpec | None = None
    """Ray's head, see `compute.kubernetes.head`."""
    worker: PodSpec | None = None
    """Each of Ray's workers, see `compute.kubernetes.worker`."""


class ComputeSpec(Strict):
    """What the heavy steps run on."""

    workers: Workers | Annotated[list[Workers], Field(min_length=2, max_length=2)] = 1
    """Training workers; 1 trains in the step's own process. `[min, max]`: as many as there is room for, also when
    some are lost on the way."""
    gpus_per_worker: Annotated[int, Field(ge=0, le=1)] = 0
    """0 trains on the CPU."""
    strategy: Literal["ddp", "fsdp", "deepspeed_zero3"] = "ddp"
    """How several workers share a model: whole copies, or shards of it (on GPUs only)."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    liger: bool = False
    """Fused kernels of the package liger-kernel; on GPUs only."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 100
    """Optimizer steps between the checkpoints that a phase goes on from after a fault."""
    ray: Ray = "local"
    """Where heavy steps run: `local`, on this machine; `rayjob`, a RayJob of KubeRay for each result; or the address of
    a Ray cluster's Jobs API, `http://HOST:8265`."""
    kubernetes: KubernetesSpec = KubernetesSpec()
    """The pods, where the pipeline runs on a cluster."""
    scoring: StepCompute = StepCompute()
    """What scoring with a model runs on."""
    evaluation: StepCompute = StepCompute()
    """What evaluations run on."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads of torch in all workers together; null: every core."""

    @property
    def most_workers(self) -> int:
        """The number of workers, the greatest where it may vary."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def least_workers(self) -> int:
        """The number of workers, the least where it may vary."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    def of(self, stage: Literal["scoring", "evaluation"]) -> ComputeSpec:
        """What the steps of a stage run on."""
        asked = self.scoring if stage == "scoring" else self.evaluation
        given = {name: getattr(asked, name) for name in asked.model_fields_set if getattr(asked, name) is not None}
        pods = {name: given.pop(name) for name in ["head", "worker"] if name in given}
        return self.model_copy(update={**given, "kubernetes": self.kubernetes.model_copy(update=pods)})

    @property
    def places(self) -> list[str]:
        """Where heavy steps run, each once: `local`, `rayjob`, or addresses of Jobs APIs."""
        return list(dict.fromkeys((self.ray, self.of("scoring").ray, self.of("evaluation").ray)))

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.least_workers > self.most_workers:
            raise ValueError(f"workers {self.workers}: the first is the least, the second the greatest number")
        return self


class SecretRef(Strict):
    """A secret by name; its value is never written."""

    secret: ObjectName
    """The name of the cluster's secret."""
    key: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
    """The key within it."""


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
    secrets: dict[VariableName, SecretRef] = {}
    """Secrets by name, as the cluster keeps them; never a value. Each is a variable of the pods, its name in capitals
    (judge_api_key: JUDGE_API_KEY)."""
    store: str = "runs/store"
    """A folder, relative to the working directory, or `s3://bucket/prefix`."""

    @property
    def all_seeds(self) -> list[int]:
        """The seeds of the repetitions, the main one first."""
        return list(self.seeds) if self.seeds is not None else [self.seed]

    @property
    def data_seed(self) -> int:
        """The seed of the held-out part and the mixing."""
        return self.seed if self.data.seed is None else self.data.seed

    def at(self, stage: Literal["scoring", "evaluation"]) -> Spec:
        """The spec as the steps of a stage read it: with their own compute."""
        return self.model_copy(update={"compute": self.compute.of(stage)})

    @model_validator(mode="after")
    def _store_is_a_place(self) -> Self:
        if "://" in self.store and not re.match(r"s3://[^/]+", self.store):
            raise ValueError(f"store {self.store!r} is neither a folder nor `s3://bucket/prefix`")
        return self

    @model_validator(mode="after")
    def _addresses_hold_no_password(self) -> Self:
        """An address goes into records, compiled pipelines and error messages; only tracking's is taken apart first."""
        if re.match("https?://[^?#]*[?#]", self.tracking.uri):
            raise ValueError("tracking.uri is an address of a server: it has no `?` or `#` in it")
        for key, value in texts(self.model_dump(mode="json")):
            if key != "tracking.uri" and re.match(r"(s3|https?)://[^/?#]*@", value, re.IGNORECASE):
                raise ValueError(f"{key} holds a user or a password: give it by the environment, or under `secrets`")
        return self

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
        if self.seeds is not None and len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {self.seeds} must differ from each other")
        return self

    @model_validator(mode="after")
    def _controls_fit(self) -> Self:
        every = set(range(1, self.splitting.tiers + 1))
        phases = self.curriculum.phases or []
        if self.controls and any(phase.method != "sft" or phase.data for phase in phases):
            raise ValueError(
                "controls deal the tiers of sft phases anew: put phases of other methods or with `data` under "
                "`curriculum.then`, or set `controls: []`"
            )
        trained = {tier for phase in phases for tier in phase.tiers} or every
        for control in self.controls:
            if isinstance(control, OnlyControl) and set(control.only) - every:
                raise ValueError(f"a control names the tiers {control.only}; there are the tiers 1 to {len(every)}")
            if isinstance(control, OnlyControl) and set(control.only) - trained:
                raise ValueError(f"a control names the tiers {control.only}; the phases train on {sorted(trained)}")
        return self

    @model_validator(mode="after")
    def _phases_follow(self) -> Self:
        """What a phase needs of the one before it, and of the workers."""
        curriculum = self.curriculum
        tiers = [PhaseSpec(tiers=[tier]) for tier in range(1, self.splitting.tiers + 1)]
        before: Settings | None = None
        for phase in [*(curriculum.phases or tiers), *curriculum.then]:
            settings = phase.resolved(curriculum.shared(phase.method))
            if before is None and phase.carry is None:
                settings = settings.model_copy(update={"carry": "none"})  # the first phase has nothing to carry over
            if settings.carry == "optimizer":
                self._carries(phase, settings, before)
            self._can_be_trained(phase, settings)
            before = settings
        return self

    def _carries(self, phase: PhaseSpec, settings: Settings, before: Settings | None) -> None:
        if not isinstance(settings, SftSettings) or phase.data or not isinstance(before, SftSettings):
            raise ValueError(
                "`carry: optimizer` shares one schedule, whose length only phases on tiers can tell: it belongs to an "
                "sft phase on tiers, behind another one"
            )
        if before.select != "last":
            raise ValueError("`carry: optimizer` goes on from the parent's last step, and the parent leaves its best")
        if self.model.adapter is not None and settings.adapter != "continue":
            raise ValueError("`carry: optimizer` needs `adapter: continue`: another adapter has other weights")
        if self.compute.strategy != "ddp":
            raise ValueError("`carry: optimizer` needs `compute.strategy: ddp`: a spread optimizer is not kept")

    def _can_be_trained(self, phase: PhaseSpec, settings: Settings) -> None:
        compute, adapter = self.compute, self.model.adapter
        if settings.select != "last" and compute.strategy != "ddp":
            raise ValueError(f"`select: {settings.select}` measures a whole model: it needs `compute.strategy: ddp`")
        if settings.on_divergence != "fail" and compute.strategy == "deepspeed_zero3":
            raise ValueError("`on_divergence: rollback` needs checkpoints, and deepspeed_zero3 keeps none in a phase")
        if adapter is not None and adapter.quantize != "none" and settings.adapter == "merge":
            raise ValueError("`adapter: merge` cannot merge into weights of four bits: use `continue`, or no quantize")
        if not isinstance(settings, GrpoSettings):
            return
        counts = range(compute.least_workers, compute.most_workers + 1)
        uneven = [count for count in counts if settings.batch_size % count]
        if uneven:
            raise ValueError(
                f"a grpo phase has {settings.batch_size} prompts in a step, which {uneven[0]} workers cannot share "
                "evenly: make `batch_size` a multiple of `compute.workers`"
            )
        if settings.micro_batch_size is not None and settings.micro_batch_size < settings.samples:
            raise ValueError(
                f"`micro_batch_size` of a grpo phase counts completions, and {settings.micro_batch_size} do not hold "
                f"one group of {settings.samples} `samples`"
            )
