"""The held-out examples that checkpoints are selected on.

A checkpoint chosen because it did best on some examples looks better on them than it is. So where a phase selects,
the held-out part is cut in two by a hash of the problem: one half selects, the other evaluates.
"""

from __future__ import annotations

from components.common.digests import unit_hash
from components.common.examples import Example


def for_selection(example: Example) -> bool:
    """Whether a held-out example selects rather than evaluates. Tests of their own (with a `slice`) only evaluate."""
    return selects(example.id, example.group, example.slice)


def selects(example: str, group: str | None, part: str | None) -> bool:
    """Likewise, by the example's id, group and slice."""
    return part is None and unit_hash(group or example, 0, "selection") < 0.5
