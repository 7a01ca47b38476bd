"""A day of following a job of a standing Ray cluster keeps no more than an hour of it, by a clock that we turn."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components.common import jobs_api, ray_jobs
from components.common.errand import Errand
from components.common.jobs_api import run_on_cluster
from components.common.ray_jobs import Broken, Cluster
from components.common.spec import Spec
from tests.simulated_day import DAY, HOUR, Day, constant

CHUNKS, BREAKS = 20_000, 12
"""Pieces of the log, and breaks of the connection, in a day."""
BAR = "\r 17%|" + "#" * 200
"""What a progress bar writes, all on one line."""
KEY = "ab" * 16


class Simulated(Day, Cluster):
    """A cluster with one job, in which a day passes as fast as its log is read."""

    def __init__(self) -> None:
        Day.__init__(self)
        self.address, self.broken, self.looks = "http://head:8265", 0, 0
        self._about: dict[str, str] | None = None

    def submit(self, name: str, entrypoint: str, environment: dict[str, str], metadata: dict[str, str]) -> bool:
        self._about = metadata
        return True

    def look(self, name: str) -> Any | None:
        self.looks += 1
        if self._about is None:
            return None
        status = SimpleNamespace(value="SUCCEEDED" if self.now >= DAY else "RUNNING")
        return SimpleNamespace(status=status, message="", metadata=self._about, end_time=None)

    def _chunks(self, name: str) -> Iterator[str | None]:
        for number in range(CHUNKS):  # from its beginning after each break
            at = DAY * number / CHUNKS
            yield BAR if number % 4 else f"step {number} of {CHUNKS}: {'x' * 80}\n" if number < 8000 else BAR
            if at < self.now:
                continue
            self.pass_(DAY / CHUNKS)
            if number % 5 == 0:
                yield None
            if self.now >= DAY * (self.broken + 1) / BREAKS:
                self.broken += 1
                raise Broken("the proxy was restarted")


@pytest.mark.proof
@pytest.mark.timeout(120)
def test_a_day_of_a_job(traced, monkeypatch, tmp_path: Path) -> None:
    """For the last 14 hours, all that comes is a progress bar on one line."""
    day = Simulated()
    monkeypatch.setattr(jobs_api, "time", day)
    monkeypatch.setattr(jobs_api, "_LONGEST", 1000)  # else the last lines fill up in the course of the day
    monkeypatch.setattr(jobs_api, "Cluster", lambda address: day)
    data = {"train": [{"path": "lab://instructions?count=9"}]}
    spec = Spec.model_validate({"name": "x", "data": data, "compute": {"ray": day.address}, "store": str(tmp_path)})
    errand = Errand("train.main.1.s17", "run-1", "phases", KEY, "components.training.step:run", {"context": "{}"})
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        assert run_on_cluster(errand, spec).ours
    assert day.broken == BREAKS - 1  # the last one is the end
    assert day.looks > CHUNKS // 5
    assert len(day.memory) == DAY / HOUR
    assert constant(day.memory), day.memory


def test_a_line_without_an_end_comes_in_pieces_each_once(monkeypatch) -> None:
    monkeypatch.setattr(ray_jobs, "_LONGEST_LINE", 10)
    day = Simulated()
    monkeypatch.setattr(day, "_chunks", lambda name: iter(["a\n123456", "7890123", "45\nend\nx"]))
    assert list(day.lines("x", 0)) == [("a", 2), ("1234567890123", 15), ("45", 18), ("end", 22), ("x", 23)]
    assert list(day.lines("x", 15)) == [("45", 18), ("end", 22), ("x", 23)]
