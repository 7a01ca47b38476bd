"""Which of a sweep's trials must be looked at before anything starts, so that all of them have been."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from components.common.spec import Spec


def distinct(specs: Iterable[Spec]) -> Iterator[Spec]:
    """One spec for each set of what a machine or a cluster must be fit for; what trials share is looked at once.

    Orders, numbers of tiers and seeds are left out: they ask for no other data, model, place or memory.
    """
    seen: set[str] = set()
    for spec in specs:
        about = spec.model_dump(include={"model", "data", "compute", "evaluation", "store", "tracking", "secrets"})
        curriculum = spec.curriculum.model_dump(exclude={"order", "replay"})
        name = repr((about, spec.scoring.model, curriculum, spec.controls))
        if name not in seen:
            seen.add(name)
            yield spec
