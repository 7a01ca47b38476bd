"""`kill -9` of a worker, of the driver, of Ray, of everything; then the same command, and the same bits."""

from __future__ import annotations

import os
import signal

import psutil
import pytest

pytestmark = pytest.mark.proof
STEP = 10
"""Checkpoints of this step or a later one are there when the fault comes."""


@pytest.mark.parametrize("method", ["sft", pytest.param("grpo", marks=pytest.mark.soak)])
def test_a_worker_is_killed(ready, calm, method):
    """The only worker is a child of the session; its step fails and says so."""
    place = ready(method)
    process = place.start()
    step = place.until_step(process, STEP)
    place.trainer().kill()
    _, err = place.ended(process, 1)
    assert "was killed; was there enough memory?" in err
    place.again()
    assert place.resumed() >= step
    assert place.weights() == calm(method).weights()


@pytest.mark.parametrize("method", ["sft", pytest.param("grpo", marks=pytest.mark.soak)])
def test_one_of_two_workers_is_killed(ready, calm, method):
    """Ray starts the group again, which goes on from the last checkpoint; the user has nothing to do."""
    place = ready(method, 2)
    process = place.start()
    step = place.until_step(process, STEP)
    workers = place.named("ray::RayTrainWorker")
    assert len(workers) == 2
    workers[-1].kill()
    place.ended(process, 0)
    place.nothing_unfinished()
    assert place.resumed() >= step
    assert place.weights() == calm(method, 2).weights()


@pytest.mark.soak
@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_the_driver_is_killed(ready, calm, method):
    place = ready(method)
    process = place.start()
    step = place.until_step(process, STEP)
    process.kill()
    place.ended(process, -9)
    place.again()
    assert place.resumed() >= step
    assert place.weights() == calm(method).weights()


def test_everything_is_killed_at_once(ready, calm):
    """As by a loss of power: not even the step that holds the lease can say goodbye."""
    place = ready()
    process = place.start()
    step = place.until_step(process, STEP)
    os.killpg(process.pid, signal.SIGKILL)
    place.ended(process, -9)
    place.again()
    assert place.resumed() >= step
    assert place.weights() == calm().weights()


@pytest.mark.soak
def test_ray_is_killed(ready, calm):
    place = ready("sft", 2)
    process = place.start(RAY_gcs_rpc_server_reconnect_timeout_s="5")  # a minute as Ray has it
    step = place.until_step(process, STEP)
    ray = place.named("raylet/raylet", "gcs_server")
    assert len(ray) == 2
    for one in ray:
        one.kill()
    psutil.wait_procs(ray)
    _, err = place.ended(process, 1)
    assert "error:" in err
    assert "remedy:" in err
    place.again()
    assert place.resumed() >= step
    assert place.weights() == calm("sft", 2).weights()
