"""JSON out of a shared place: taken as what it should be, or refused with a `ValueError`, whatever was written there.

The manifests, leases, records and pointers of a store are small JSON objects. Whoever may write to the store may write
anything in their place.
"""

from __future__ import annotations

import json
from typing import Any


def json_object(data: bytes) -> dict[str, Any]:
    """The JSON object that bytes hold.

    Raises:
        ValueError: If they hold none, or one that is nested too deep to be read.
    """
    try:
        values = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")
    return values


def file_facts(about: object) -> dict[str, Any]:
    """What a manifest or a pointer says of one file: `size` in bytes, `sha256`, and maybe more.

    Raises:
        ValueError: If either is missing or of another type.
    """
    if not isinstance(about, dict):
        raise ValueError("there is a file without its size and SHA-256")
    size, sha256 = about.get("size"), about.get("sha256")
    if type(size) is not int or size < 0 or not isinstance(sha256, str):  # True would be an int too
        raise ValueError("there is a file without its size and SHA-256")
    return about
