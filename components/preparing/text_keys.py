"""Normalised text, and the digests by which examples are compared and prompts and groups are told apart."""

import hashlib
import unicodedata
from collections.abc import Iterable

from components.preparing.drafts import Turn

DIGEST_BYTES = 16
_BETWEEN_TURNS = "\x1e"
_AFTER_ROLE = "\x1f"


def normalise(text: str) -> str:
    """Unicode NFKC, case-folded, every run of white space one space, none at the ends."""
    # For ASCII, NFKC changes nothing and case-folding is lowering: far quicker for most English text.
    folded = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.split())


def normal_turns(turns: Iterable[Turn]) -> str:
    """The normalised turns in one string; the separators are white space to `normalise`, so no text holds them."""
    return _BETWEEN_TURNS.join([f"{role}{_AFTER_ROLE}{normalise(content)}" for role, content in turns])


def exact_turns(turns: Iterable[Turn]) -> str:
    """The turns as they are in one string that tells them apart."""
    return "".join([f"{role} {len(content)} {content}" for role, content in turns])


def short_digest(text: str, purpose: bytes) -> bytes:
    """16 bytes that stand for a text; purposes (at most 16 bytes) do not meet.

    Raises:
        UnicodeEncodeError: If the text holds half of a surrogate pair.
    """
    return hashlib.blake2b(text.encode(), digest_size=DIGEST_BYTES, person=purpose).digest()
