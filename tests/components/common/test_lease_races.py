"""Real processes that want one result: made once, taken over from the dead, safe from those that come back late."""

import json
import signal
import subprocess
import sys
import time

import pytest

from components.common.records import RunInfo
from components.common.store import Store

KEY = "fedcba9876543210" * 2

STEP = """
import json, os, signal, sys, time
from pathlib import Path
context, folder, name, deaf = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4] == "deaf"
os.environ["PHASETUNE_EVENTS"] = str(folder / f"events-{name}")
from components.common.step import Step
def make(out):
    if deaf: signal.signal(signal.SIGINT, signal.SIG_IGN)
    (out / "weights").write_text(name)
    (folder / f"making-{name}").write_text(str(step.lease.token))
    while not (folder / f"go-{name}").exists(): time.sleep(0.01)
    (out / "weights").write_text(name)
    return {"maker": name}
step = Step(context, "train.main.1.s1")
entry, reused = step.find_or_make("phases", sys.argv[5], make)
print(json.dumps([entry.info["maker"], reused, (entry.path / "weights").read_text()]))
"""
"""A step that makes a result, and in the middle of it waits until it may go on."""


class Race:
    """Steps in processes of their own."""

    def __init__(self, place, folder):
        self.folder, self.processes = folder, []
        spec = {"name": "race", "data": {"train": [{"path": "lab://instructions"}]}}
        self.context = RunInfo("race-1", "race", spec, "", place, "", "2026-01-01T00:00:00+00:00").to_json()

    def start(self, name, ears="hears"):
        arguments = [sys.executable, "-c", STEP, self.context, str(self.folder), name, ears, KEY]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.processes.append(process)
        return process

    def let(self, name):
        (self.folder / f"go-{name}").touch()

    def making(self, name):
        """Wait until a step makes the result; returns its token."""
        path = self.folder / f"making-{name}"
        self.wait(lambda: path.exists() and path.read_text())
        return int(path.read_text())

    def waiting(self, name):
        """Wait until a step waits; returns for whom."""
        events = self.folder / f"events-{name}"
        self.wait(lambda: events.exists() and '"waiting"' in events.read_text())
        return next(event["holder"] for event in self.events(name) if event.get("state") == "waiting")

    def events(self, name):
        return [json.loads(line) for line in (self.folder / f"events-{name}").read_text().splitlines()]

    def wait(self, condition):
        until = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < until, [process.poll() for process in self.processes]
            assert None in [process.poll() for process in self.processes], "every process has ended"
            time.sleep(0.02)


def ended(process):
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return json.loads(out)


@pytest.fixture
def race(place, tmp_path, monkeypatch):
    monkeypatch.setenv("PHASETUNE_HEARTBEAT", "0.5")
    race = Race(place, tmp_path)
    yield race
    for process in race.processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_two_that_want_one_result_make_it_once(race):
    first = race.start("a")
    race.making("a")
    second = race.start("b")
    assert race.waiting("b").startswith(f"process {first.pid} on ")
    race.let("a")
    assert ended(first) == ["a", False, "a"]
    assert ended(second) == ["a", True, "a"]
    assert not (race.folder / "making-b").exists()


def test_who_waits_takes_over_from_one_that_was_killed(race, monkeypatch):
    monkeypatch.setenv("PHASETUNE_HEARTBEAT", "1000")  # known dead: there is nothing to wait for
    first = race.start("a")
    token = race.making("a")
    race.let("b")
    second = race.start("b")
    race.waiting("b")
    first.kill()
    assert ended(second) == ["b", False, "b"]
    assert race.making("b") > token


@pytest.mark.parametrize("ears", ["hears", "deaf"])
def test_one_that_was_suspended_and_comes_back_late_changes_nothing(race, place, ears):
    """`deaf`: its work cannot be interrupted, so it goes on to publish."""
    first = race.start("a", ears)
    race.making("a")
    first.send_signal(signal.SIGSTOP)
    race.let("b")
    assert ended(race.start("b")) == ["b", False, "b"]
    if ears == "deaf":
        race.let("a")
    first.send_signal(signal.SIGCONT)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 1
    assert "LeaseLost: another process took over phases/" in err
    entry = Store(place).find("phases", KEY)
    assert (entry.info, (entry.path / "weights").read_text()) == ({"maker": "b"}, "b")
    assert Store(place).entries.faults(entry.manifest, afresh=True) == []


def test_one_that_is_stopped_frees_the_result_for_the_next(race, monkeypatch):
    monkeypatch.setenv("PHASETUNE_HEARTBEAT", "1000")
    first = race.start("a")
    race.making("a")
    race.let("b")
    second = race.start("b")
    race.waiting("b")
    first.terminate()
    assert ended(second) == ["b", False, "b"]
    first.communicate(timeout=60)
    assert first.returncode == 143


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_waiting_ends_when_it_is_told_to(race, number):
    first = race.start("a")
    race.making("a")
    second = race.start("b")
    race.waiting("b")
    second.send_signal(number)
    second.communicate(timeout=60)
    assert second.returncode == -number
    race.let("a")
    assert ended(first) == ["a", False, "a"]
