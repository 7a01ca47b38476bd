"""Errors that a user can mend: one clear message with its remedy, never a traceback."""

from __future__ import annotations


class UserError(Exception):
    """What the user can mend.

    Args:
        message: What is wrong, naming the file, key or value.
        remedy: What to do about it, one sentence.

    The exception pickles (Ray carries it between processes), so both arguments stay positional.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  remedy: {self.remedy}" if self.remedy else self.message


class SpecError(UserError):
    """The spec cannot be read or asks for what is not allowed."""


class DataError(UserError):
    """The data cannot be read or is too damaged to go on."""
