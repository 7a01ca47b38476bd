"""The optional columns that a row of every format may have.

They are `group`, `answer`, `verifier`, `slice`, `held_out`, and `difficulty`. A column of the format's own under one of
these names means what the format says.
"""

import math
from typing import Any

from components.common.phase_data import Required
from components.common.verifiers import VERIFIERS, fault
from components.preparing.drafts import Draft, Malformed, Turn, kind, number, scalars

EXTRAS = frozenset({"group", "answer", "verifier", "slice", "held_out", "difficulty"})


def drafted(row: dict[str, Any], found: tuple[Turn, ...], used: frozenset[str]) -> Draft:
    """The draft of a row's turns, with the row's optional columns and, as `fields`, its other scalar ones.

    Args:
        row: The row.
        found: Its turns.
        used: The columns that are no fields: the format's own and `EXTRAS`.

    Raises:
        Malformed: If an optional column is of another type, or a verifier is not known or cannot use the answer.
    """
    draft = Draft(found, fields=scalars(row, used))
    if not EXTRAS.isdisjoint(row):
        _give(draft, row)
    return draft


def lacking(draft: Draft, required: Required) -> str | None:
    """Why a draft is of no use to a phase's method, if it is not."""
    if required.rejected and draft.rejected is None:
        return f"no rejected reply, which {required.phase} needs"
    if required.verifier and draft.verifier is None:
        return f"no `answer` with a `verifier`, which {required.phase} needs"
    for name in required.usable:
        if draft.answer is None:
            return f"no `answer`, which {required.phase} needs"
        if (wrong := fault(name, draft.answer)) is not None:
            return f"`answer` is of no use to {name}, which {required.phase} asks: {wrong}"
    return None


def _give(draft: Draft, row: dict[str, Any]) -> None:
    draft.group = _name(row, "group")
    draft.answer = _name(row, "answer")
    draft.verifier = _name(row, "verifier")
    draft.slice = _name(row, "slice")
    draft.held_out = _flag(row.get("held_out"))
    if row.get("difficulty") not in (None, ""):
        draft.fields["difficulty"] = number(row["difficulty"], "difficulty")
    if draft.verifier is not None:
        if draft.verifier not in VERIFIERS:
            raise Malformed(f"`verifier` is {draft.verifier[:40]!a}; known are {', '.join(VERIFIERS)}")
        if draft.answer is None:
            raise Malformed("`verifier` is given, but `answer` is not")
        if (wrong := fault(draft.verifier, draft.answer)) is not None:
            raise Malformed(f"`answer` is of no use to the verifier {draft.verifier}: {wrong}")


def _name(row: dict[str, Any], key: str) -> str | None:
    """A string, or the text of a number; None where there is nothing but white space."""
    value = row.get(key)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Malformed(f"`{key}` is {kind(value)}, not a string")
    # All that have no number would otherwise be one group.
    if isinstance(value, float) and not math.isfinite(value):
        raise Malformed(f"`{key}` is not a finite number")
    return str(value)


def _flag(value: Any) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    # CSV has no booleans.
    known = {"": None, "true": True, "1": True, "false": False, "0": False}
    spelled = str(value).strip().lower()
    if spelled not in known:
        raise Malformed("`held_out` is neither true nor false")
    return known[spelled]
