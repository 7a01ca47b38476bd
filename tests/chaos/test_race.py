"""Two runs of one spec at once: every phase is trained once, and who waits says so."""

from __future__ import annotations

import json

import pytest

from tests.chaos.places import spec_of

pytestmark = pytest.mark.proof
LONG = {"tiers": [2], "epochs": 40}
"""Longer than one run can be ahead of the other: they meet in it."""


def test_two_runs_race_for_the_same_phases(new_place):
    spec = spec_of(curriculum={**spec_of()["curriculum"], "phases": [{"tiers": [1], "epochs": 1}, LONG]})
    place = new_place()
    place.write(spec)
    processes = [place.start("run", "small.yaml", "--output-dir", f"out-{number}") for number in (1, 2)]
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    place.nothing_runs()
    place.nothing_unfinished()
    records = [json.loads(place.read(name)) for name in place.names("runs") if not name.endswith("run.json")]
    made = [f"{one['kind']}/{one['key']}" for one in records if not one["reused"]]
    assert len(made) == len(set(made)), "something was made twice"
    trained = [(one["step"], one["reused"]) for one in records if one["kind"] == "phases"]
    assert sorted(trained) == [(f"train.main.{index}.s5", reused) for index in (1, 2) for reused in (False, True)]
    waited = [line for out, _ in said for line in out.splitlines() if "waiting for process" in line]
    assert any("train.main.2" in line and "which makes phases/" in line for line in waited), waited
