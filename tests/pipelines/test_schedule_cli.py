"""`phasetune schedule`: what it makes of each way to be called, and what it refuses before anything is sent."""

from __future__ import annotations

import pytest
import yaml

CRON = "0 0 2 * * *"


@pytest.fixture
def file(cluster_values, tmp_path):
    made = tmp_path / "cluster.yaml"
    made.write_text(yaml.safe_dump(cluster_values))
    return str(made)


@pytest.fixture
def schedule(cluster, server, phasetune):
    """Calls the command with the server's address."""
    return lambda *arguments: phasetune("schedule", *arguments, "--host", server.url)


def only(server):
    (one,) = server.schedules.values()
    return one


def test_it_is_made_once_and_replaced_where_it_changed(schedule, server, file):
    code, said = schedule(file, "--cron", CRON, "--name", "nightly")
    assert (code, said.startswith("nightly: made, version ")) == (0, True)
    server.asked.clear()
    assert schedule(file, "--cron", CRON, "--name", "nightly")[1].startswith("nightly: unchanged, version ")
    assert server.writes() == []
    assert schedule(file, "--cron", "0 0 3 * * *", "--name", "nightly")[1].startswith("nightly: replaced")
    assert (only(server)["trigger"]["cron_schedule"]["cron"], only(server)["mode"]) == ("0 0 3 * * *", "ENABLE")


def test_another_experiment_is_a_change(schedule, server, file):
    schedule(file, "--cron", CRON, "--name", "nightly")
    said = schedule(file, "--cron", CRON, "--name", "nightly", "--experiment", "other")[1]
    assert said.startswith("nightly: replaced")
    assert server.experiments[only(server)["experiment_id"]]["display_name"] == "other"
    assert "unchanged" in schedule(file, "--cron", CRON, "--name", "nightly", "--experiment", "other")[1]


def test_a_window_with_parts_of_seconds_is_one_of_whole_seconds(schedule, server, file):
    window = "2050-01-01T00:00:00.25Z/2051-01-01T00:00:00.75Z"
    asked = (file, "--cron", CRON, "--name", "nightly", "--window", window)
    assert schedule(*asked)[1].startswith("nightly: made")
    assert only(server)["mode"] == "ENABLE"
    assert schedule(*asked)[1].startswith("nightly: unchanged")
    assert "2050-01-01T00:00:00+00:00/2051-01-01T00:00:00+00:00" in schedule("ls")[1]


def test_they_are_listed_paused_resumed_and_deleted_by_name(schedule, server, file):
    for name in ("nightly", "early"):
        schedule(file, "--cron", CRON, "--name", name)
    assert schedule("--pause", "--name", "early") == (0, "early: paused\n")
    rows = [line.split()[:9] for line in schedule("ls")[1].splitlines()[1:]]
    assert [(row[0], row[8]) for row in rows] == [("early", "paused"), ("nightly", "started")]
    assert schedule("--resume", "--name", "early") == (0, "early: started\n")
    assert {one["mode"] for one in server.schedules.values()} == {"ENABLE"}
    assert schedule("--delete", "--name", "early") == (0, "early: deleted\n")
    assert schedule("--delete", "--name", "early") == (0, "early: there is no such schedule\n")
    assert only(server)["display_name"] == "nightly"


def test_with_a_spec_pause_makes_it_and_never_lets_it_fire(schedule, server, file):
    assert schedule(file, "--cron", CRON, "--name", "n", "--pause")[1].startswith("n: made, paused, version ")
    assert (only(server)["mode"], server.count("POST", ":enable")) == ("DISABLE", 0)
    assert schedule(file, "--cron", "0 0 3 * * *", "--name", "n", "--pause")[1].startswith("n: replaced, paused")
    assert (only(server)["mode"], server.count("POST", ":enable")) == ("DISABLE", 0)
    assert only(server)["trigger"]["cron_schedule"]["cron"] == "0 0 3 * * *"


def test_what_stays_paused_says_so(schedule, file):
    schedule(file, "--cron", CRON, "--name", "n", "--pause")
    assert schedule(file, "--cron", CRON, "--name", "n")[1].startswith("n: unchanged (paused), version ")
    assert schedule(file, "--cron", "0 0 3 * * *", "--name", "n")[1].startswith("n: replaced (paused), version ")
    schedule("--resume", "--name", "n")
    assert schedule(file, "--cron", "0 0 3 * * *", "--name", "n")[1].startswith("n: unchanged, version ")


def test_the_help_says_in_which_time_zone_the_cron_is(schedule, capsys):
    schedule("--help")
    assert "UTC" in capsys.readouterr().out


def test_with_a_spec_resume_lets_it_fire_as_that_says(schedule, server, file):
    schedule(file, "--cron", CRON, "--name", "n", "--pause")
    assert schedule(file, "--cron", "0 0 3 * * *", "--name", "n", "--resume")[1].startswith("n: replaced, started")
    assert (only(server)["trigger"]["cron_schedule"]["cron"], only(server)["mode"]) == ("0 0 3 * * *", "ENABLE")
    assert schedule(file, "--cron", "0 0 3 * * *", "--name", "n", "--pause")[1].startswith("n: unchanged, paused")
    assert only(server)["mode"] == "DISABLE"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("SPEC", "--cron", CRON), "which schedule is meant is not said"),
        (("SPEC", "--cron", CRON, "--name", ""), "which schedule is meant is not said"),
        (("--name", " ", "--delete"), "which schedule is meant is not said"),
        (("SPEC", "--name", "n"), "a schedule needs a spec and a time"),
        (("SPEC", "--name", "n", "--pause"), "a schedule needs a spec and a time"),
        (("--cron", CRON, "--name", "n", "--pause"), "a schedule needs a spec and a time"),
        (("--name", "n", "--pause", "--resume"), "exclude each other"),
        (("SPEC", "--cron", CRON, "--name", "n", "--delete"), "--delete takes no spec"),
        (("SPEC", "--cron", "0 2 * * *", "--name", "n"), "has five fields"),
        (("SPEC", "--cron", CRON, "--name", "n", "--window", "2001-01-01/2002-01-01"), "is over"),
        (("SPEC", "--cron", "0 0 2 1 1 *", "--name", "n", "--window", "2050-02-01/2050-03-01"), "no day of the window"),
        (("SPEC", "--cron", CRON, "--name", "n", "--set", "data.train.0.path=lab://nothing"), "lab://nothing"),
        (("SPEC", "--cron", CRON, "--name", "n", "--set", "store=/runs"), "a cluster cannot see these places"),
    ],
)
def test_what_it_refuses_it_refuses_before_anything_is_sent(schedule, server, file, arguments, said):
    code, told = schedule(*(file if one == "SPEC" else one for one in arguments))
    assert code in (1, 2)  # 2: of the spec itself
    assert said in told
    assert server.asked == []
