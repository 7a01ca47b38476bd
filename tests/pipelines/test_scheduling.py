"""Schedules: applied twice they are the same; a changed one replaces the old one, also when the command dies."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from components.common.errors import UserError
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


def put(cluster, spec, version, timing=NIGHTLY, name="nightly"):
    return apply(cluster, name, spec, version, timing, "phasetune")


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
    assert schedules(cluster, "nightly")[0].timing == Timing("0 0 2 * * *", *window)


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
    assert schedules(cluster, "nightly")[0].timing == timing


def test_a_paused_one_stays_paused_when_it_is_replaced(cluster, server, spec, versions):
    put(cluster, spec, versions[0])
    set_running(cluster, "nightly", False)
    assert put(cluster, spec, versions[0]) == "unchanged"
    assert put(cluster, spec, versions[1]) == "replaced"
    assert only(server)["mode"] == "DISABLE"
    set_running(cluster, "nightly", True)
    assert only(server)["mode"] == "ENABLE"


class Killed(BaseException):
    """The command dies."""


@pytest.mark.parametrize("after", range(4))
@pytest.mark.parametrize("runs", [True, False], ids=["started", "paused"])
def test_whenever_the_command_dies_the_next_one_finishes(cluster, server, spec, versions, monkeypatch, after, runs):
    put(cluster, spec, versions[0])
    set_running(cluster, "nightly", runs)
    original, left = cluster._once, [after]

    def dying(api, call, *arguments, **options):
        if "list" not in call:
            if not left[0]:
                raise Killed
            left[0] -= 1
        return original(api, call, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(cluster, "_once", dying)
        try:
            put(cluster, spec, versions[1])
        except Killed:
            assert server.schedules  # there is always one
    put(cluster, spec, versions[1])
    assert only(server)["pipeline_version_reference"]["pipeline_version_id"] == "changed"
    assert only(server)["mode"] == ("ENABLE" if runs else "DISABLE")
    assert put(cluster, spec, versions[1]) == "unchanged"


@pytest.mark.parametrize("late", [False, True], ids=["before", "after it was done"])
def test_a_lost_answer_makes_no_second_one(cluster, server, spec, versions, late):
    server.faults.append(kfp_api.Fault("POST .*/recurringruns$", 1, 0, late))
    server.faults.append(kfp_api.Fault("POST .*:enable", 1, 500, late))
    put(cluster, spec, versions[0])
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
