"""Errors that a user can mend: one clear message with its remedy, never a traceback."""

from __future__ import annotations

import errno
import re

# The user name, up to the last @ where a password follows it: a password may hold @ and / unquoted.
_CREDENTIALS = re.compile(r"://(?:[^/\s:]*:\S*|[^/\s]*)@")


def redact(text: str) -> str:
    """The text with credentials in URIs replaced: `http://user:pass@host` becomes `http://***@host`."""
    return _CREDENTIALS.sub("://***@", text)


class UserError(Exception):
    """What the user can mend.

    Args:
        message: What is wrong, naming the file, key or value. Libraries' texts in it may hold the address that they
            were given, so credentials in addresses are taken out.
        remedy: What to do about it, one sentence.

    The exception pickles (Ray carries it between processes), so both arguments stay positional.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        message = redact(message)
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  remedy: {self.remedy}" if self.remedy else self.message


class SpecError(UserError):
    """The spec cannot be read or asks for what is not allowed."""


class DataError(UserError):
    """The data cannot be read or is too damaged to go on."""


class LeaseLost(UserError):
    """Another process makes the result by now; what this one has made must not be published."""


class Damaged(UserError):
    """A result in the store is not what its maker left there."""


def mendable(error: BaseException) -> UserError | None:
    """What the user can do about an error of the machine's, or None."""
    if isinstance(error, UserError):
        return error
    text = str(error)
    if "No space left on device" in text or getattr(error, "errno", None) == errno.ENOSPC:
        return UserError(f"the disk is full: {text}", "free some space and run the same command again; nothing is lost")
    if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError):
        return UserError(f"something else is in the way: {text}", "choose another place, or move it aside")
    if isinstance(error, PermissionError):
        return UserError(f"not allowed: {text}", "choose a place that you may write to")
    return None
