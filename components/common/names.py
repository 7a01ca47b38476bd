"""Names that come out of a shared place, checked before a path on this machine is made of them.

Whoever may write to a bucket may write a manifest. A name in it must never lead out of the folder that it is joined to.
They may also give an object any name: S3 knows `a//b` and `a/../b`, which mean other things wherever they are joined.
"""

from __future__ import annotations

import os


def plain_path(name: object) -> str:
    """A file's name relative to a folder (`a/b/c`), which leads nowhere else.

    Raises:
        ValueError: If it is absolute, or has a part that is empty, `.` or `..`; or is no name at all.
    """
    if not isinstance(name, str) or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"{name!r} is no name of a file inside")
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise ValueError(f"{name!r} is no name of a file inside, nor of any file here") from None
    return name


def plain_name(name: object) -> str:
    """The name of one file or folder: a `plain_path` of a single part.

    Raises:
        ValueError: If it is anything else.
    """
    plain = plain_path(name)
    if "/" in plain:
        raise ValueError(f"{name!r} is no single name")
    return plain


def listed_parts(name: str) -> list[str]:
    """The parts of an object's name out of a listing; none where it is no `plain_path`, and so nothing of ours."""
    try:
        return plain_path(name).split("/")
    except ValueError:
        return []
