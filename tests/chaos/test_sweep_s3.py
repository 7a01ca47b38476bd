"""A sweep whose store is in an S3 that fails for a minute."""

from __future__ import annotations

import time

import pytest

from tests.chaos import sweep_places
from tests.chaos.disturbances import Disturbance

pytestmark = [pytest.mark.proof, pytest.mark.soak, pytest.mark.timeout(900)]
OUTAGE = 60.0


class Outage(Disturbance):
    """Refuses every request until a time, by turns in two ways."""

    until, refused = 0.0, 0

    def next(self, method, path):
        if time.monotonic() >= self.until:
            return ""
        self.refused += 1
        return ("500", "cut-early")[self.refused % 2]


def test_s3_fails_for_a_minute(in_s3, calm_sweep):
    """While phases train and end; the sweep waits, goes on, and trains nothing twice."""
    outage = Outage()
    place = in_s3(outage)
    there = sweep_places.SweepPlace(place)
    there.write(base={"store": place.bucket.place})
    process = there.start()
    place.until(process, there.phases, "a phase in the store")
    outage.until = time.monotonic() + OUTAGE
    there.finish(process)
    assert outage.refused > 10
    found = there.results()
    assert found["phases_trained"] == found["phases_distinct"] == there.phases() == sweep_places.PHASES
    assert there.table() == calm_sweep("grid")
