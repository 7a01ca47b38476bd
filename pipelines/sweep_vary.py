"""What the space of a sweep may vary: what changes how a curriculum trains, and nothing that judges or keeps it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.common.errors import SpecError
from components.common.spec import Spec
from components.common.spec_file import allowed_keys

if TYPE_CHECKING:
    from pipelines.sweep_spec import SweepSpec

ORDER = "curriculum.order"
TIERS = "splitting.tiers"

_BASE = "set it in the base spec, or by `--set`"
_SEEDS = "`search.seeds` runs the promising trials with several seeds, and compares them over these"
_KEEPS = "it says where a run is kept, not how it trains"
_FIXED = {
    "name": ("a name changes nothing", _BASE),
    "seed": ("trials that differ in luck alone are one trial", _SEEDS),
    "seeds": ("trials that differ in luck alone are one trial", _SEEDS),
    "data.seed": ("it decides the held-out part, which is the same in all trials", f"{_BASE}; {_SEEDS}"),
    "data.held_out": ("all trials are judged on the same held-out part", _BASE),
    "evaluation": ("all trials are measured alike", _BASE),
    "tracking": (_KEEPS, _BASE),
    "store": (_KEEPS, _BASE),
    "secrets": (_KEEPS, _BASE),
    "compute": ("it says what phases run on, and the slots of the sweep are counted for one answer", _BASE),
}
"""What must not be in a space, even with one value: why, and what to do instead."""

_MOVES = ("splitting", "scoring", "data", "model", "curriculum.sft.max_length")
"""What decides which examples are in a tier: of a model its tokenizer, and what it finds hard."""


def _touches(key: str, other: str) -> bool:
    """Whether setting the one changes the other: they are the same, or one is within the other."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _varied(space: Mapping[str, Any]) -> Iterator[str]:
    """The keys of a space that have more than one value."""
    for key, dimension in space.items():
        if not isinstance(dimension, list) or any(value != dimension[0] for value in dimension):
            yield key


def check_keys(space: Mapping[str, Any], path: Path) -> None:
    """See that a space's keys exist, and make sense there.

    Raises:
        SpecError: Naming the first that does not.
    """
    for key in space:
        parts = key.split(".")
        for place, name in enumerate(parts):
            if name.isdecimal():
                continue
            allowed = allowed_keys(parts[:place])
            if allowed and name not in allowed:
                near = difflib.get_close_matches(name, allowed, n=1)
                hint = f"did you mean `{'.'.join([*parts[:place], near[0]])}`? " if near else ""
                raise SpecError(
                    f"the sweep {path}: space.{key}: the spec has no such key; {hint}allowed: {', '.join(allowed)}",
                    "docs/spec.md lists every key",
                )
        for fixed, (reason, remedy) in _FIXED.items():
            if _touches(key, fixed):
                within = "" if f"{key}.".startswith(f"{fixed}.") else f" holds `{fixed}`, which"
                raise SpecError(f"the sweep {path}: space.{key}{within} cannot be varied: {reason}", remedy)
    for key in _varied(space):
        if key == "controls":
            raise SpecError(
                f"the sweep {path}: space.controls has several values: controls run beside the main curriculum, which "
                "alone is compared, so its trials would be compared with their own twins",
                "give one list of controls, which all trials run: `controls: [[one_off]]`",
            )


def check_base(spec: SweepSpec, base: Spec, path: Path) -> None:
    """See that a sweep goes with its base spec, and its objective with what it varies.

    Raises:
        SpecError: If a key of the base spec makes one of the sweep meaningless, or trials could not be compared.
    """
    if base.seeds is not None:
        raise SpecError(
            f"the sweep {path}: the base spec repeats its run with `seeds`",
            "use `search.seeds`, and drop `seeds` there",
        )
    if ORDER in spec.space and base.curriculum.phases is not None:
        raise SpecError(
            f"the sweep {path}: the base spec lists `curriculum.phases`, so {ORDER} changes nothing",
            "drop the list from the base spec",
        )
    if any(_touches(key, "data") for key in _varied(spec.space)) and base.data.held_out.fraction > 0:
        raise SpecError(
            f"the sweep {path}: space.{next(key for key in _varied(spec.space) if _touches(key, 'data'))}: a part of "
            "the training data is held out, so trials on other data would be judged on other examples",
            "hold out a source of its own: `data.held_out: {fraction: 0, sources: [...]}`",
        )
    known = {"loss": "loss.nats_per_token", "verifiable": "verifiable.accuracy"}
    names = [known[suite] for suite in base.evaluation.suites]
    if spec.objective.metric not in names:
        raise SpecError(
            f"the sweep {path}: objective.metric {spec.objective.metric!r} is measured by no suite of the base spec; "
            f"there are: {', '.join(names)}",
            "name one of them, or add its suite to `evaluation.suites`",
        )
    if found := re.fullmatch(r"tier_(\d+)", spec.objective.on):
        _check_tier(spec, base, int(found[1]), path)
    cuts = spec.space.get("splitting.cut", [base.splitting.cut])
    if TIERS in spec.space and "thresholds" in cuts and "splitting.thresholds" not in spec.space:
        raise SpecError(
            f"the sweep {path}: space.{TIERS} varies the number of tiers under fixed thresholds",
            "use `splitting.cut: quantiles` or `tokens`, which work for any number",
        )


def _check_tier(spec: SweepSpec, base: Spec, tier: int, path: Path) -> None:
    counts = spec.space.get(TIERS, [base.splitting.tiers])
    fewest = min(counts if isinstance(counts, list) else counts.integers)  # type: ignore[union-attr]  # of a count
    if tier > fewest:
        raise SpecError(
            f"the sweep {path}: objective.on is {spec.objective.on}, and there are trials of {fewest} tiers",
            f"take one up to tier_{fewest}, or `held_out`",
        )
    for key in _varied(spec.space):
        if any(_touches(key, one) for one in _MOVES) and not f"{key}.".startswith("model.adapter."):
            raise SpecError(
                f"the sweep {path}: objective.on is {spec.objective.on}, and space.{key} changes which examples are in "
                "that tier, so trials would be judged on different ones",
                "use `on: held_out`, or the name of a slice, which are the same in all trials",
            )
