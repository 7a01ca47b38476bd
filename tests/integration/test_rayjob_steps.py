"""Every kind of step that is a RayJob, a whole sweep too: its driver really runs, in a real Ray cluster.

The API server is the tests' own, KubeRay is played (`kuberay`), and each result is compared with one of this machine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.common.kubernetes_api import connect
from components.common.rayjob_claim import cancel_run
from tests.integration import ray_head as rays
from tests.integration.kuberay import KubeRay, as_rayjobs, work_in

pytestmark = [pytest.mark.proof, pytest.mark.timeout(500)]
STEPS = {
    "scores": """
from components.preparing import step as preparing
from components.scoring.step import run
print(run(context, preparing.run(context)))
""",
    "phases": """
from components.training.step import run
print(run(context, split, "", "main", 1, 5))
""",
    "evaluations": """
from components.evaluation.step import run
print(run(context, split, "", "base", 0, 5))
""",
}
"""What the task of each kind of step does."""
SWEEP = {
    "name": "sweep",
    "base": "base.yaml",
    "space": {"splitting.tiers": [1, 2]},
    "search": {"method": "grid", "trials": 2},
}
RUN_SWEEP = """
from pathlib import Path
from pipelines.sweep_remote import run
from pipelines.sweep_spec import load_sweep
print(run(context, load_sweep(Path("sweep.yaml")).to_json()))
"""
SHORT = {"epochs": 1, "learning_rate": 1.0e-3, "batch_size": 16, "max_length": 256}


@pytest.fixture
def cluster(head: Any, kubernetes_api: Any, tmp_path: Path) -> Iterator[KubeRay]:
    (tmp_path / "pods").mkdir()
    kuberay = KubeRay(kubernetes_api, tmp_path / "pods")
    kuberay.variables = head.inside()
    yield kuberay
    kuberay.close()


@pytest.fixture
def work(head: Any, tmp_path: Path) -> Any:
    """A run of one phase whose scores are the model's; its data is split, and its own store is empty."""

    work = work_in(tmp_path / "work", head.variables, SHORT)
    return replace(work, spec={**work.spec, "scoring": {"method": "loss"}, "store": rays.new_store()})


def essence(work: Any, kind: str) -> Any:
    """What a result says, wherever it was made."""
    if kind == "phases":
        return work.weights()
    manifests = [json.loads(work.read(name)) for name in work.names(kind) if name.endswith("/manifest.json")]
    if kind == "evaluations":
        return manifests[0]["info"]["metrics"]
    [method] = {manifest["info"]["method"] for manifest in manifests}
    return method, {name: round(value, 3) for name, value in work.difficulties().items()}  # batches may differ


def in_another_store(work: Any) -> Any:
    """The same run on this machine."""
    return work.with_compute(ray="local").with_store(rays.new_store())


# Phases as RayJobs are the matter of test_rayjob.py; scores have actors besides.
@pytest.mark.parametrize(
    "kind", [kind if kind == "scores" else pytest.param(kind, marks=pytest.mark.soak) for kind in STEPS]
)
def test_a_step_is_done_by_the_driver_of_its_rayjob(kubernetes_api, cluster, work, kind) -> None:
    out = rays.ended(work.step(STEPS[kind]), 0)
    [driver] = cluster.drivers
    assert driver.returncode == 0
    [(_, name)] = [line.split(": made the RayJob ") for line in out.splitlines() if ": made the RayJob " in line]
    assert name.startswith(f"{kind}-")
    assert f": making {kind}/" in next(line for line in out.splitlines() if line.startswith(f"[{name.split()[0]}] "))
    here = in_another_store(work)
    rays.ended(here.step(STEPS[kind]), 0)
    assert len(cluster.drivers) == 1
    assert essence(work, kind) == essence(here, kind)


@pytest.mark.parametrize(
    ("kind", "ends"),
    [
        ("phases", signal.SIGKILL),
        pytest.param("scores", signal.SIGTERM, marks=pytest.mark.soak),
        pytest.param("phases", signal.SIGTERM, marks=pytest.mark.soak),
        pytest.param("evaluations", signal.SIGTERM, marks=pytest.mark.soak),
        pytest.param("scores", signal.SIGKILL, marks=pytest.mark.soak),
        pytest.param("evaluations", signal.SIGKILL, marks=pytest.mark.soak),
    ],
)
def test_cancel_leaves_nothing_of_a_step(kubernetes_api, cluster, work, kind, ends) -> None:
    """Also where the driver's node goes with it, and it cannot release its lease: another run takes that over."""
    cluster.ends = ends
    kubernetes_api.put("workflows", "wf", labels={"pipeline/runid": "r1"}, spec={})
    waiting = work.step(STEPS[kind], KFP_RUN_ID="r1")
    holders = rays.until(lambda: work.holders(kind), "the driver's lease")
    [driver] = cluster.drivers
    driver.send_signal(signal.SIGSTOP)  # what comes finds it in the middle of its work, on a fast machine too
    [name] = kubernetes_api.names("rayjobs")
    assert "volumeclaim" not in json.dumps(kubernetes_api.get("rayjobs", name)).lower()
    kubernetes_api.change("workflows", "wf", {"spec": {"activeDeadlineSeconds": 0}})
    assert cancel_run(connect(), "run-1", kfp="r1") == [name]
    driver.send_signal(signal.SIGCONT)
    assert driver.wait(rays.LONGEST) == (143 if ends == signal.SIGTERM else -9)
    rays.ended(waiting, 1)
    assert kubernetes_api.names("rayjobs") == []
    assert len(cluster.drivers) == 1
    assert work.holders() == ([] if ends == signal.SIGTERM else holders)
    if ends == signal.SIGKILL:
        rays.ended(work.with_compute(ray="local").step(STEPS[kind], "run-2"), 0)
        assert work.holders() == []


def table(found: dict[str, Any]) -> dict[str, Any]:
    """What a sweep comes to, wherever it was made."""
    rows = {json.dumps(row["params"]): [row["metrics"], row["keys"], row["state"]] for row in found["table"]}
    return {"verdict": found["verdict"], **rows}


@pytest.mark.soak  # test_sweep_nodes.py has one in a cluster, by the Jobs API
def test_a_sweep_is_one_rayjob_with_the_table_of_this_machine(kubernetes_api, cluster, head, tmp_path) -> None:
    evaluation = {"max_new_tokens": 3, "max_examples": 4, "resamples": 100}
    base = {**rays.SPEC, "curriculum": {"sft": SHORT}, "evaluation": evaluation}
    here, there = tmp_path / "here", tmp_path / "there"
    spec = as_rayjobs({**base, "store": rays.new_store()}, head.variables)
    for folder, values in ((here, {**base, "store": str(here / "store")}), (there, spec)):
        folder.mkdir()
        (folder / "base.yaml").write_text(yaml.safe_dump(values))
        (folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
    work = rays.Work(there, {**head.variables, "PHASETUNE_CACHE": str(there / "cache")}, spec)
    rays.ended(work.step(RUN_SWEEP), 0, 400)
    assert [driver.returncode for driver in cluster.drivers] == [0]
    assert len(kubernetes_api.asked("POST", "/rayjobs")) == 1
    [name] = [name for name in work.names("sweeps") if name.endswith("/sweep.json")]
    found = json.loads(work.read(name))
    assert (found["phases_trained"], len(found["table"])) == (3, 2)
    command = [str(Path(sys.executable).with_name("phasetune")), "sweep", "sweep.yaml"]
    ended = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=400, env={**os.environ})
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert table(found) == table(json.loads((here / "runs" / "sweep" / "sweep.json").read_text()))
