"""The verifier `boxed_math`: the mathematics in the last box of a response, compared by math-verify."""

from __future__ import annotations

import re
from collections.abc import Callable

from components.common.judging import judge

LONGEST = 1000
"""Characters of a box beyond which it is compared as text: no answer is longer, and parsing is not linear."""
DEEPEST = 40
"""Brackets within brackets beyond which a box is compared as text: the parser's time doubles and its stack ends."""
# In this order: an escaped brace is no brace, and `\\` before "boxed" is a line's end.
_TOKEN = re.compile(r"(?P<box>\\(?:boxed|fbox)[ \t]?\{)|\\[\s\S]|(?P<open>\{)|(?P<shut>\})")


def boxed_math(response: str, answer: str) -> bool:
    r"""Whether the last `\boxed{...}` of a response equals the answer.

    Equal as text but for white space, or by math-verify: `\frac{1}{2}` is `0.5`, `x=5` is `5`, `(1, 2)` is `(1,2)`.

    Args:
        response: What the model wrote.
        answer: LaTeX, bare or itself boxed.
    """
    given, expected = find_boxed(response), _bare(answer)
    if given is None:
        return False
    given = _bare(given)
    if _packed(given) == _packed(expected):
        return bool(given)
    if not _is_plain(given) or not _is_plain(expected):
        return False
    return judge("boxed_math").ask(given, expected)


def find_boxed(text: str) -> str | None:
    r"""What stands in the `\boxed{...}` (or `\fbox{...}`) that begins last of those whose braces are closed."""
    stack: list[tuple[int, bool]] = []
    last = (-1, -1)
    for match in _TOKEN.finditer(text):
        if match["box"] or match["open"]:
            stack.append((match.end(), match["box"] is not None))
        elif match["shut"] and stack:
            start, box = stack.pop()
            if box and start > last[0]:
                last = (start, match.start())
    return text[last[0] : last[1]] if last[0] >= 0 else None


def answer_fault(answer: str) -> str | None:
    """What is wrong with an answer, None where nothing is."""
    return None if _bare(answer) else "there is nothing in it"


def load() -> Callable[[str, str], bool]:
    """The comparison by math-verify, for a process of its own: it has no limits but that process's."""
    from math_verify import LatexExtractionConfig, parse, verify

    settings = [LatexExtractionConfig()]

    def same(given: str, expected: str) -> bool:
        # math-verify's own timeouts are signals, of the clock's time; the process has limits instead.
        gold, found = (
            parse(f"${' '.join(text.split())}$", settings, parsing_timeout=None) for text in (expected, given)
        )
        return bool(verify(gold, found, timeout_seconds=None))

    same(r"\frac{1}{2}", "0.5")  # builds what the parser builds once
    return same


def _bare(text: str) -> str:
    text = text if (inner := find_boxed(text)) is None else inner
    text = text.strip()
    for mark in ("$$", "$"):
        if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
            return text[len(mark) : -len(mark)].strip()
    return text


def _packed(text: str) -> str:
    return "".join(text.split())


def _is_plain(text: str) -> bool:
    if not 0 < len(text) <= LONGEST or re.search(r"(?<!\\)\$", text):
        return False
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest <= DEEPEST
