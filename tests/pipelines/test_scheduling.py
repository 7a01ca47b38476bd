"""Schedules: applied twice they are the same; a changed one replaces the old one, also when the command dies."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from functools import partial

import pytest

from components.common.errors import UserError
from pipelines import kubeflow
from pipelines.scheduling import Timing, apply, delete, schedules, set_running
from pipelines.submitting import Version, upload
from tests.kfp_api import server as kfp_api

NIGHTLY = Timing("0 0 2 * * *")


@pytest.fixture
def spec(cluster_spec):
    return cluster_spec()


@pytest.fixture
def versions(cluster, server, spec) -> list[Version]:
    """Two versions of a spec's pipeline; the second is a copy, as compiling takes its time."""
    first = upload(cluster, spec, False)
    server.versions["changed"] = {**server.versions[first.id], "pipeline_version_id": "changed", "name": "changed"}
    server.asked.clear()
    return [first, Version(first.pipeline, "changed", "changed", True)]


def put(cluster, spec, version, timing=NIGHTLY, name="nightly", runs=None):
    return apply(cluster, name, spec, version, timing, "phasetune", runs)[0]


def only(server):
    (one,) = server.schedules.values()
    return one


def test_a_schedule_runs_one_at_a_time_and_makes_up_for_nothing(cluster, server, spec, versions):
    window = (datetime(2050, 1, 1, tzinfo=UTC), datetime(2051, 1, 1, tzinfo=UTC))
    assert put(cluster, spec, versions[0], Timing("0 0 2 * * *", *window)) == "made"
    made = only(server)
    assert (made["max_concurrency"], made["no_catchup"], made["mode"]) == ("1", True, "ENABLE")
    assert made["service_account"] == "phasetune-pipeline"
    assert made["trigger"]["cron_schedule"]["cron"] == "0 0 2 * * *"
    assert schedules(cluster, "nightly")[0].content.timing == Timing("0 0 2 * * *", *window)


def test_the_same_schedule_applied_twice_changes_nothing(cluster, server, spec, versions):
    put(cluster, spec, versions[0])
    server.asked.clear()
    assert put(cluster, spec, versions[0]) == "unchanged"
    assert server.writes() == []


@pytest.mark.parametrize("change", ["version", "cron", "window", "catch up"])
def test_a_changed_one_replaces_it(cluster, server, spec, versions, change):
    put(cluster, spec, versions[0])
    before = only(server)["recurring_run_id"]
    timing = {
        "version": NIGHTLY,
        "cron": Timing("0 0 3 * * *"),
        "window": Timing("0 0 2 * * *", ends=datetime(2051, 1, 1, tzinfo=UTC)),
        "catch up": Timing("0 0 2 * * *", catch_up=True),
    }[change]
    assert put(cluster, spec, versions[change == "version"], timing) == "replaced"
    assert only(server)["recurring_run_id"] != before  # the server itself sees that never both fire
    assert only(server)["mode"] == "ENABLE"
    assert schedules(cluster, "nightly")[0].content.timing == timing


def test_what_is_made_in_the_same_second_is_newer(cluster, server, spec, versions, monkeypatch):
    monkeypatch.setattr(server, "_now", lambda: "2026-01-01T00:00:00Z")
    assert put(cluster, spec, versions[0]) == "made"
    for number in range(10):
        assert put(cluster, spec, versions[number % 2 == 0]) == "replaced"


def test_one_that_kubeflow_shows_otherwise_than_it_was_told_is_made_all_the_same(cluster, server, spec, versions):
    """It shows no window that begins before its own time."""
    assert put(cluster, spec, versions[0], Timing("0 0 2 * * *", datetime(1960, 1, 1, tzinfo=UTC))) == "made"
    assert only(server)["mode"] == "ENABLE"


def test_a_paused_one_stays_paused_when_it_is_replaced(cluster, server, spec, versions):
    put(cluster, spec, versions[0])
    set_running(cluster, "nightly", False)
    assert put(cluster, spec, versions[0]) == "unchanged"
    assert apply(cluster, "nightly", spec, versions[1], NIGHTLY, "phasetune") == ("replaced", False)
    assert only(server)["mode"] == "DISABLE"
    set_running(cluster, "nightly", True)
    assert only(server)["mode"] == "ENABLE"


class Killed(BaseException):
    """The command dies."""


@pytest.fixture
def dies(cluster, monkeypatch):
    """Does something that dies before it changes the next thing after so many; says whether it died."""
    original = cluster._once

    def call(after, act):
        left = [after]

        def dying(api, call, *arguments, **options):
            if "list" not in call:
                if not left[0]:
                    raise Killed
                left[0] -= 1
            return original(api, call, *arguments, **options)

        with monkeypatch.context() as patched:
            patched.setattr(cluster, "_once", dying)
            try:
                act()
            except Killed:
                return True
        return False

    return call


