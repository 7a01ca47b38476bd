"""A sweep as one job of a real Ray cluster whose nodes share no disk: what it comes to, and what faults leave of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.integration import ray_head as rays

pytestmark = [pytest.mark.proof, pytest.mark.timeout(900)]
BASE = {
    **rays.SPEC,
    "curriculum": {"sft": {"epochs": 6, "learning_rate": 1.0e-3, "batch_size": 16, "max_length": 256}},
    "evaluation": {"max_new_tokens": 3, "resamples": 100},
}
SWEEP = {
    "name": "sweep",
    "base": "base.yaml",
    "space": {"splitting.tiers": [1, 2], "curriculum.order": "permutations"},
    "search": {"method": "grid", "trials": 9, "seeds": 2, "promising": 2},
    "slots": 2,
}
LONGEST = 600.0
"""Seconds after which a sweep that does not end is a failure; nothing is measured by it."""
RUN = """
from pathlib import Path
from pipelines.sweep_remote import run
from pipelines.sweep_spec import load_sweep
print(run(context, load_sweep(Path("sweep.yaml")).to_json()))
"""
"""What the task of a sweep's pipeline does."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path, list[Any]]]:
    """Two nodes of a core."""
    with rays.nodes_of_their_own(tmp_path_factory.mktemp("cluster"), 2) as cluster:
        yield cluster


@pytest.fixture
def new_work(cluster: Any, tmp_path: Path) -> Callable[[], Any]:
    """Makes a folder with a sweep that uses the cluster, and a store of its own."""
    head, cache, _ = cluster

    def make(ray: str = head.address) -> Any:
        folder = tmp_path / f"work-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        spec = {**BASE, "store": rays.new_store(), "compute": {**BASE["compute"], "ray": ray}}
        (folder / "base.yaml").write_text(yaml.safe_dump(spec))
        (folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
        variables = {**head.variables, "PHASETUNE_CACHE": str(cache), "RAY_AUTH_TOKEN": head.token}
        return rays.Work(folder, {**variables, "PHASETUNE_HEARTBEAT": "4"}, spec)

    return make


def results(work: Any) -> dict[str, Any]:
    """The sweep.json of the run that trained least: of the last one."""
    found = [json.loads(work.read(name)) for name in work.names("sweeps") if name.endswith("/sweep.json")]
    return dict(min(found, key=lambda one: one["phases_trained"]))


def table(found: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on where it was made, and what happened."""
    rows = {json.dumps(row["params"]): [row["metrics"], row["keys"], row["state"]] for row in found["table"]}
    return {"verdict": found["verdict"], "merged": found["merged_trials"], **rows}


def at_work(nodes: list[Any]) -> list[Any]:
    """The nodes on which a task of the sweep is under way."""

    def works(process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):  # it has ended since
            return "ray::call_there" in " ".join(process.cmdline())
        return False

    return [node for node in nodes if any(map(works, psutil.Process(node.pid).children(recursive=True)))]


@pytest.fixture(scope="module")
def calm(cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the sweep comes to on this machine, with nothing in its way."""
    folder = tmp_path_factory.mktemp("calm")
    (folder / "base.yaml").write_text(yaml.safe_dump({**BASE, "store": str(folder / "store")}))
    (folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    command = [str(Path(sys.executable).with_name("phasetune")), "sweep", "sweep.yaml"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, env={**os.environ})
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return table(json.loads((folder / "runs" / "sweep" / "sweep.json").read_text()))


def test_nodes_come_to_the_table_of_one_machine(cluster, new_work, calm):
    """Also the repetitions with another seed, which follow after Tune has left; a second run trains nothing."""
    nodes = cluster[2]
    work = new_work()
    process = work.step(RUN)
    rays.until(lambda: process.poll() is not None or len(at_work(nodes)) == 2, "work on both nodes")
    out = rays.ended(process, 0, LONGEST)
    found = results(work)
    assert found["phases_trained"] == found["phases_distinct"] > 0, out
    assert table(found) == calm
    rays.ended(work.step(RUN, "run-2"), 0, LONGEST)
    again = results(work)
    assert again["phases_trained"] == 0
    assert table(again) == calm
    assert work.names("waiting") == work.names("checkpoints") == []


@pytest.mark.soak
def test_a_stop_saves_the_state_and_a_lost_node_is_done_without(cluster, new_work, calm):
    head, _, nodes = cluster
    work = new_work()
    before = {job["submission_id"] for job in head.jobs()}
    process = work.step(RUN)
    rays.until(work.newest, "a checkpoint")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=rays.LONGEST)
    assert [job["status"] for job in head.jobs_beside(before)] == ["STOPPED"]
    assert at_work(nodes) == []
    assert {json.loads(work.read(name))["holder"] for name in work.names("leases/phases")} <= {None}
    process = work.step(RUN)
    [lost, *_] = rays.until(lambda: at_work(nodes), "work on a node")
    rays.end_family(lost)
    rays.ended(process, 0, LONGEST)
    assert table(results(work)) == calm
