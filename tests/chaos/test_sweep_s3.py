"""A sweep whose store is in an S3 that fails for a minute."""

from __future__ import annotations

import logging
import time
import uuid

import pytest

from tests.chaos import disturbances, sweep_places

pytestmark = [pytest.mark.proof, pytest.mark.timeout(900)]
OUTAGE = 60.0


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


def test_s3_fails_for_a_minute(server, new_place, calm_sweep, monkeypatch):
    """While phases train and end; the sweep waits, goes on, and trains nothing twice."""

    class Outage(disturbances.Disturbance):
        until, refused = 0.0, 0

        def next(self, method, path):
            if time.monotonic() >= self.until:
                return ""
            self.refused += 1
            return ("500", "cut-early")[self.refused % 2]

    outage = Outage()
    with disturbances.way_to(server, outage) as address:
        for name, value in {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "NO_PROXY": "127.0.0.1",
        }.items():
            monkeypatch.setenv(name, value)
        place = new_place(disturbances.Bucket(server, uuid.uuid4().hex))
        monkeypatch.setenv("PHASETUNE_CACHE", str(place.folder / "cache"))
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
