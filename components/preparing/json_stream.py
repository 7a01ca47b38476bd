"""Reads the elements of a JSON array one by one, in memory that does not grow with their number.

The standard library's decoder needs the text of a whole value; the scanner gives it a buffer that grows only until
the next value is complete.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from components.preparing.chunks import LONGEST_ROW, TOO_DEEP, Broken, too_deep

_BLOCK = 1 << 20
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODE = json.JSONDecoder().raw_decode
_OPEN_STRING = "Unterminated string"
"""The one error of a cut-off value that lies far from the end of the text: where its last string began."""
_NEAR_END = 16
"""Characters: no token that can be cut in two (a number apart) is longer."""


class BrokenJson(ValueError):
    """The text is not JSON, or it ends too early; the message says where."""


class Scanner:
    """A position in a JSON text that is read block by block.

    Args:
        read: Returns up to so many characters of the text, "" at its end.
    """

    def __init__(self, read: Callable[[int], str]) -> None:
        self._read = read
        self._text = ""
        self._at = 0
        self._ended = False
        self.last = ""
        """The text of the last value."""

    def peek(self) -> str:
        """The next character that is not white space, without taking it; "" at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(_BLOCK):
                return ""

    def take(self, character: str) -> None:
        """Pass over one character.

        Raises:
            BrokenJson: If another one comes.
        """
        found = self.peek()
        if found != character:
            raise BrokenJson(f"expected `{character}`, found " + (f"`{found}`" if found else "the end of the file"))
        self._at += 1

    def value(self) -> Any:
        """The next value.

        Raises:
            BrokenJson: If it is none or is cut off.
        """
        self.peek()
        size = _BLOCK
        while True:
            try:
                value, end = _DECODE(self._text, self._at)
            except json.JSONDecodeError as error:
                cut_off = error.pos + _NEAR_END >= len(self._text) or error.msg.startswith(_OPEN_STRING)
                if cut_off and len(self._text) - self._at > LONGEST_ROW:
                    raise BrokenJson(f"it is longer than {LONGEST_ROW >> 20} MiB, which no row is") from error
                if cut_off and self._more(size):
                    size *= 2  # one huge value is decoded again and again: few times only
                    continue
                raise BrokenJson("the file ends in the middle of it" if cut_off else error.msg) from error
            except (RecursionError, ValueError) as error:
                raise BrokenJson(str(error)) from error
            # A number at the end of the text may go on in the next block ("12", "12.", "12.5e").
            if isinstance(value, int | float) and end + _NEAR_END >= len(self._text) and self._more(size):
                continue
            self.last = self._text[self._at : end]
            self._at = end
            return value

    def starts_objects(self) -> bool:
        """Whether an array whose first element is an object comes next."""
        while len(self._text) - self._at < _BLOCK and self._more(_BLOCK):
            pass
        return re.compile(r"\[\s*\{").match(self._text, self._at) is not None

    def _more(self, size: int) -> bool:
        block = "" if self._ended else self._read(size)
        self._ended = not block
        if block:
            self._text = self._text[self._at :] + block
            self._at = 0
        return bool(block)

    def passed_lines(self) -> bool:
        """Whether the text before the position, as far as it is still held, has more than one line."""
        return "\n" in self._text[: self._at].strip()


def elements(scanner: Scanner) -> Iterator[Any]:
    """The elements of the array that starts at the scanner's position.

    Raises:
        BrokenJson: Naming the element at which the array breaks off.
    """
    scanner.take("[")
    count = 0
    if scanner.peek() == "]":
        scanner.take("]")
        return
    while True:
        try:
            value = scanner.value()
            following = scanner.peek()
            if following not in (",", "]"):
                raise BrokenJson("the array is not closed" if not following else f"expected `,`, found `{following}`")
            scanner.take(following)
        except BrokenJson as error:
            raise BrokenJson(f"element {count + 1}: {error}") from error
        count += 1
        yield Broken(TOO_DEEP, scanner.last) if too_deep(value, scanner.last) else value
        if following == "]":
            return


def find_array(scanner: Scanner) -> str:
    """Move to the rows' array and say what the text is.

    Returns:
        `array`: the text is an array; `data`: an object whose `data` is one of objects; `lines`: anything else,
        an object for each line if it is JSON at all; `object`: one object over several lines without such rows.
    """
    if scanner.peek() == "[":
        return "array"
    try:
        scanner.take("{")
        while scanner.peek() != "}":
            key = scanner.value()
            scanner.take(":")
            if key == "data" and scanner.peek() == "[" and scanner.starts_objects():
                return "data"
            scanner.value()
            if scanner.peek() == ",":
                scanner.take(",")
    except BrokenJson:
        return "lines"
    return "object" if scanner.passed_lines() else "lines"
