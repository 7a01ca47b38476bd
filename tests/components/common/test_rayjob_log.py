"""A log is printed line by line, each once, however often its stream is cut."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest

from components.common.kubernetes_api import _lines, connect
from components.common.rayjob_log import LogFollower

LABELS = {"phasetune/job": "x", "app.kubernetes.io/component": "ray-submitter"}


@pytest.fixture
def log(kubernetes_api):
    """A follower, and the lines that it printed."""
    kubernetes_api.put("pods", "x-a", labels=LABELS)
    lines: list[str] = []
    return LogFollower(connect(), "x", lines.append), lines


def test_lines_are_printed_once(kubernetes_api, log) -> None:
    follower, lines = log
    follower.follow_once(follow=False)  # its container has not started
    for number in range(5):
        kubernetes_api.print("x-a", f"line {number}", "same", "same")
        follower.follow_once(follow=False)
        follower.follow_once(follow=False)
    assert lines == [line for number in range(5) for line in (f"line {number}", "same", "same")]
    assert follower.tail.endswith("line 4\nsame\nsame")


def test_equal_times_are_told_apart(kubernetes_api, log) -> None:
    follower, lines = log
    second = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    kubernetes_api.print("x-a", "one", at=f"{second}.1Z")
    kubernetes_api.print("x-a", "two", "three", at=f"{second}.12Z")  # later, though the text is not longer by much
    follower.follow_once(follow=False)
    kubernetes_api.print("x-a", "four", at=f"{second}.12Z")
    kubernetes_api.print("x-a", "five", at=f"{second}.123456789Z")
    follower.follow_once(follow=False)
    assert lines == ["one", "two", "three", "four", "five"]


def test_lines_whose_times_go_back_are_printed(kubernetes_api, log) -> None:
    """Of stdout beside stderr, or of a clock that was set back; also across a cut at any place."""
    follower, lines = log
    minute = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M")
    written = [("5", "out"), ("4", "err: the reason"), ("6", "on"), ("4", "err: more"), ("6", "end")]
    for place, (digit, line) in enumerate(written, 1):
        kubernetes_api.print("x-a", line, at=f"{minute}:59.{digit}Z")
        if place > 1:
            follower.follow_once(follow=False)
    assert lines == [line for _, line in written]


def test_a_node_s_own_zone_is_read(kubernetes_api, log) -> None:
    follower, lines = log
    now = datetime.now(UTC) + timedelta(minutes=1)
    for place, (hours, line) in enumerate([(2, "one"), (0, "two"), (-5, "three")]):
        zone = timezone(timedelta(hours=hours))
        kubernetes_api.print("x-a", line, at=(now + timedelta(seconds=place)).astimezone(zone).isoformat())
        follower.follow_once(follow=False)
    assert lines == ["one", "two", "three"]


class Response:
    """A stream of the API's."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = parts

    def stream(self, **_: object) -> Iterator[bytes]:
        return iter(self.parts)

    def close(self) -> None: ...

    def release_conn(self) -> None: ...


@pytest.mark.parametrize(("to_the_end", "found"), [(False, [b"one"]), (True, [b"one", b"tw"])])
def test_half_a_line_is_no_line_while_more_may_come(to_the_end, found) -> None:
    assert list(_lines(Response(b"o", b"ne\ntw"), to_the_end)) == found


def test_only_what_is_new_is_asked_for(kubernetes_api, log) -> None:
    follower, _ = log
    kubernetes_api.print("x-a", "one")
    follower.follow_once(follow=False)
    follower.follow_once(follow=False)
    queries = [query for _, path, query in kubernetes_api.requests if path.endswith("/log")]
    assert "sinceSeconds" not in queries[0]
    assert int(queries[1]["sinceSeconds"]) < 120


def test_a_new_submitter_begins_anew(kubernetes_api, log) -> None:
    follower, lines = log
    kubernetes_api.print("x-a", "one")
    follower.follow_once(follow=False)
    kubernetes_api.remove("pods", "x-a")
    kubernetes_api.put("pods", "x-b", labels=LABELS)
    kubernetes_api.print("x-b", "one", "two")
    follower.follow_once(follow=False)
    assert lines == ["one", "(the submitter was started again; its log begins anew)", "one", "two"]


def test_the_last_lines_are_there_when_it_ends(kubernetes_api, log, monkeypatch) -> None:
    monkeypatch.setattr("components.common.rayjob_log._PAUSE", 0.02)
    follower, lines = log
    follower.start()
    kubernetes_api.print("x-a", *(f"line {number}" for number in range(500)))
    kubernetes_api.end_log("x-a")
    follower.finish()
    assert lines == [f"line {number}" for number in range(500)]
    assert follower.tail.splitlines() == lines[-200:]


def test_progress_is_handed_on(kubernetes_api, log, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PHASETUNE_EVENTS", str(tmp_path / "events"))
    kubernetes_api.print("x-a", "progress: train main 1: 3 of 9 steps", "warning: slow")
    log[0].follow_once(follow=False)
    events = (tmp_path / "events").read_text().splitlines()
    assert [line[:9] for line in events] == ['{"label":', '{"warning']


def test_a_log_that_may_not_be_read_ends_nothing(kubernetes_api, log, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PHASETUNE_EVENTS", str(tmp_path / "events"))
    kubernetes_api.faults = [403]
    log[0].run()
    assert "cannot be read" in (tmp_path / "events").read_text()
