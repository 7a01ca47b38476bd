"""An S3 server that fails for a while, and a kill in the middle of an upload.

The first phase is too short for a checkpoint of step 10: whatever comes after one is the second phase's.
"""

from __future__ import annotations

import os

import pytest

from tests.chaos.disturbances import Disturbance
from tests.chaos.places import spec_of

pytestmark = pytest.mark.proof


@pytest.fixture
def disturbed(in_s3, monkeypatch):
    """A place with its store in S3, and the disturbance that the way there is under."""
    monkeypatch.setenv("PHASETUNE_S3_TIMEOUT", "2")
    disturbance = Disturbance()
    place = in_s3(disturbance)
    place.write(spec_of(store=place.bucket.place))
    return place, disturbance


@pytest.mark.soak
def test_s3_fails_for_a_while(disturbed, calm):
    """While checkpoints are saved, and again while the phase is published; the run goes on and ends well."""
    place, disturbance = disturbed
    process = place.start()
    step = place.until_step(process, 10)
    during = ["500", "cut-early", "lost", "silent", "cut", "500", "silent", "lost", "500", "cut"] * 2
    disturbance.wanted = lambda method, path: "/checkpoints/" in path or "/leases/" in path
    disturbance.faults = list(during)
    place.until(process, lambda: not disturbance.faults and place.newest() > step, "the end of the trouble")
    publishing = ["500", "lost", "silent", "cut-early", "cut", "lost", "500"]
    disturbance.wanted = lambda method, path: method == "PUT" and "/phases/" in path and "/leases/" not in path
    disturbance.faults = list(publishing)
    place.ended(process, 0)
    assert [fault for fault, _, _ in disturbance.met] == during + publishing
    place.nothing_unfinished()
    assert place.record()["info"]["resumed_at"] == 0  # it has not been trained twice
    assert place.weights() == calm().weights()


def test_a_kill_while_a_checkpoint_is_uploaded(disturbed, calm):
    """Half of a file is on its way to S3 when everything is killed."""
    place, disturbance = disturbed
    process = place.start()
    step = place.until_step(process, 10)
    disturbance.wanted = lambda method, path: method == "PUT" and path.endswith("/weights.safetensors")
    disturbance.faults = ["hold"]
    place.until(process, disturbance.holding.is_set, "an upload")
    state = place.checkpoints()
    assert [item["step"] for item in state["unfinished"]] > [item["step"] for item in state["kept"][:1]] >= [step]
    os.killpg(process.pid, 9)
    place.ended(process, -9)
    disturbance.released.set()
    assert place.checkpoints() == state
    place.again()
    assert place.resumed() == state["kept"][0]["step"]
    assert place.weights() == calm().weights()
