"""The verifier `multiple_choice`: the letter that a response commits itself to."""

from __future__ import annotations

import re
from collections import deque

# The marks that stand around a letter: "(B)", "**B**", "\text{B}", "[B]".
_OPEN = r"(?:\\(?:text|textbf|mathrm|mathbf)\{|[*_`\"'(\[$]){0,4}"
_SHUT = r"[*_`\"')\]}$]{0,4}"
# A capital alone: not of a word ("Berlin"), not before an apostrophe or a hyphen ("I'm", "B-side"). A small letter only
# in brackets or at the end of a line: "the answer is a dog" names no option.
_LETTER = (
    rf"(?i:(?:option|choice|letter)\s{{1,3}})?{_OPEN}"
    rf"(?P<a>[A-Z]|(?<=\()[a-z](?=\))|[a-z](?=[.*_`)\]}}$ \t]{{0,9}}\r?$)){_SHUT}(?![\w'\u2019-])"
)
_SPACE = r"[\s*_:=]{0,8}"
_NOUN = r"(?:answer|choice|option|solution)"
_SAID = (
    rf"(?:\b{_NOUN}\b[*_]{{0,2}}\s{{0,3}}(?:\bis\b|\bwould be\b|\bmust be\b|\bshould be\b|[:=]|-(?=\s)){_SPACE}"
    rf"|\b(?:choose|pick|select)\s{{1,3}}|\\boxed\s?\{{\s{{0,3}}(?=[^}}]{{1,40}}\}}))"
    rf"(?:\bis\b{_SPACE})?(?:the\s{{1,3}}(?={_NOUN}))?"
)
# Case is ignored in the words around a letter, never in the letter.
_STATED = re.compile(rf"(?i:{_SAID}){_LETTER}", re.MULTILINE)
_NAMED = re.compile(
    r"(?<![\w'\u2019-])(?:[Oo]ption |[Cc]hoice )?\(?(?P<a>[A-Z])\)?\*{0,2} is (?:the )?(?:correct|right|best)\b"
)
_ALONE = re.compile(rf"^[ \t]*{_OPEN}(?P<a>[A-Za-z]){_SHUT}[.:]?[*_]{{0,2}}[ \t]*\r?$", re.MULTILINE)
_HEADS = re.compile(r"^[ \t]*[*_(]{0,3}(?P<a>[A-Z])(?:\)[*_]{0,2}|[.:][*_]{0,2}(?=\s)|[*_]{1,2}\))", re.MULTILINE)
_IN_BRACKETS = re.compile(r"\((?P<a>[A-Z])\)")
# "A because", "A. ", "A, which", "A" at the end: the letter. "A dog": the article; "I think": the pronoun.
_GOES_ON = re.compile(r"[ \t]+(?!(?:because|since|as|for|but|not|which|with|by|given|due|is|was)\b)\w")
# "A or B", "A/B", "A, B": a response that keeps two answers open has none. "B, and A is wrong" has one.
_OPEN_STILL = re.compile(
    rf"{_SHUT}(?:\s{{0,2}}[,/&]\s{{0,2}}|,?\s{{1,2}}(?:or|and)\s{{1,2}})(?:option )?{_OPEN}[A-Z]{_SHUT}"
    r"(?=\s*(?:[.,/&]|\bor\b|\band\b|$))",
    re.MULTILINE,
)
_ANSWER = re.compile(r"\s*\(?([A-Za-z])\)?[.:]?\s*")


def multiple_choice(response: str, answer: str) -> bool:
    """Whether the letter that a response ends up with is the answer's."""
    return find_choice(response) == letter(answer)


def letter(answer: str) -> str | None:
    """The letter of an answer such as "B", "b", "(B)" or "B.", in upper case; None where it is something else."""
    match = _ANSWER.fullmatch(answer)
    return match[1].upper() if match else None


def answer_fault(answer: str) -> str | None:
    """What is wrong with an answer, None where nothing is."""
    return None if letter(answer) else f"{answer[:40]!a} is not the letter of a choice"


def find_choice(text: str) -> str | None:
    """The letter that a text commits itself to.

    It is the last one that is said to be the answer ("Answer: B", "the answer is (B)", "B is correct", a boxed B) or
    that has a line for itself. Where there is none: the one letter that a line begins with ("B. Paris"), unless lines
    begin with several, as in a list of the options; else the last letter in round brackets. An article ("A dog") and a
    pronoun ("I think") are no letters, and "A or B" is no answer.

    Returns:
        A capital, or None.
    """
    last = _last_said(text)
    if last is not None:
        at, found = last
        return None if _OPEN_STILL.match(text, at) else found
    heads = {match["a"] for match in _HEADS.finditer(text)}
    if len(heads) == 1:
        return heads.pop()
    bracketed = deque(_IN_BRACKETS.finditer(text), maxlen=1)
    return bracketed.pop()["a"] if bracketed and not heads else None


def _last_said(text: str) -> tuple[int, str] | None:
    """The place after the last letter that is said to be the answer, and the letter."""
    found: list[tuple[int, str]] = []
    for pattern in (_STATED, _NAMED, _ALONE):
        last: re.Match[str] | None = None
        for match in pattern.finditer(text):
            if pattern is _ALONE or not _is_word(text, match):
                last = match
        if last is not None:
            found.append((last.end("a"), last["a"].upper()))
    return max(found, default=None)


def _is_word(text: str, match: re.Match[str]) -> bool:
    return match["a"] in "AI" and match.end("a") == match.end() and bool(_GOES_ON.match(text, match.end()))
