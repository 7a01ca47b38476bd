"""Training on nodes that share no disk: each node of the cluster has a file system of its own where the phase lies."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration import ray_head as rays

pytestmark = [pytest.mark.proof, pytest.mark.timeout(600)]
SFT = {**rays.LONG, "epochs": 8}
TWO = {"workers": 2, "threads": 2, "checkpoint_every": 5}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path, list[Any]]]:
    """Three nodes of a core."""
    with rays.nodes_of_their_own(tmp_path_factory.mktemp("cluster"), 3) as cluster:
        yield cluster


def _work(cluster: Any, folder: Path, cache: Path | None = None, **changes: Any) -> rays.Work:
    """A run of two workers; copies of its files lie on the disks of the nodes, or in a cache of its own."""
    head, shared, _ = cluster
    return rays.prepared(head, folder, cache or shared, compute=TWO, **{"curriculum": {"sft": SFT}, **changes})


@pytest.fixture
def new_work(cluster: Any, tmp_path: Path) -> Callable[[], Any]:
    """Makes a run of which the data is split, in a store of its own."""
    return lambda: _work(cluster, tmp_path)


@pytest.fixture(scope="module")
def calm(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of the phase, trained by two workers of this machine."""
    folder = tmp_path_factory.mktemp("calm")
    work = _work(cluster, folder, folder / "cache").with_compute(ray="local")
    rays.ended(work.train(), 0)
    return bytes(work.weights())


def disk_of(node: Any, cache: Path) -> Path:
    """The cache as a node sees it."""
    return Path(f"/proc/{node.pid}/root{cache}")


def copies(node: Any, cache: Path) -> list[Path]:
    """The copies of phases' folders, and their locks, on a node."""
    return sorted(path for path in disk_of(node, cache).glob("store/*/.staging/*"))


def test_two_nodes_train_as_one_machine_does(cluster, new_work, calm):
    _, cache, nodes = cluster
    work = new_work()
    process = work.train()
    used = rays.until(lambda: work.newest() and [node for node in nodes if copies(node, cache)], "a checkpoint")
    assert len(used) == 2
    rays.ended(process, 0)
    assert work.weights() == calm
    assert [copies(node, cache) for node in nodes] == [[], [], []]


@pytest.mark.soak
def test_a_stop_saves_the_state_first(cluster, tmp_path):
    head, _, _ = cluster
    work = _work(cluster, tmp_path, curriculum={"sft": {**SFT, "epochs": 100}})
    work = work.with_compute(checkpoint_every=100_000)
    before = {job["submission_id"] for job in head.jobs()}
    process = work.train()
    rays.until(lambda: head.jobs_beside(before), "the job")
    rays.until(lambda: re.search(r": [1-9]\d* of", head.log(head.jobs_beside(before)[0])), "a step that is done")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=rays.LONGEST)
    assert [job["status"] for job in head.jobs_beside(before)] == ["STOPPED"]
    assert work.newest() > 0


@pytest.mark.soak
def test_a_node_that_is_lost_is_done_without(cluster, new_work, calm):
    _, cache, nodes = cluster
    work = new_work()
    left = [set(copies(node, cache)) for node in nodes]  # of workers that were killed
    process = work.train()
    step = rays.until(lambda: work.newest() >= 10 and work.newest(), "the checkpoint of step 10")
    lost = next(node for node, before in zip(nodes, left, strict=True) if set(copies(node, cache)) - before)
    for one in [*psutil.Process(lost.pid).children(recursive=True), psutil.Process(lost.pid)]:
        one.kill()
    rays.ended(process, 0)
    assert work.weights() == calm
    assert work.manifest()["info"]["resumed_at"] >= step


@pytest.mark.soak
def test_actors_of_other_nodes_score_the_rows_of_the_drivers_machine(cluster, tmp_path):
    """The files lie on the driver's machine alone, whose node has no core to read them with."""
    head, _, _ = cluster
    work = _work(cluster, tmp_path, scoring={"method": "loss"})
    [sent] = [job for job in head.jobs() if job["submission_id"].startswith("scores-")]
    assert sent["status"] == "SUCCEEDED"
    here = tmp_path / "here"
    here.mkdir()
    alone = rays.Work(here, {**work.variables, "PHASETUNE_CACHE": str(here / "cache")}, work.spec)
    alone = alone.with_compute(ray="local").with_store(rays.new_store())
    alone.prepare()
    assert work.difficulties() == pytest.approx(alone.difficulties(), rel=1e-5)
