"""Schedules as Kubeflow reads them: six fields, seconds first. Seen to be right before anything is sent.

Kubeflow accepts what it cannot read and then never starts a run, so every field is checked here, and that there is a
day on which the schedule fires at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from components.common.errors import UserError

_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_LENGTHS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_FIRST, _LAST = (edge.replace(tzinfo=UTC) for edge in (datetime(1, 1, 2), datetime(9999, 12, 31)))
"""Time zones move no moment between them out of the calendar."""
_REMEDY = 'give six fields, "SECOND MINUTE HOUR DAY MONTH WEEKDAY", such as "0 0 2 * * *" for two at night'


@dataclass(frozen=True, slots=True)
class _Field:
    """One field: its name, its least and greatest value, and the words for its values from the least on."""

    name: str
    least: int
    most: int
    words: tuple[str, ...] = ()

    def value(self, text: str) -> int:
        """A single value.

        Raises:
            ValueError: If the field has no such value.
        """
        number = self.words.index(text.upper()) + self.least if text.upper() in self.words else None
        if number is None and re.fullmatch("[0-9]+", text):
            number = int(text)
        if number is None or not self.least <= number <= self.most:
            raise ValueError(f"the {self.name} {text!r} is not within {self.least} to {self.most}")
        return number

    def values(self, text: str) -> set[int]:
        """Every value that a field's text allows.

        Raises:
            ValueError: If it is none that Kubeflow reads.
        """
        found: set[int] = set()
        for part in text.split(","):
            span, slash, step = part.partition("/")
            if slash and not re.fullmatch("[1-9][0-9]*", step):
                raise ValueError(f"the step {step!r} of the {self.name} is no number from 1")
            first, dash, last = span.partition("-")
            if span in ("*", "?"):
                low, high = self.least, self.most
            else:
                low = self.value(first)
                high = self.value(last) if dash else self.most if slash else low
            if low > high:
                raise ValueError(f"the range {span!r} of the {self.name} goes backwards")
            found |= set(range(low, high + 1, int(step) if slash else 1))
        return found


_FIELDS = (
    _Field("second", 0, 59),
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("weekday", 0, 6, _DAYS),
)


def checked(cron: str) -> str:
    """A schedule with single spaces between its six fields.

    Raises:
        UserError: If it is none that Kubeflow reads, or names days that no month has.
    """
    fields = cron.split()
    if len(fields) == 5:
        five = " ".join(fields)
        raise UserError(f"the schedule {cron!r} has five fields", f'put the second in front: "0 {five}"')
    if len(fields) != len(_FIELDS):
        raise UserError(f"the schedule {cron!r} has {len(fields)} fields", _REMEDY)
    try:
        values = [field.values(text) for field, text in zip(_FIELDS, fields, strict=True)]
    except ValueError as error:
        raise UserError(f"the schedule {cron!r}: {error}", _REMEDY) from None
    days, months = values[3], values[4]
    if not _either_day(fields) and all(min(days) > _LENGTHS[month - 1] for month in months):
        raise UserError(f"the schedule {cron!r} names a day that its months do not have", _REMEDY)
    return " ".join(fields)


def _either_day(fields: list[str]) -> bool:
    """Whether one of the two days is enough: where both are restricted."""
    return fields[5][0] not in "*?" and fields[3][0] not in "*?"


def fires(cron: str, begins: datetime, ends: datetime) -> bool:
    """Whether a checked schedule has a day within a window.

    Days of every time zone count, as in which one Kubeflow reads the schedule is not known here.
    """
    fields = cron.split()
    days, months, weekdays = (field.values(text) for field, text in list(zip(_FIELDS, fields, strict=True))[3:])
    together = any if _either_day(fields) else all
    # From UTC-12 to UTC+14.
    first = (max(begins, _FIRST) - timedelta(hours=12)).toordinal()
    last = (min(ends, _LAST) + timedelta(hours=14)).toordinal()
    return any(
        day.month in months and together((day.day in days, day.isoweekday() % 7 in weekdays))
        for day in map(date.fromordinal, range(first, last + 1))
    )


def window(text: str) -> tuple[datetime | None, datetime | None]:
    """The first and the last moment of a window, `FROM/TO`, either of which may be left out; UTC where none is said.

    Parts of a second are dropped.

    Raises:
        UserError: If it is none.
    """
    remedy = "give two times, such as 2026-03-01T00:00:00Z/2026-06-30T00:00:00Z; either may be left out"
    first, slash, last = text.partition("/")
    if not slash or not (first or last):
        raise UserError(f"the window {text!r} is not FROM/TO", remedy)
    try:
        began, ends = (_moment(one) for one in (first, last))
    except (ValueError, OverflowError) as error:
        raise UserError(f"the window {text!r}: {error}", remedy) from None
    if began is not None and ends is not None and began >= ends:
        raise UserError(f"the window {text!r} ends before it begins", remedy)
    if ends is not None and ends <= datetime.now(UTC):
        raise UserError(f"the window {text!r} is over", remedy)
    return began, ends


def _moment(text: str) -> datetime | None:
    if not text:
        return None
    moment = datetime.fromisoformat(text).replace(microsecond=0)  # Kubeflow keeps whole seconds
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
