"""A phase trained by the driver of a RayJob: the step, its store and its driver are real, and the cluster is played.

The API server is the tests' own, and what KubeRay does about a RayJob is to start its driver as a process of this
machine, with the environment that the RayJob gives its pods.
"""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest

from tests.integration import ray_head as rays
from tests.integration.kuberay import KubeRay, work_in

pytestmark = [pytest.mark.proof, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory):
    with rays.s3_server(tmp_path_factory.mktemp("s3")) as variables:
        yield variables


@pytest.fixture
def cluster(kubernetes_api, tmp_path):
    (tmp_path / "pods").mkdir()
    kuberay = KubeRay(kubernetes_api, tmp_path / "pods")
    yield kuberay
    kuberay.close()


@pytest.fixture(scope="module")
def calm(s3, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of the long phase, trained on this machine and left alone."""
    work = work_in(tmp_path_factory.mktemp("calm"), s3, rays.LONG).with_compute(ray="local")
    rays.ended(work.train(), 0)
    return bytes(work.weights())


@pytest.fixture
def work(s3, tmp_path):
    return work_in(tmp_path / "work", s3, rays.LONG)


def posted(server: Any) -> int:
    """RayJobs that were asked for."""
    return len(server.asked("POST", "/rayjobs"))


def test_a_step_that_is_killed_finds_its_rayjob_again(kubernetes_api, cluster, work, calm) -> None:
    kubernetes_api.put("workflows", "wf", labels={"pipeline/runid": "r1"}, spec={})
    waiting = work.train(KFP_RUN_ID="r1")
    rays.until(lambda: work.newest() >= 5, "a checkpoint")
    waiting.kill()
    waiting.communicate()
    out = rays.ended(work.train(KFP_RUN_ID="r1"), 0)
    assert posted(kubernetes_api) == len(cluster.drivers) == 1
    assert work.manifest()["info"]["resumed_at"] == 0  # the driver was never disturbed
    assert work.weights() == calm
    [name] = kubernetes_api.names("rayjobs")
    assert f"[{name}] train.main.1.s5: making phases/" in out  # the log from its beginning
    [owner] = kubernetes_api.get("rayjobs", name)["metadata"]["ownerReferences"]
    assert owner["name"] == "wf"
    again = rays.ended(work.train("run-2"), 0)  # found in the store: nothing is asked for
    assert json.loads(again.splitlines()[-1]) == json.loads(out.splitlines()[-1])
    assert posted(kubernetes_api) == 1
    kubernetes_api.remove("workflows", "wf")
    assert kubernetes_api.names("rayjobs") == []


@pytest.mark.soak
def test_a_driver_that_is_killed_is_followed_by_one_that_goes_on(kubernetes_api, cluster, work, calm) -> None:
    waiting = work.train()
    step = rays.until(lambda: work.newest() >= 10 and work.newest(), "the checkpoint of step 10")
    cluster.drivers[0].kill()
    rays.ended(waiting, 0)
    assert posted(kubernetes_api) == 2
    assert work.manifest()["info"]["resumed_at"] >= step
    assert work.weights() == calm
    assert kubernetes_api.names("rayjobs") == []


@pytest.mark.soak
def test_an_api_that_is_away_changes_nothing(kubernetes_api, cluster, work, calm) -> None:
    waiting = work.train()
    rays.until(lambda: work.newest() >= 5, "a checkpoint")
    kubernetes_api.go_away()
    tried = len(kubernetes_api.requests)
    assert cluster.drivers[0].wait(rays.LONGEST) == 0  # it ends meanwhile
    rays.until(lambda: len(kubernetes_api.requests) > tried, "a request")
    assert waiting.poll() is None
    kubernetes_api.come_back()
    rays.ended(waiting, 0)
    assert posted(kubernetes_api) == 1
    assert work.weights() == calm


@pytest.mark.soak
def test_a_run_that_is_stopped_leaves_nothing(kubernetes_api, cluster, work) -> None:
    waiting = work.train()
    rays.until(lambda: work.newest() >= 5, "a checkpoint")
    waiting.send_signal(signal.SIGINT)
    waiting.communicate(timeout=rays.LONGEST)
    assert kubernetes_api.names("rayjobs") == []
    assert cluster.drivers[0].wait(rays.LONGEST) == 143
    leases = [json.loads(work.read(name)) for name in work.names("leases/phases")]
    assert [lease["holder"] for lease in leases] == [None]


@pytest.mark.soak
def test_what_the_driver_says_arrives(kubernetes_api, cluster, s3, tmp_path) -> None:
    """The rate ruins the model at its second step: the user must mend it, and another attempt would not."""
    work = work_in(tmp_path / "work", s3, {**rays.LONG, "learning_rate": 1e30, "warmup_ratio": 0.0})
    out = rays.ended(work.train(), 1)
    assert "components.common.errors.DataError" in out
    assert "lower the phase's `learning_rate`" in out.partition("remedy:")[2]
    assert posted(kubernetes_api) == 1


def test_cancel_ends_a_pipelines_rayjobs(kubernetes_api, cluster, work, monkeypatch) -> None:
    from components.common.kubernetes_api import connect
    from components.common.rayjob_claim import cancel_run

    kubernetes_api.put("workflows", "wf", labels={"pipeline/runid": "r1"}, spec={})
    waiting = work.train(KFP_RUN_ID="r1")
    rays.until(lambda: work.newest() >= 5, "a checkpoint")
    kubernetes_api.change("workflows", "wf", {"spec": {"activeDeadlineSeconds": 0}})  # KFP's way to end a run
    [name] = kubernetes_api.names("rayjobs")
    assert cancel_run(connect(), "run-1", kfp="r1") == [name]
    assert cluster.drivers[0].wait(rays.LONGEST) == 143
    waiting.communicate(timeout=rays.LONGEST)
    assert waiting.returncode == 1
    assert kubernetes_api.names("rayjobs") == []
    assert posted(kubernetes_api) == 1  # the step saw that its run ends, and made no other
    leases = [json.loads(work.read(name)) for name in work.names("leases/phases")]
    assert [lease["holder"] for lease in leases] == [None]