@pytest.mark.parametrize("after", range(5))
@pytest.mark.parametrize("before", ["none", "started", "paused"])
def test_whenever_the_command_dies_the_next_one_finishes(cluster, server, spec, versions, dies, after, before):
    put(cluster, spec, versions[0], name="nightly" if before != "none" else "another")
    if before == "paused":
        set_running(cluster, "nightly", False)
    dies(after, lambda: put(cluster, spec, versions[1]))
    assert before == "none" or schedules(cluster, "nightly")  # there is always one
    put(cluster, spec, versions[1])
    delete(cluster, "another")
    assert only(server)["pipeline_version_reference"]["pipeline_version_id"] == "changed"
    assert only(server)["mode"] == ("DISABLE" if before == "paused" else "ENABLE")
    assert put(cluster, spec, versions[1]) == "unchanged"


@pytest.mark.parametrize("after", range(5))
def test_a_command_that_died_can_be_paused_and_deleted(cluster, server, spec, versions, dies, after):
    put(cluster, spec, versions[0])
    dies(after, lambda: put(cluster, spec, versions[1]))
    set_running(cluster, "nightly", False)
    put(cluster, spec, versions[1])
    assert only(server)["mode"] == "DISABLE"
    assert dies(after, lambda: put(cluster, spec, versions[0], runs=True))
    assert delete(cluster, "nightly")
    assert server.schedules == {}


@pytest.fixture
def two(cluster, server):
    """Two connections. The server's pages hold all: it counts what it showed, so a deletion would hide the next one."""
    server.pages = 100
    return [kubeflow.connect(server.url, None, None, None) for _ in range(2)]


def at_once(*acts):
    """What several threads return or raise that begin together."""
    barrier, answers = threading.Barrier(len(acts)), [None] * len(acts)

    def go(index, act):
        barrier.wait()
        try:
            answers[index] = act()
        except UserError as error:
            answers[index] = error.message

    threads = [threading.Thread(target=go, args=one) for one in enumerate(acts)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return answers


@pytest.mark.parametrize("changed", [0, 1], ids=["equal", "different"])
@pytest.mark.parametrize("before", [False, True], ids=["the first", "replacing"])
def test_two_at_once_leave_one_that_fires(cluster, server, spec, versions, two, changed, before):
    wanted = [versions[0], versions[changed]]
    for number in range(40):
        name = f"nightly {number}"
        if before:
            put(cluster, spec, versions[0], Timing("0 0 3 * * *"), name)
        said = at_once(*(partial(put, one, spec, version, name=name) for one, version in zip(two, wanted, strict=True)))
        (left,) = [one for one in server.schedules.values() if one["display_name"] == name]
        version = left["pipeline_version_reference"]["pipeline_version_id"]
        done = ["replaced meanwhile" not in one for one in said]
        assert left["mode"] == "ENABLE"
        assert version in [one.id for one, was_done in zip(wanted, done, strict=True) if was_done]
        assert all(done) or changed
        assert {one for one, was_done in zip(said, done, strict=True) if was_done} <= {"made", "replaced"}


@pytest.mark.parametrize("changed", [0, 1], ids=["equal", "different"])
def test_one_that_is_overtaken_before_it_starts_never_fires_beside_the_other(
    cluster, server, spec, versions, two, monkeypatch, changed
):
    """The other makes its own after the first has looked, and has finished before the first starts its own."""
    original, others = two[0]._once, [partial(put, two[1], spec, versions[changed])]

    def overtaken(api, call, *arguments, **options):
        if "enable" in call and others:
            assert others.pop()() == ("replaced" if changed else "made")
        return original(api, call, *arguments, **options)

    monkeypatch.setattr(two[0], "_once", overtaken)
    if changed:
        with pytest.raises(UserError, match="replaced meanwhile"):
            put(two[0], spec, versions[0])
    else:
        assert put(two[0], spec, versions[0]) == "made"
    assert only(server)["pipeline_version_reference"]["pipeline_version_id"] == versions[changed].id
    assert only(server)["mode"] == "ENABLE"


@pytest.mark.parametrize("late", [False, True], ids=["before", "after it was done"])
def test_a_lost_answer_makes_no_second_one(cluster, server, spec, versions, late):
    server.faults.append(kfp_api.Fault("POST .*/recurringruns$", 1, 0, late))
    server.faults.append(kfp_api.Fault("POST .*:enable", 1, 500, late))
    assert put(cluster, spec, versions[0]) == "made"
    assert only(server)["mode"] == "ENABLE"


def test_it_is_deleted_once_and_for_all(cluster, server, spec, versions):
    put(cluster, spec, versions[0])
    put(cluster, spec, versions[0], name="weekly")
    server.faults.append(kfp_api.Fault("DELETE", 1, 0, late=True))
    assert delete(cluster, "nightly") == 1
    assert [one.name for one in schedules(cluster)] == ["weekly"]
    assert delete(cluster, "nightly") == 0


def test_a_name_that_is_not_ours_or_not_there(cluster, server, spec, versions):
    put(cluster, spec, versions[0])
    only(server)["description"] = "by hand"
    with pytest.raises(UserError, match="not of phasetune"):
        put(cluster, spec, versions[0])
    assert schedules(cluster) == []
    with pytest.raises(UserError, match="there is no schedule weekly"):
        set_running(cluster, "weekly", False)
