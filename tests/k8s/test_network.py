"""Network policies: everything is denied, and each arrow is named, real, and open at both ends."""

from __future__ import annotations

import copy
import re

import pytest

from tests.k8s import arrows, manifests


@pytest.fixture
def all_pods(overlay):
    spaces = {item["metadata"]["namespace"] for item in overlay if item["kind"] == "NetworkPolicy"}
    return manifests.pods(overlay) + [pod for space in sorted(spaces) for pod in manifests.made_later(space)]


@pytest.fixture
def dev(overlays):
    """A copy of the objects for development, to be broken, and all their pods."""
    objects = copy.deepcopy(overlays["dev"])
    return objects, manifests.pods(objects) + manifests.made_later("phasetune") + manifests.made_later("kubeflow")


def policy(objects, name, namespace="phasetune"):
    wanted = {"name": name, "namespace": namespace}
    return next(
        item for item in objects if item["kind"] == "NetworkPolicy" and wanted.items() <= item["metadata"].items()
    )


def test_every_pod_is_denied_first(overlay, all_pods):
    assert arrows.open_pods(overlay, all_pods) == []


def test_arrows_are_open_at_both_ends(overlay, all_pods):
    assert arrows.one_way(overlay, all_pods) == []


def test_every_rule_reaches_a_real_port(overlay, all_pods, versions):
    assert arrows.unused(overlay, all_pods, versions) == []


def test_every_outside_port_is_used(overlay, all_pods, versions):
    used = {(to, port) for _, to, port in arrows.arrows(overlay, all_pods, versions)}
    assert {(item["pods"], port) for item in versions["outside"] for port in item["ports"]} <= used


def test_ray_reaches_neither_the_database_nor_kfp(overlay, all_pods, versions):
    found = arrows.arrows(overlay, all_pods, versions)
    reached = {(source, to) for source, to, _ in found if source in ("ray-head", "ray-worker", "ray-submitter")}
    assert not {to for _, to in reached} & {"postgres", "app=ml-pipeline", "app=seaweedfs"}
    ports = {(source, port) for source, to, port in found if to == "addresses" and source.startswith("ray")}
    # The head's pod holds KubeRay's autoscaler, which asks the Kubernetes API.
    assert ports == {("ray-head", 443), ("ray-head", 6443), ("ray-head", 8443), ("ray-worker", 443)}


def test_the_table_of_arrows_is_current(overlays, versions):
    found = set()
    for objects in overlays.values():
        spaces = {item["metadata"]["namespace"] for item in objects if item["kind"] == "NetworkPolicy"}
        later = [pod for space in sorted(spaces) for pod in manifests.made_later(space)]
        found |= arrows.arrows(objects, manifests.pods(objects) + later, versions)
    ray = {"ray-head", "ray-worker"}
    found = {arrow for arrow in found if not (arrow[0] in ray and arrow[1] in ray)} | {("ray", "ray", 1024)}
    readme = (manifests.K8S / "README.md").read_text()
    written = set()
    for sources, targets, ports in re.findall(r"^\| `([^|]+)` \| `([^|]+)` \| ([\d, ]+) \|", readme, re.MULTILINE):
        for source in sources.split("`, `"):
            for target in targets.split("`, `"):
                written |= {(source, target, int(port)) for port in ports.split(",")}
    everyone = {arrow[0] for arrow in found} - {"ray", "app.kubernetes.io/component=kuberay-operator"}
    written = {
        (one, to, port) for source, to, port in written for one in (everyone if source == "every pod" else [source])
    }
    assert sorted(found - written) == []
    assert sorted(written - found) == []


def open_all(objects):
    policy(objects, "phasetune-default-deny")["spec"]["podSelector"] = {"matchLabels": {"app": "web"}}


def deny_ingress_only(objects):
    policy(objects, "phasetune-default-deny")["spec"]["policyTypes"] = ["Ingress"]


@pytest.mark.parametrize("change", [open_all, deny_ingress_only])
def test_an_open_pod_is_found(dev, change):
    objects, pods = dev
    assert arrows.open_pods(objects, pods) == []
    change(objects)
    assert "Deployment phasetune/mlflow" in arrows.open_pods(objects, pods)


@pytest.mark.parametrize(
    "name", ["phasetune-mlflow-clients", "phasetune-to-mlflow", "phasetune-s3-clients", "phasetune-to-postgres"]
)
def test_a_one_way_arrow_is_found(dev, name):
    objects, pods = dev
    objects.remove(policy(objects, name))
    assert arrows.one_way(objects, pods)


def wrong_port(objects):
    policy(objects, "phasetune-to-mlflow")["spec"]["egress"][0]["ports"][0]["port"] = 5001


def wrong_peer(objects):
    policy(objects, "phasetune-to-mlflow")["spec"]["egress"][0]["to"][0]["podSelector"]["matchLabels"] = {"a": "b"}


def wrong_subject(objects):
    policy(objects, "phasetune-to-mlflow")["spec"]["podSelector"] = {"matchLabels": {"a": "b"}}


def wrong_namespace(objects):
    peer = policy(objects, "phasetune-workflow-to-kfp")["spec"]["egress"][0]["to"][0]
    peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] = "kf"


def whole_internet(objects):
    policy(objects, "phasetune-secrets-to-kubernetes-api")["spec"]["egress"][0]["to"][0]["ipBlock"]["cidr"] = (
        "0.0.0.0/0"
    )


def metadata_service(objects):
    del policy(objects, "phasetune-to-https")["spec"]["egress"][0]["to"][0]["ipBlock"]["except"]


@pytest.mark.parametrize(
    "change", [wrong_port, wrong_peer, wrong_subject, wrong_namespace, whole_internet, metadata_service]
)
def test_an_arrow_to_nothing_is_found(dev, versions, change):
    objects, pods = dev
    assert arrows.unused(objects, pods, versions) == []
    change(objects)
    assert arrows.unused(objects, pods, versions)
