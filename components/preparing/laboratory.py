"""Rows that the lab makes: `lab://instructions` and `lab://preferences`, with what may be asked of them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from components.common.errors import DataError
from components.lab.families import FAMILIES, MIX
from components.lab.generator import Choice, generate
from components.preparing.chunks import Rows, in_chunks
from components.preparing.remote import query_of

_KINDS = ("instructions", "preferences")
_PARAMETERS = {
    "count": "number of rows, 3000 where absent",
    "families": "families of problems, e.g. pipeline,multi_hop",
    "steps": "numbers of steps, e.g. 2 or 2-3",
    "draw": "the number of another draw of rows",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What an address of the lab asks for; its representation stands in keys."""

    kind: str
    count: int
    choice: Choice


def lab_asked(url: str) -> Asked:
    """What an address asks for.

    Raises:
        DataError: If the lab has no such data.
    """
    kind = urlsplit(url).netloc
    if kind not in _KINDS:
        raise DataError(
            f"{url}: the lab has no such data", "write lab://instructions?count=3000 or lab://preferences?count=500"
        )
    given = query_of(url, _PARAMETERS)
    count = _number(url, "count", given.get("count", "3000"), 1)
    families = tuple(sorted({name for name in given.get("families", "").split(",") if name}))
    unknown = [name for name in families if name not in FAMILIES]
    if unknown:
        raise DataError(f"{url}: the lab has no family {unknown[0]!r}", f"known are {', '.join(FAMILIES)}")
    choice = Choice(families, _steps(url, given.get("steps", "")), _number(url, "draw", given.get("draw", "0"), 0))
    if not choice.strata():
        raise DataError(f"{url}: no such family has problems of so many steps", "leave `steps` out to see all")
    return Asked(kind, count, choice)


def _number(url: str, name: str, text: str, least: int) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
        raise DataError(f"{url}: `{name}` is {text!r}", f"give a whole number from {least}")
    return int(text)


def _steps(url: str, text: str) -> tuple[int, ...]:
    if not text:
        return ()
    low, _, high = text.partition("-")
    found = [number for number in (low, high or low) if number.isdecimal() and int(number) in MIX]
    if len(found) != 2 or int(low) > int(high or low):
        raise DataError(f"{url}: `steps` is {text!r}", f"give a number from {min(MIX)} to {max(MIX)}, or two: 2-3")
    return tuple(range(int(low), int(high or low) + 1))


def lab_chunks(url: str, seed: int, fraction: float) -> Iterator[Rows]:
    """The lab's rows, made by its generator.

    Raises:
        DataError: If there are not so many.
    """
    asked = lab_asked(url)
    rows = generate(asked.count, seed, fraction, asked.choice, preferences=asked.kind == "preferences")
    try:
        yield from in_chunks(enumerate(rows, start=1))
    except ValueError as error:
        raise DataError(f"{url}: {error}", "lower `count`, or ask for more families or steps") from error
