"""Both overlays render, and every object is valid for its schema, strictly."""

from __future__ import annotations

import copy
import re

import pytest

from tests import needed
from tests.k8s import manifests


@pytest.fixture(scope="module")
def faults(versions):
    """All faults of an object against its schema; unknown fields are faults."""
    import kubernetes_validate

    validators = manifests.crd_validators(needed.crds())

    def check(item) -> list[str]:
        key = (item["apiVersion"], item["kind"])
        if key in validators:
            return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in validators[key].iter_errors(item)]
        try:
            kubernetes_validate.validate(item, versions["kubernetes"], strict=True)
        except kubernetes_validate.ValidationError as error:
            return [f"{'.'.join(map(str, error.path))}: {error.message}"]
        return []

    return check


def test_every_object_is_valid(overlay, faults):
    assert {manifests.title(item): found for item in overlay if (found := faults(item))} == {}


def test_kinds_that_are_there(overlays):
    kinds = {name: {item["kind"] for item in objects} for name, objects in overlays.items()}
    both = {"Namespace", "Deployment", "CronJob", "RayCluster", "ClusterQueue", "LocalQueue", "ResourceFlavor"}
    assert both | {"NetworkPolicy", "PodDisruptionBudget", "Role", "Service"} <= kinds["dev"] & kinds["production"]
    assert {"StatefulSet", "Job", "PersistentVolumeClaim"} <= kinds["dev"] - kinds["production"]


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("Deployment", ("spec", "template", "spec", "containers", 0)),
        ("NetworkPolicy", ("spec",)),
        ("Role", ("rules", 0)),
        ("CronJob", ("spec", "jobTemplate", "spec")),
        ("RayCluster", ("spec", "headGroupSpec")),
        ("RayCluster", ("spec", "workerGroupSpecs", 0, "template", "spec", "containers", 0)),
        ("ClusterQueue", ("spec", "resourceGroups", 0, "flavors", 0)),
        ("ResourceFlavor", ("spec",)),
        ("LocalQueue", ("spec",)),
    ],
)
def test_unknown_fields_are_refused(overlays, faults, kind, path):
    item = copy.deepcopy(next(item for item in overlays["production"] if item["kind"] == kind))
    place = item
    for part in path:
        place = place[part]
    place["colour"] = "green"
    assert any("colour" in fault for fault in faults(item))


def test_names_are_unique(overlay):
    titles = [manifests.title(item) for item in overlay]
    assert len(titles) == len(set(titles))


def test_kueue_and_kuberay_are_asked_in_versions_that_last(overlay):
    asked = {item["apiVersion"] for item in overlay if item["apiVersion"].split("/")[0] in ("kueue.x-k8s.io", "ray.io")}
    assert asked == {"kueue.x-k8s.io/v1beta2", "ray.io/v1"}  # v1beta1 and v1alpha1 are on their way out


def test_versions_agree_with_the_packages(versions, overlay):
    pinned = (manifests.K8S.parent / "constraints.txt").read_text()
    ray = re.search(r"^ray==(\S+)", pinned, re.MULTILINE)[1]
    kfp = re.search(r"^kfp==(\d+\.\d+)", pinned, re.MULTILINE)[1]
    assert (versions["ray"], versions["kubeflow-pipelines"]) == (ray, kfp)
    assert [item["spec"]["rayVersion"] for item in overlay if item["kind"] == "RayCluster"] == [ray]


def test_the_queue_covers_what_pods_request(overlay):
    queue = next(item for item in overlay if item["kind"] == "ClusterQueue")
    covered = {name for group in queue["spec"]["resourceGroups"] for name in group["coveredResources"]}
    queued = [pod for pod in manifests.pods(overlay) if pod.owner.startswith("RayCluster")]
    requested = {name for pod in queued for item in pod.containers for name in item["resources"]["requests"]}
    assert requested <= covered
    assert "nvidia.com/gpu" in covered
    flavors = {item["metadata"]["name"] for item in overlay if item["kind"] == "ResourceFlavor"}
    used = [flavor for group in queue["spec"]["resourceGroups"] for flavor in group["flavors"]]
    assert {flavor["name"] for flavor in used} == flavors
    assert all({resource["name"] for resource in flavor["resources"]} == covered for flavor in used)


def test_flavors_and_nodes(overlays):
    flavors = {
        item["metadata"]["name"]: item["spec"] for item in overlays["production"] if item["kind"] == "ResourceFlavor"
    }
    assert {name: spec["nodeLabels"] for name, spec in flavors.items()} == {
        "phasetune-cpu": {"phasetune/pool": "cpu"},
        "phasetune-gpu": {"phasetune/pool": "gpu"},
        "phasetune-gpu-spot": {"phasetune/pool": "gpu-spot"},
    }
    assert flavors["phasetune-gpu-spot"]["nodeTaints"] == [
        {"key": "phasetune/spot", "value": "true", "effect": "NoSchedule"}
    ]
    development = [item["spec"] for item in overlays["dev"] if item["kind"] == "ResourceFlavor"]
    assert not any("nodeLabels" in spec for spec in development)  # a laptop's nodes have none
