"""Whether the evaluations of a sweep measure what decides: seen at the first, before the others are paid for."""

from __future__ import annotations

from components.common.errors import SpecError
from components.common.store import Store


class Measured:
    """Ends a sweep whose evaluations do not measure what decides.

    The spec tells which suites there are; which slices, and whether an answer can be verified, the first result does.

    Args:
        name: The metric's name in an evaluation.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._found = False

    def check(self, store: Store, key: str) -> None:
        """Look at an evaluation that has just been made.

        Raises:
            SpecError: If neither it nor one before it measured it.
        """
        entry = store.find("evaluations", key)
        names = sorted(entry.info["metrics"]) if entry is not None else []
        self._found = self._found or self._name in names
        if not self._found:
            raise SpecError(
                f"the objective {self._name} was not measured; measured were: {', '.join(names)}",
                "name one of them by `objective.metric` and `objective.on`; what is trained stays in the store",
            )
