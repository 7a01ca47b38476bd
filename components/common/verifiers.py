"""Verifiers: whether a response gives the expected answer. One definition for evaluation and for rewards.

Every verifier takes bounded time and memory, whatever a model writes, and none raises at a response. Those of this
file, and `multiple_choice`, take time linear in its length; the others judge in a process of their own (`judging`).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from functools import lru_cache

from components.common import verifiers_choice, verifiers_ifeval, verifiers_math, verifiers_schema
from components.common.errors import UserError

# A minus is a sign only where nothing stands before it that it could be subtracted from: "8-3" ends in 3, "x = -3"
# in -3; it may stand on either side of the currency. ".5" is a number, but "...5" ends in 5.
_NUMBER = (
    r"(?P<minus>(?<![\w)\]])-)?(?:[$€£¥](?P<inner>-)?)?"
    r"(?P<digits>(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+)(?:[eE][-+]?[0-9]+)?)"
)
_ANYWHERE = re.compile(_NUMBER)
# The mark of GSM8K's solutions. It counts only before a number that ends its line: "#### 2. Compute" is a heading.
_MARKED = re.compile(rf"####[ \t]*{_NUMBER}[ \t]*[.%]?[ \t]*\r?$", re.MULTILINE)


def verify(name: str, response: str, answer: str) -> bool:
    """Whether a response gives the answer, by the verifier of that name.

    Args:
        name: One of `VERIFIERS`. Never a function's name: an example names its verifier, and data is no code.
        response: What the model wrote.
        answer: The gold answer.

    Raises:
        UserError: If there is no verifier of that name, it has no use for the answer, or what it needs is not there.
    """
    if name not in VERIFIERS:
        why = "; a function is named in a spec's `rewards`, never by an example" if ":" in name else ""
        raise UserError(f"verifier {name[:80]!r} is not known{why}", f"use one of: {', '.join(sorted(VERIFIERS))}")
    if (reason := _fault(name, answer)) is not None:
        raise UserError(f"verifier {name} has no use for the answer {answer[:80]!r}: {reason}", "mend the row's answer")
    return VERIFIERS[name](response, answer)


def fault(name: str, answer: str) -> str | None:
    """What is wrong with an answer for a verifier, by its form alone; None where nothing is.

    Args:
        name: One of `VERIFIERS`.
        answer: The gold answer.
    """
    return FAULTS[name](answer) if name in FAULTS else None


_fault = lru_cache(maxsize=1024)(fault)


def exact(response: str, answer: str) -> bool:
    """Equal but for white space around the text, and how much of it there is within."""
    return response.split() == answer.split()


def last_number(response: str, answer: str) -> bool:
    """The response's number equals the answer's, by value: "72.0" is "72". Without a number: False."""
    given, expected = find_number(response), find_number(answer)
    return given is not None and given == expected


def find_number(text: str) -> Decimal | None:
    """The number that a text ends in.

    It is the number after the last ``####`` that marks one, else the last number in the text. Thousands commas and
    a currency sign are dropped; ``1.5e3`` is 1500.

    Returns:
        The exact value, or None where there is no number, or one whose exponent no Decimal can hold.
    """
    text = text.replace("\u2212", "-").replace("\\$", "$")  # the typographic minus; the dollar of LaTeX and Markdown
    last = deque(_MARKED.finditer(text), maxlen=1) or deque(_ANYWHERE.finditer(text), maxlen=1)
    if not last:
        return None
    match = last.pop()
    try:
        value = Decimal(match["digits"].replace(",", ""))
    except InvalidOperation:
        return None
    return value.copy_negate() if bool(match["minus"]) != bool(match["inner"]) else value


VERIFIERS: dict[str, Callable[[str, str], bool]] = {
    "exact": exact,
    "last_number": last_number,
    "boxed_math": verifiers_math.boxed_math,
    "multiple_choice": verifiers_choice.multiple_choice,
    "json_schema": verifiers_schema.json_schema,
    "ifeval": verifiers_ifeval.ifeval,
}
FAULTS: dict[str, Callable[[str], str | None]] = {
    "boxed_math": verifiers_math.answer_fault,
    "multiple_choice": verifiers_choice.answer_fault,
    "json_schema": verifiers_schema.answer_fault,
    "ifeval": verifiers_ifeval.answer_fault,
}
