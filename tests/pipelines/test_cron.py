"""Schedules of six fields: what Kubeflow reads is let through, what it would never fire on is not."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from components.common.errors import UserError
from pipelines.cron import checked, fires, window


@pytest.mark.parametrize(
    "cron",
    [
        "0 0 2 * * *",
        "*/10 * * * * *",
        "0 0,30 8-18/2 ? * MON-FRI",
        "0 0 0 29 feb ?",
        "0 0 0 31 2 SUN",
        "5/15 1 1 1 1 0",
    ],
)
def test_what_kubeflow_reads(cron):
    assert checked(f"  {cron.replace(' ', '  ')} ") == cron


@pytest.mark.parametrize(
    ("cron", "said"),
    [
        ("0 2 * * *", "has five fields"),
        ("@daily", "has 1 fields"),
        ("60 0 2 * * *", "the second '60' is not within 0 to 59"),
        ("0 0 24 * * *", "the hour '24'"),
        ("0 0 2 0 * *", "the day '0'"),
        ("0 0 2 * * 7", "the weekday '7' is not within 0 to 6"),
        ("0 0 2 * FOO *", "the month 'FOO'"),
        ("0 0 5-2 * * *", "the range '5-2' of the hour goes backwards"),
        ("0 */0 2 * * *", "the step '0' of the minute"),
        ("0 0 2 30 FEB *", "names a day that its months do not have"),
        ("0 0 2 31 4,6,9,11 ?", "names a day that its months do not have"),
        ("0 0 -1 * * *", "the hour ''"),
        ("0 0 2 L * *", "the day 'L'"),
    ],
)
def test_what_would_never_fire_is_refused(cron, said):
    with pytest.raises(UserError) as caught:
        checked(cron)
    assert said in caught.value.message
    assert caught.value.remedy


def test_five_fields_are_given_their_second():
    with pytest.raises(UserError) as caught:
        checked("30 2 * * *")
    assert caught.value.remedy == 'put the second in front: "0 30 2 * * *"'


def test_windows_are_in_utc_and_open_at_either_end():
    assert window("2050-03-01/2050-03-02T12:00:00+02:00") == (
        datetime(2050, 3, 1, tzinfo=UTC),
        datetime(2050, 3, 2, 10, tzinfo=UTC),
    )
    assert window("2050-03-01T00:00:00Z/") == (datetime(2050, 3, 1, tzinfo=UTC), None)
    assert window("/2050-03-01") == (None, datetime(2050, 3, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("cron", "begins", "ends", "expected"),
    [
        ("0 0 2 1 1 *", (2050, 2, 1), (2050, 3, 31), False),
        ("0 0 2 1 1 *", (2050, 2, 1), (2051, 1, 2), True),
        ("0 0 2 29 2 ?", (2050, 1, 1), (2051, 12, 31), False),
        ("0 0 2 29 2 ?", (2050, 1, 1), (2052, 3, 31), True),
        ("0 0 2 ? * SAT", (2050, 1, 3), (2050, 1, 6), False),  # a Monday to a Thursday
        ("0 0 2 * * 5-6", (2050, 1, 3), (2050, 1, 8), True),
        ("0 0 2 13 * FRI", (2050, 1, 3), (2050, 1, 7), True),  # either of two restricted days is enough
        ("0 0 2 13 * FRI", (2050, 1, 3), (2050, 1, 5), False),
        ("0 0 2 1 1 *", (2050, 1, 2), (2050, 1, 4), True),  # it may still be the first in Honolulu
        ("0 0 2 1 1 *", (2050, 12, 1), (2050, 12, 31, 12), True),  # and be it already in Auckland
        ("0 0 2 * * *", (9999, 12, 31), (9999, 12, 31, 23), True),
    ],
)
def test_whether_a_window_has_a_day_on_which_it_fires(cron, begins, ends, expected):
    assert fires(checked(cron), datetime(*begins, tzinfo=UTC), datetime(*ends, tzinfo=UTC)) is expected


@pytest.mark.parametrize(
    "text", ["", "/", "9999-12-31T23:00:00-05:00/", "2050-01-01", "tomorrow/", "2050-03-02/2050-03-01", "/2001-01-01"]
)
def test_windows_that_are_none(text):
    with pytest.raises(UserError):
        window(text)
