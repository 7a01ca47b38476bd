"""Drafts: what one row says, before it is an `Example`, and the checks that every format shares.

A row that cannot be used raises `Malformed` with a reason that names the column; equal mistakes have equal reasons,
so that they can be counted.
"""

import math
from dataclasses import dataclass, field
from typing import Any

Turn = tuple[str, str]
LONGEST_FIELD = 200
"""Longest string, in characters, that is kept in an example's `fields`."""


class Malformed(Exception):
    """A row, or a part of one, that cannot become an example; its text is the reason."""


@dataclass(slots=True)
class Draft:
    """One example in the making; the attributes are those of `Example`.

    Attributes:
        held_out: The row's own wish; None where it has none.
    """

    messages: tuple[Turn, ...]
    group: str | None = None
    rejected: str | None = None
    answer: str | None = None
    verifier: str | None = None
    slice: str | None = None
    held_out: bool | None = None
    fields: dict[str, Any] = field(default_factory=dict)


def kind(value: Any) -> str:
    """The JSON name of a value's type, for reasons."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def text(row: dict[str, Any], key: str) -> str:
    """A required, non-empty string.

    Raises:
        Malformed: If it is absent, of another type, or only white space.
    """
    value = row.get(key)
    if isinstance(value, str):
        if value and not value.isspace():
            return value
        raise Malformed(f"`{key}` is empty")
    raise Malformed(f"`{key}` is missing" if value is None else f"`{key}` is {kind(value)}, not a string")


def optional_text(row: dict[str, Any], key: str) -> str:
    """A string that may be absent, null or empty: then "".

    Raises:
        Malformed: If it is of another type.
    """
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Malformed(f"`{key}` is {kind(value)}, not a string")
    return "" if value.isspace() else value


def items(row: dict[str, Any], key: str) -> list[Any]:
    """A required, non-empty list.

    Raises:
        Malformed: If it is absent, of another type, or empty.
    """
    value = row.get(key)
    if isinstance(value, list):
        if value:
            return value
        raise Malformed(f"`{key}` is empty")
    raise Malformed(f"`{key}` is missing" if value is None else f"`{key}` is {kind(value)}, not a list")


def number(value: Any, key: str) -> float:
    """A finite number, also as a string with white space around it.

    Raises:
        Malformed: If it is none.
    """
    try:
        result = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        result = math.nan
    if not math.isfinite(result):
        raise Malformed(f"`{key}` is not a number")
    return result


def scalars(row: dict[str, Any], used: frozenset[str]) -> dict[str, Any]:
    """The row's other scalar columns: short strings, booleans and finite numbers."""
    return {key: value for key, value in row.items() if key not in used and _is_scalar(value)}


def _is_scalar(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= LONGEST_FIELD
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int)
