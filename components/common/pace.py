"""How fast phases of a model, and their evaluations, were: what a plan's times stand on.

`pace/<digest>` is a register of the store for every sort of them (the base model, and what `alike` says): what the
last few took. It is read by its key. Losing it costs only the estimates.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import uuid
from dataclasses import dataclass, field
from typing import Any

from components.common.curriculum import PhasePlan
from components.common.digests import digest
from components.common.errors import UserError
from components.common.models import model_digest
from components.common.objects import NEW
from components.common.spec import Spec
from components.common.store import Store

_LAST = 5
"""Phases of a sort that are remembered."""
_PATIENCE = 10.0
"""Seconds for which a store that does not answer is asked to remember one."""


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


def alike_evaluation(spec: Spec) -> dict[str, Any]:
    """The same of an evaluation, whose examples are counted.

    Args:
        spec: As the evaluation has it, `Spec.at("evaluation")`.
    """
    compute, adapter, asked = spec.compute, spec.model.adapter, spec.evaluation
    return {
        "method": "evaluation",
        "device": "cuda" if compute.gpus_per_worker else "cpu",
        "dtype": spec.model.dtype,
        "attention": spec.model.attention,
        "adapter": None if adapter is None else [adapter.rank, adapter.quantize],
        "threads": compute.threads,
        "suites": sorted(asked.suites),
        "max_new_tokens": asked.max_new_tokens,
    }


@dataclass(slots=True)
class Pace:
    """How fast the phases of a store were that came of a base model.

    Attributes:
        store: The store.
        base: Digest of the base model.
    """

    store: Store
    base: str
    _rates: dict[str, float | None] = field(default_factory=dict)

    def seconds(self, like: dict[str, Any], examples: int | None, tokens: int | None) -> float | None:
        """What a phase may take, from the last ones that were alike; None where there is none.

        Args:
            like: See `alike` and `alike_evaluation`.
            examples: It will see, or None.
            tokens: It will see, or None.
        """
        name = _name(self.base, like)
        if name not in self._rates:
            found = self.store.objects.look(name)
            rates = [] if found is None else _rates(found[0])
            self._rates[name] = statistics.median(rates) if rates else None
        rate, count = self._rates[name], tokens if _by_tokens(like) else examples
        return None if rate is None or count is None else count / rate


def note_pace(store: Store, spec: Spec, info: dict[str, Any]) -> None:
    """Remember how fast a phase was that has just been made; where the store does not take it, nothing is lost.

    Args:
        store: Where the phase is.
        spec: Names the base model.
        info: The phase's, as its manifest has it: `alike`, `train_seconds`, `tokens`, and the examples as `sequence`.
    """
    like, seconds = info["alike"], float(info["train_seconds"])
    count = int(info["tokens"] if _by_tokens(like) else info["sequence"])
    if seconds <= 0 or count <= 0:
        return
    name = _name(model_digest(spec.model.path, store.memory), like)
    with contextlib.suppress(UserError):
        objects = store.objects.patient(_PATIENCE)
        for _ in range(_LAST):  # phases of one sort that end together; after that many, theirs will do
            found = objects.look(name)
            rates = [*([] if found is None else _rates(found[0])), count / seconds][-_LAST:]
            data = json.dumps({"rates": rates, "write": uuid.uuid4().hex}).encode()
            if objects.swap(name, data, NEW if found is None else found[1]) is not None:
                return


def _name(base: str, like: dict[str, Any]) -> str:
    return f"pace/{digest({'base': base, **like})}"


def _by_tokens(like: dict[str, Any]) -> bool:
    return bool(like["method"] == "sft")


def _rates(data: bytes) -> list[float]:
    """The tokens or examples a second of the last phases, the newest last; none where a register is damaged."""
    try:
        rates = [float(rate) for rate in json.loads(data)["rates"]]
    except (ValueError, KeyError, TypeError):
        return []
    return [rate for rate in rates if 0 < rate < float("inf")]
