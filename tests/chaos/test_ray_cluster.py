"""A Ray cluster that goes away in the middle of a phase: killed with everything, away for a while, and back empty."""

from __future__ import annotations

import time

import pytest

from tests.integration import ray_head as rays

pytestmark = [pytest.mark.proof, pytest.mark.timeout(900)]
AWAY = 20.0
"""Seconds for which nobody answers: several requests fail."""


def test_the_head_is_lost_and_comes_back_empty(tmp_path):
    """The cluster knows of no job any more: another one goes on from the last checkpoint, to the same weights."""
    with rays.s3_server(tmp_path) as variables:
        variables = {**variables, "PHASETUNE_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        variables["PHASETUNE_HEARTBEAT"] = "4"
        head = rays.Head(variables)
        try:
            head.start()
            spec = {**rays.SPEC, "store": rays.new_store(), "curriculum": {"sft": rays.LONG}}
            spec["compute"] = {**spec["compute"], "ray": head.address}
            work = rays.Work(tmp_path, {**variables, "RAY_AUTH_TOKEN": head.token}, spec)
            work.prepare()
            process = work.train()
            step = rays.until(lambda: work.newest() >= 10 and work.newest(), "the checkpoint of step 10")
            head.kill()
            time.sleep(AWAY)
            assert process.poll() is None
            head.start()
            out = rays.ended(process, 0)
            assert "its head was restarted" in out or "does not know it any more" in out
            assert [job["status"] for job in head.jobs()] == ["SUCCEEDED"]
            assert work.manifest()["info"]["resumed_at"] >= step
            calm = rays.Work(tmp_path, variables, {**spec, "store": rays.new_store()})
            calm = calm.with_compute(ray="local")
            calm.prepare()
            rays.ended(calm.train(), 0)
            assert work.weights() == calm.weights()
        finally:
            head.kill()
