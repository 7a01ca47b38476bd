"""Keys: the digest of everything that determines a result, and of nothing else.

Names of runs and controls, tracking, storage and logging never enter. `prepared` keys are made where data is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from components.common.curriculum import PhasePlan, steps_of
from components.common.digests import digest, digest_lines, seed_for
from components.common.machine import installed
from components.common.rewards import describe
from components.common.spec import Spec
from components.common.spec_phases import GrpoSettings
from components.common.verifiers import VERIFIERS

SCORING_VERSION = 1
SPLITTING_VERSION = 1
TRAINING_VERSION = 3
EVALUATION_VERSION = 2
"""Raised when a stage's code changes what it makes; results made before are then no longer found."""

MODEL_METHODS = ("loss", "ifd")
"""The scoring methods that ask a model."""


def versions(*more: str) -> dict[str, str]:
    """The packages whose version can change a number; of `more`, those that are installed."""
    return installed(("torch", "transformers", "accelerate", "trl", "tokenizers", *more))


def _machine(spec: Spec) -> dict[str, Any]:
    return {
        "dtype": spec.model.dtype,
        "attention": spec.model.attention,
        "device": "cuda" if spec.compute.gpus_per_worker else "cpu",
        "versions": versions(),
    }


def scores_key(spec: Spec, prepared: str, base: str, scorer: str) -> str:
    """Key of a scores entry.

    Args:
        spec: The run's spec.
        prepared: Key of the prepared examples.
        base: Digest of the base model, whose tokenizer counts the tokens.
        scorer: Digest of the scorer's model.
    """
    scoring = spec.scoring
    asks = scoring.method in MODEL_METHODS
    return digest(
        {
            "version": SCORING_VERSION,
            "prepared": prepared,
            "base": base,
            "method": scoring.method,
            "max_length": spec.curriculum.sft.max_length,
            "column": scoring.column if scoring.method == "column" else None,
            "scorer": scorer if asks else None,
            "batch_tokens": scoring.batch_tokens if asks else None,
            "machine": _machine(spec) if asks else None,
        }
    )


def splits_key(spec: Spec, scores: str, seed: int) -> str:
    """Key of a splits entry; the seed gives the order within the tiers."""
    return digest(
        {
            "version": SPLITTING_VERSION,
            "scores": scores,
            "splitting": spec.splitting.model_dump(mode="json"),
            "seed": seed_for(seed, "order"),
        }
    )


def phase_key(
    spec: Spec,
    plan: PhasePlan,
    order: Sequence[str],
    parent: str,
    seed: int,
    span: tuple[int, int] | None = None,
    selection: str | None = None,
) -> str:
    """Key of a phase.

    Args:
        spec: The run's spec.
        plan: The phase; of it only the method, the hyperparameters and how it makes its data enter.
        order: The ids of the examples in the promised order; ids are digests of content.
        parent: The parent phase's key, or the base model's digest.
        seed: The run's seed.
        span: The phase's place on a schedule that it shares with other phases, see `curriculum.schedule_spans`.
        selection: Digest of the examples that its checkpoint is selected on, if it is selected.
    """
    settings, compute = plan.settings.model_dump(mode="json"), spec.compute
    for name in ("epochs", "steps"):  # the sequence holds them
        settings.pop(name, None)
    if settings["select"] == "last":
        del settings["select_every"]
    adapter = spec.model.adapter
    if adapter is None:
        del settings["adapter"]
    if span == (0, steps_of(plan.settings, len(order))):
        span = None
    extra = [*(["peft"] if adapter else []), *(["liger-kernel"] if compute.liger else [])]
    if adapter and adapter.quantize != "none":
        extra.append("bitsandbytes")
    if compute.strategy == "deepspeed_zero3":
        extra.append("deepspeed")
    if plan.method == "grpo" and compute.gpus_per_worker and settings["generator"] != "transformers":
        extra.append("vllm")
    return digest(
        {
            "version": TRAINING_VERSION,
            "parent": parent,
            "method": plan.method,
            "data": digest_lines(order),
            "generate": None if plan.generate is None else plan.generate.model_dump(mode="json"),
            "judges": _judges(plan),
            "measuring": _measuring(spec, plan),
            "settings": settings,
            "adapter": None if adapter is None else adapter.model_dump(mode="json"),
            "span": span,
            "selection": selection,
            "seed": seed_for(seed, "training"),
            "world_size": compute.workers,
            "strategy": compute.strategy,
            "liger": compute.liger,
            "machine": {**_machine(spec), "versions": versions(*extra)},
        }
    )


def _judges(plan: PhasePlan) -> list[dict[str, str]]:
    """What judges the replies that a phase samples: its verifiers' packages, its functions' source."""
    named: list[str] = []
    if isinstance(plan.settings, GrpoSettings):
        named = plan.settings.rewards or sorted(VERIFIERS)  # by itself, each example names one of them
    elif plan.generate is not None:
        named = sorted(VERIFIERS) if plan.generate.verifier is None else [plan.generate.verifier]
    if plan.settings.select == "best(accuracy)":
        named = list(dict.fromkeys([*named, *sorted(VERIFIERS)]))
    return [describe(name) for name in named]


def _measuring(spec: Spec, plan: PhasePlan) -> dict[str, int]:
    """The settings of evaluation that training itself uses: where it selects, and for a reference's likelihoods.

    How examples are batched changes the last digits, and those can change which checkpoint is best.
    """
    evaluation, selects = spec.evaluation, plan.settings.select != "last"
    used = {"batch_tokens": evaluation.batch_tokens} if selects or plan.method == "dpo" else {}
    if plan.settings.select == "best(accuracy)":
        used["max_new_tokens"] = evaluation.max_new_tokens
    return used


def evaluation_key(spec: Spec, model: str, held_out: str) -> str:
    """Key of an evaluations entry.

    Args:
        spec: The run's spec.
        model: The phase's key, or the base model's digest.
        held_out: Digest of the held-out examples and their tiers.
    """
    return digest(
        {
            "version": EVALUATION_VERSION,
            "model": model,
            "held_out": held_out,
            "settings": spec.evaluation.model_dump(mode="json"),
            "without_selection": spec.curriculum.selects,
            "max_length": spec.curriculum.sft.max_length,
            "seed": seed_for(spec.data_seed, "bootstrap"),
            "machine": _machine(spec),
        }
    )
