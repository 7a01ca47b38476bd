"""Recognises the format of a file from its first rows, and says why it chose it."""

from collections.abc import Callable
from typing import Any

from components.common.errors import DataError

ROWS = 64
"""Rows that are looked at."""


def _has(*columns: str) -> Callable[[dict[str, Any]], bool]:
    return lambda row: all(column in row for column in columns)


def _solution(row: dict[str, Any]) -> bool:
    return "question" in row and isinstance(row.get("answer"), str) and "####" in row["answer"]


def _scored_pair(row: dict[str, Any]) -> bool:
    return "score" in row and isinstance(row.get("data"), list)


def _tree(row: dict[str, Any]) -> bool:
    return isinstance(row.get("prompt"), dict)


# In this order: the first that fits most rows is taken, so the more particular ones stand before those that they
# contain (a preference pair may carry `prompt` or `messages`; a self-instruct row has an `instruction` too).
_SIGNS: list[tuple[str, str, Callable[[dict[str, Any]], bool]]] = [
    ("hh", "`chosen` and `rejected`", _has("chosen", "rejected")),
    ("messages", "`messages`", _has("messages")),
    ("sharegpt", "`conversations`", _has("conversations")),
    ("oasst", "`prompt` as a message with replies", _tree),
    ("oasst", "`message_id`, `parent_id`, `role` and `text`", _has("message_id", "parent_id", "role", "text")),
    ("self_instruct", "`instruction` and `instances`", _has("instruction", "instances")),
    ("alpaca", "`instruction` and `output`", _has("instruction", "output")),
    ("dolly", "`instruction` and `response`", _has("instruction", "response")),
    ("phased_ift", "`score` and `data` as a list", _scored_pair),
    ("gsm8k", "`question` and `answer` with `####`", _solution),
    ("openorca", "`question` and `response`", _has("question", "response")),
    ("flan", "`prompt` and `completion`", _has("prompt", "completion")),
    ("flan", "`prompt` and `answer`", _has("prompt", "answer")),
    ("flan", "`inputs` and `targets`", _has("inputs", "targets")),
    ("flan", "`inputs_pretokenized` and `targets_pretokenized`", _has("inputs_pretokenized", "targets_pretokenized")),
]


def recognise(rows: list[Any], file: str) -> tuple[str, str]:
    """The format that fits most of a file's first rows, and the reason in words.

    Args:
        rows: The first rows, parsed; what is not an object is passed over.
        file: The file's name, for the error.

    Raises:
        DataError: If no format fits; it shows the columns seen and the formats known.
    """
    objects = [row for row in rows if isinstance(row, dict)]
    for name, signs, fits in _SIGNS:
        count = sum(1 for row in objects if fits(row))
        if count * 2 > len(objects):
            which = "the first row has" if len(rows) == 1 else f"the first {len(rows)} rows have"
            if count < len(rows):
                which = f"{count} of the first {len(rows)} rows have"
            return name, f"auto: {which} {signs}"
    seen: dict[str, None] = {}
    for row in objects:
        seen.update(dict.fromkeys(str(column) for column in row))
    # What is no valid Unicode could not be printed.
    columns = [column[:40].encode(errors="replace").decode() for column in list(seen)[:20]]
    shown = ", ".join(f"`{column}`" for column in columns) or "none (the rows are not objects)"
    known = "; ".join(dict.fromkeys(f"{name}: {signs}" for name, signs, _ in _SIGNS))
    raise DataError(
        f"{file}: no known format fits its rows; columns seen: {shown}",
        f"rename the columns to those of one format, and name it with `format` where it is not recognised ({known})",
    )


def is_flat_tree(rows: list[Any]) -> bool:
    """Whether rows in format `oasst` are single messages, to be put together into trees first."""
    objects = [row for row in rows if isinstance(row, dict)]
    return sum(1 for row in objects if "message_id" in row and not isinstance(row.get("prompt"), dict)) * 2 > len(
        objects
    )
