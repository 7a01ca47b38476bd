"""Names that come out of a shared place, checked before a path on this machine is made of them.

Whoever may write to a bucket may write a manifest. A name in it must never lead out of the folder that it is joined to.
"""

from __future__ import annotations


def plain_path(name: object) -> str:
    """A file's name relative to a folder (`a/b/c`), which leads nowhere else.

    Raises:
        ValueError: If it is absolute, or has a part that is empty, `.` or `..`; or is no name at all.
    """
    if not isinstance(name, str) or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"{name!r} is no name of a file inside")
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
