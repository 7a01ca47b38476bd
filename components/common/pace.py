"""How fast phases of a model were, from the manifests of those that the store has: what a plan's times stand on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from components.common.curriculum import PhasePlan
from components.common.errors import Damaged
from components.common.spec import Spec
from components.common.store import Store


def alike(spec: Spec, plan: PhasePlan) -> dict[str, Any]:
    """What a phase's speed depends on beside its model and the number of its tokens; stands in its manifest.

    Of preference pairs and of prompts the tokens are not known beforehand, so there only phases of the same lengths
    are alike, and their examples are counted.
    """
    compute, adapter = spec.compute, spec.model.adapter
    settings = plan.settings.model_dump(mode="json")
    sizes = () if plan.method == "sft" else ("max_length", "max_new_tokens", "samples")
    return {
        "method": plan.method,
        "device": "cuda" if compute.gpus_per_worker else "cpu",
        "workers": compute.workers,
        "strategy": compute.strategy,
        "dtype": spec.model.dtype,
        "attention": spec.model.attention,
        "adapter": None if adapter is None else [adapter.rank, adapter.quantize],
        "gradient_checkpointing": compute.gradient_checkpointing,
        "liger": compute.liger,
        "threads": compute.threads,
        "generates": None if plan.generate is None else plan.generate.model_dump(mode="json"),
        **{name: settings.get(name) for name in sizes},
    }


@dataclass(frozen=True, slots=True)
class Pace:
    """Phases that have run, the newest last: (what they were like, seconds, tokens, examples)."""

    ran: list[tuple[dict[str, Any], float, int, int]]

    def seconds(self, like: dict[str, Any], examples: int | None, tokens: int | None) -> float | None:
        """What a phase may take, from the newest one that was alike; None where there is none.

        Args:
            like: See `alike`.
            examples: It will see, or None.
            tokens: It will see, or None.
        """
        for ran, seconds, ran_tokens, ran_examples in reversed(self.ran):
            if ran != like:
                continue
            if like["method"] == "sft":
                return None if tokens is None or not ran_tokens else seconds * tokens / ran_tokens
            return None if examples is None or not ran_examples else seconds * examples / ran_examples
        return None


def pace(store: Store, base: str) -> Pace:
    """How fast the phases of a store were that came of a base model.

    Args:
        store: Where phases are looked for, by listing them.
        base: Digest of the base model.
    """
    found: dict[str, dict[str, Any]] = {}
    created: dict[str, float] = {}
    for kind, key in store.entries.listed():
        if kind != "phases":
            continue
        try:
            entry = store.find(kind, key)
        except Damaged:
            continue
        if entry is not None and "alike" in entry.info:
            found[key], created[key] = entry.info, entry.manifest.created
    ours = [key for key in sorted(found, key=lambda one: created[one]) if _root(key, found) == base]
    return Pace([_ran(found[key]) for key in ours])


def _ran(info: dict[str, Any]) -> tuple[dict[str, Any], float, int, int]:
    return info["alike"], float(info["train_seconds"]), int(info["tokens"]), int(info["sequence"])


def _root(key: str, found: dict[str, dict[str, Any]]) -> str:
    """The digest of the model that a phase came of, through its parents."""
    seen: set[str] = set()
    while key in found and key not in seen:
        seen.add(key)
        key = str(found[key].get("parent_key", ""))
    return key
