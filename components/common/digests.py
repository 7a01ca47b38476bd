"""Digests of content, and seeds and orders derived from them.

Everything random in a run comes from the spec's one seed, derived by *purpose*; never from a run's, trial's or
control's name, so that equal work has equal keys.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def canonical_json(value: Any) -> str:
    """One spelling for one value: sorted keys, no spaces, NaN refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """The first 32 hexadecimal digits of SHA-256 over the canonical JSON of ``value``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:32]


def digest_lines(lines: Iterable[str]) -> str:
    """Digest of an ordered sequence of strings, in constant memory."""
    state = hashlib.sha256()
    for line in lines:
        state.update(line.encode())
        state.update(b"\n")
    return state.hexdigest()[:32]


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in full."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seed_for(seed: int, purpose: str) -> int:
    """A 31-bit seed for one purpose, e.g. ``seed_for(17, "training")``."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{purpose}".encode()).digest()[:4], "big") & 0x7FFFFFFF


def unit_hash(text: str, seed: int, purpose: str) -> float:
    """A number in [0, 1) that depends only on the text, the seed and the purpose.

    Membership decided as ``unit_hash(group, seed, "held_out") < fraction`` does not move when new rows arrive.
    """
    raw = hashlib.blake2b(f"{seed}:{purpose}:{text}".encode(), digest_size=8).digest()
    return int.from_bytes(raw, "big") / 2**64


def hash_order(ids: Iterable[str], seed: int, purpose: str) -> list[str]:
    """The ids sorted by their seeded hash: a shuffle in which new ids do not move the old ones."""
    return sorted(ids, key=lambda item: (unit_hash(item, seed, purpose), item))
