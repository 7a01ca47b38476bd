"""What is asked for fits on the machines that there are: the laptop of docs/operations.md, the nodes of infra/aws.

A pod for which no node is large enough waits for ever, and so does one whose room Kueue has promised away.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import hcl2
import pytest
import yaml

from components.common.rayjob_pods import amount, submitter_pod
from components.common.spec import Spec
from components.common.spec_file import load_spec
from components.common.spec_kubernetes import PodSpec
from pipelines.phased import compile_pipeline
from tests.k8s import manifests

ROOT = manifests.K8S.parent
WHAT = ("cpu", "memory", "ephemeral-storage")
OTHERS = Counter(cpu=2.5, memory=5 * 2**30)
"""What the pods of Kubernetes itself, KFP alone, Kueue and KubeRay request together, rounded up."""
FREE = {"cpu": 0.9, "memory": 0.9, "ephemeral-storage": 0.85, "nvidia.com/gpu": 1.0}
"""Of a node's size, what the system, its agents and the room for evictions leave to pods, rounded down."""
FOR_OTHERS = 2
"""CPU nodes for Kubeflow, MLflow and the pipeline's pods: those that always stand."""


def requested(pod: Any) -> Counter[str]:
    """What a pod requests: its containers together, or more where one that runs before them wants more."""

    def of(item: Any) -> Counter[str]:
        return Counter({name: amount(str(item["resources"]["requests"][name])) for name in WHAT})

    total = sum(map(of, pod["containers"]), Counter())
    for item in pod.get("initContainers", []):
        total |= of(item)
    return total


def ordered(pod: PodSpec, count: int = 1) -> Counter[str]:
    """What pods of a spec request."""
    return Counter(
        {name: count * amount(value) for name, value in zip(WHAT, (pod.cpu, pod.memory, pod.disk), strict=True)}
    )


def rayjob(spec: Spec) -> Counter[str]:
    """What a RayJob without workers requests."""
    return ordered(spec.compute.kubernetes.head) + requested(submitter_pod(spec, "x")["spec"])


