"""An S3 server that fails for a while, and a kill in the middle of an upload.

The first phase is too short for a checkpoint of step 10: whatever comes after one is the second phase's.
"""

from __future__ import annotations

import logging
import os
import uuid

import pytest

from tests.chaos import disturbances

pytestmark = pytest.mark.proof


@pytest.fixture(scope="module")
def server():
    """The address of an S3 server with an empty bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=address, **keys).create_bucket(Bucket="bucket")
    yield address
    server.stop()


@pytest.fixture
def disturbed(server, new_place, spec_of, monkeypatch):
    """A place with its store in S3, and the disturbance that the way there is under."""
    disturbance = disturbances.Disturbance()
    with disturbances.way_to(server, disturbance) as address:
        for name, value in {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "PHASETUNE_S3_TIMEOUT": "2",
            "NO_PROXY": "127.0.0.1",
        }.items():
            monkeypatch.setenv(name, value)
        place = new_place(disturbances.Bucket(server, uuid.uuid4().hex))
        monkeypatch.setenv("PHASETUNE_CACHE", str(place.folder / "cache"))
        place.write(spec_of(store=place.bucket.place))
        yield place, disturbance


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