def widest(spec: Spec, path: Path) -> int:
    """The most steps that are equally many steps away from the start: they wait for their RayJobs at once."""
    compile_pipeline(spec, path, allow_local=False)
    compiled = next(yaml.safe_load_all(path.read_text()))
    tasks = max((one["dag"]["tasks"] for one in compiled["components"].values() if "dag" in one), key=len)
    depth: dict[str, int] = {}

    def of(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max((of(one) for one in tasks[name].get("dependentTasks", [])), default=0)
        return depth[name]

    return max(Counter(map(of, tasks)).values())


def quota(objects: list[Any]) -> dict[str, Counter[str]]:
    """What Kueue may admit, by flavor."""
    queue = next(item for item in objects if item["kind"] == "ClusterQueue")
    return {
        flavor["name"]: Counter({one["name"]: amount(str(one["nominalQuota"])) for one in flavor["resources"]})
        for flavor in queue["spec"]["resourceGroups"][0]["flavors"]
    }


@pytest.fixture(scope="module")
def laptop(tmp_path_factory):
    """The spec of docs/operations.md, and the size of the machine that the page asks for."""
    page = (ROOT / "docs" / "operations.md").read_text()
    path = tmp_path_factory.mktemp("laptop") / "laptop.yaml"
    path.write_text(re.search(r"```yaml\n(# laptop.yaml.*?)```", page, re.DOTALL)[1])
    cpus, memory = re.search(r"A cluster with (\d+) CPUs and (\d+) GiB", page).groups()
    return load_spec(path), Counter(cpu=int(cpus), memory=int(memory) * 2**30)


def test_the_laptop_has_room(overlays, laptop, tmp_path):
    """For what is always there, all that Kueue admits, and the steps that wait: none waits for another's room."""
    spec, machine = laptop
    admitted = sum(quota(overlays["dev"]).values(), Counter())
    always = [pod for pod in manifests.pods(overlays["dev"]) if pod.owner.split()[0] in ("Deployment", "StatefulSet")]
    interactive = next(pod for pod in manifests.pods(overlays["dev"]) if pod.component == "ray-head")
    needed = requested(interactive.spec) + rayjob(spec)
    assert all(needed[name] <= admitted[name] for name in WHAT)
    steps = ordered(spec.compute.kubernetes.pipeline, widest(spec, tmp_path / "pipeline.yaml"))
    total = sum((requested(pod.spec) for pod in always), OTHERS + admitted + steps)
    assert {name: total[name] for name in machine if total[name] > machine[name]} == {}


def nodes() -> dict[str, tuple[Counter[str], int]]:
    """Of each pool, what a node leaves to pods, and the most nodes."""
    sizes = yaml.safe_load((ROOT / "infra/aws/prices.yaml").read_text())["nodes"]
    types = {
        name.strip('"'): body["type"]
        for item in hcl2.loads((ROOT / "infra/aws/variables.tf").read_text())["variable"]
        for name, body in item.items()
    }
    found = {}
    for pool, size in (("cpu", sizes["cpu"]), ("gpu", sizes["gpu"]), ("gpu-spot", sizes["gpu"])):
        most = re.search(r"\bmax\b[^,]*?optional\([^,]+, (\d+)\)", types[f"{pool.replace('-', '_')}_nodes"])[1]
        whole = Counter(
            {
                "cpu": size["vcpus"],
                "memory": size["memory_gib"] * 2**30,
                "ephemeral-storage": size["disk_gib"] * 2**30,
                "nvidia.com/gpu": size.get("gpus", 0),
            }
        )
        found[pool] = (Counter({name: value * FREE[name] for name, value in whole.items()}), int(most))
    return found


def fits(pod: Counter[str], node: Counter[str]) -> int:
    """How many such pods a node has room for."""
    return int(min(node[name] // value for name, value in pod.items() if value))


def test_kueue_promises_no_more_than_the_nodes_have(overlays):
    promised = quota(overlays["production"])
    assert promised.keys() == {f"phasetune-{pool}" for pool in nodes()}
    for pool, (node, most) in nodes().items():
        count = most - FOR_OTHERS * (pool == "cpu")
        too_much = {name: value for name, value in promised[f"phasetune-{pool}"].items() if value > count * node[name]}
        assert too_much == {}, pool


def test_the_worked_example_fits_on_the_nodes(overlays):
    """Also as often as Kueue admits it: heads by what they ask for, workers by their GPUs."""
    spec = load_spec(ROOT / "pipelines/specs/cluster.yaml")
    pods, (cpu, most), (gpu, _) = spec.compute.kubernetes, nodes()["cpu"], nodes()["gpu"]
    assert pods.head.node_selector == pods.pipeline.node_selector == {"phasetune/pool": "cpu"}
    assert fits(ordered(pods.pipeline), cpu) >= 2
    promised = quota(overlays["production"])["phasetune-cpu"]
    assert 1 <= fits(rayjob(spec), promised) <= fits(rayjob(spec), cpu) * (most - FOR_OTHERS)
    worker = ordered(pods.worker) + Counter({"nvidia.com/gpu": spec.compute.gpus_per_worker})
    assert fits(worker, gpu) * spec.compute.gpus_per_worker == gpu["nvidia.com/gpu"]  # no GPU of a node is left over
    assert fits(worker, quota(overlays["production"])["phasetune-gpu"]) >= spec.compute.most_workers


def test_the_interactive_cluster_fits_on_the_nodes(overlays):
    cpu = nodes()["cpu"][0]
    ray = [pod for pod in manifests.pods(overlays["production"]) if pod.owner.startswith("RayCluster")]
    assert [fits(requested(pod.spec), cpu) >= 1 for pod in ray] == [True, True]
