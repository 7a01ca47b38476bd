"""The policies of rules.py hold in both overlays, and each of them finds what it is there for."""

from __future__ import annotations

import copy
import re

import pytest

from tests.k8s import manifests, rules

RULES = ["restricted", "images", "limits", "probes", "rights", "tokens", "references", "services", "places"]


def test_all_rules_are_here():
    assert sorted(rules.RULES) == sorted(RULES)


@pytest.mark.parametrize("rule", RULES)
def test_rule_holds(overlay, rule):
    assert rules.RULES[rule](overlay, manifests.pods(overlay)) == []


def test_production_runs_by_digest(overlays):
    assert rules.digests(overlays["production"], manifests.pods(overlays["production"])) == []
    assert rules.digests(overlays["dev"], manifests.pods(overlays["dev"]))  # so the rule can fail


def item_of(objects, kind, name, namespace="phasetune"):
    found = [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]
    return next(item for item in found if item["metadata"].get("namespace", namespace) == namespace)


def pod(objects, kind="Deployment", name="mlflow"):
    return item_of(objects, kind, name)["spec"]["template"]["spec"]


def first(objects):
    return pod(objects)["containers"][0]


def head(objects):
    return item_of(objects, "RayCluster", "phasetune-ray")["spec"]["headGroupSpec"]["template"]["spec"]


BROKEN = {
    "host network": ("restricted", lambda objects: pod(objects).update(hostNetwork=True)),
    "host path": (
        "restricted",
        lambda objects: pod(objects)["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
    ),
    "root": ("restricted", lambda objects: first(objects)["securityContext"].update(runAsUser=0)),
    "pod as anybody": ("restricted", lambda objects: pod(objects)["securityContext"].pop("runAsUser")),
    "no seccomp": ("restricted", lambda objects: pod(objects)["securityContext"].pop("seccompProfile")),
    "escalation": ("restricted", lambda objects: first(objects)["securityContext"].pop("allowPrivilegeEscalation")),
    "capability": (
        "restricted",
        lambda objects: first(objects)["securityContext"]["capabilities"].update(add=["NET_ADMIN"]),
    ),
    "init container": (
        "restricted",
        lambda objects: pod(objects)["initContainers"][0]["securityContext"].update(readOnlyRootFilesystem=False),
    ),
    "Ray's head": (
        "restricted",
        lambda objects: head(objects)["containers"][0]["securityContext"].update(privileged=True),
    ),
    "latest": ("images", lambda objects: first(objects).update(image="phasetune:latest")),
    "no tag": ("images", lambda objects: first(objects).update(image="host:5000/phasetune")),
    "no limit": ("limits", lambda objects: first(objects)["resources"]["limits"].pop("memory")),
    "no request": ("limits", lambda objects: first(objects)["resources"]["requests"].pop("cpu")),
    "too much promised": ("limits", lambda objects: first(objects)["resources"]["requests"].update(memory="1Mi")),
    "endless volume": ("limits", lambda objects: head(objects)["volumes"][0]["emptyDir"].pop("sizeLimit")),
    "no probe": ("probes", lambda objects: first(objects).pop("livenessProbe")),
    "no probe of Ray": ("probes", lambda objects: head(objects)["containers"][0].pop("readinessProbe")),
    "probe of nothing": ("probes", lambda objects: first(objects)["readinessProbe"]["httpGet"].update(port="web")),
    "endless job": (
        "probes",
        lambda objects: item_of(objects, "CronJob", "store-gc")["spec"]["jobTemplate"]["spec"].pop(
            "activeDeadlineSeconds"
        ),
    ),
    "wildcard": (
        "rights",
        lambda objects: item_of(objects, "Role", "phasetune-pipeline")["rules"][0].update(verbs=["*"]),
    ),
    "all secrets": (
        "rights",
        lambda objects: item_of(objects, "Role", "phasetune-kfp-executor")["rules"][2].pop("resourceNames"),
    ),
    "exec": (
        "rights",
        lambda objects: item_of(objects, "Role", "phasetune-pipeline")["rules"][2].update(resources=["pods/exec"]),
    ),
    "cluster role": (
        "rights",
        lambda objects: item_of(objects, "Role", "phasetune-pipeline").update(kind="ClusterRole"),
    ),
    "binding to nobody": (
        "rights",
        lambda objects: objects.remove(item_of(objects, "ServiceAccount", "phasetune-pipeline")),
    ),
    "token": ("tokens", lambda objects: pod(objects).update(automountServiceAccountToken=True)),
    "token by default": ("tokens", lambda objects: head(objects).pop("automountServiceAccountToken")),
    "account's token": (
        "tokens",
        lambda objects: item_of(objects, "ServiceAccount", "phasetune-ray").update(automountServiceAccountToken=True),
    ),
    "no settings": (
        "references",
        lambda objects: next(item for item in objects if item["metadata"]["name"].startswith("phasetune-settings"))[
            "data"
        ].pop("postgres_host"),
    ),
    "no account": ("references", lambda objects: pod(objects).update(serviceAccountName="nobody")),
    "unknown secret": (
        "references",
        lambda objects: first(objects)["env"].append(
            {"name": "X", "valueFrom": {"secretKeyRef": {"name": "phasetune-tracking", "key": "token"}}}
        ),
    ),
    "secret in the repository": (
        "references",
        lambda objects: objects.append({"kind": "Secret", "metadata": {"name": "x", "namespace": "phasetune"}}),
    ),
    "service of nobody": (
        "services",
        lambda objects: item_of(objects, "Service", "mlflow")["spec"]["selector"].update({"a": "b"}),
    ),
    "service's port": (
        "services",
        lambda objects: item_of(objects, "Service", "mlflow")["spec"]["ports"][0].update(targetPort="web"),
    ),
    "load balancer": (
        "services",
        lambda objects: item_of(objects, "Service", "mlflow")["spec"].update(type="LoadBalancer"),
    ),
    "no token of Ray": (
        "places",
        lambda objects: item_of(objects, "RayCluster", "phasetune-ray")["spec"].pop("authOptions"),
    ),
    "lax namespace": (
        "places",
        lambda objects: item_of(objects, "Namespace", "phasetune")["metadata"]["labels"].update(
            {"pod-security.kubernetes.io/enforce": "baseline"}
        ),
    ),
    "no home": (
        "places",
        lambda objects: first(objects)["env"].remove({"name": "HOME", "value": "/home/phasetune"}),
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_rule_finds(overlays, what):
    rule, change = BROKEN[what]
    objects = copy.deepcopy(overlays["dev"])
    change(objects)
    assert rules.RULES[rule](objects, manifests.pods(objects))


def test_the_pipeline_has_the_rights_that_it_needs_and_no_more(overlay):
    found = {
        (group, resource, verb)
        for item in overlay
        if item["kind"] == "Role" and item["metadata"]["name"] == "phasetune-pipeline"
        for rule in item["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    rayjobs = {("ray.io", "rayjobs", verb) for verb in ("create", "get", "list", "watch", "patch", "delete")}
    others = {("argoproj.io", "workflows"), ("", "pods"), ("kueue.x-k8s.io", "workloads")}
    read = {(*one, verb) for one in others for verb in ("get", "list")}
    assert found == rayjobs | read | {("", "pods/log", "get")}


def test_the_table_of_roles_is_current(overlays):
    readme = (manifests.K8S / "README.md").read_text()
    written = set(re.findall(r"^\| `(phasetune-[\w-]+)` \| `(phasetune-[\w-]+)`", readme, re.MULTILINE))
    bound = {
        (subject["name"], item["roleRef"]["name"])
        for objects in overlays.values()
        for item in objects
        if item["kind"] == "RoleBinding"
        for subject in item["subjects"]
    }
    assert written == bound


def test_production_is_highly_available(overlays):
    spec = item_of(overlays["production"], "Deployment", "mlflow")["spec"]
    assert spec["replicas"] >= 2
    assert {one["topologyKey"] for one in spec["template"]["spec"]["topologySpreadConstraints"]} == {
        "topology.kubernetes.io/zone",
        "kubernetes.io/hostname",
    }
    assert item_of(overlays["production"], "PodDisruptionBudget", "mlflow")["spec"]["maxUnavailable"] == 1


def test_production_takes_everything_from_its_settings(overlays):
    lines = (manifests.K8S / "overlays/production/settings.env").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    roles = {
        item["metadata"]["name"]: item["metadata"].get("annotations", {}).get("eks.amazonaws.com/role-arn")
        for item in overlays["production"]
        if item["kind"] == "ServiceAccount"
    }
    assert roles == {
        "phasetune-pipeline": settings["role_pipeline_arn"],
        "phasetune-ray": settings["role_ray_arn"],
        "phasetune-mlflow": settings["role_mlflow_arn"],
        "phasetune-store-gc": settings["role_store_gc_arn"],
        "phasetune-mlflow-gc": None,
    }
    held = next(item for item in overlays["production"] if item["metadata"]["name"].startswith("phasetune-settings"))
    assert held["data"] == settings
    assert not any("AWS_ACCESS_KEY_ID" in str(item) for item in overlays["production"])  # roles, no keys
    outputs = re.findall(r'^output "(\w+)"', (manifests.K8S.parent / "infra/aws/outputs.tf").read_text(), re.MULTILINE)
    assert settings.keys() - outputs == {"postgres_sslmode", "store_keep_runs", "mlflow_allowed_hosts"}


def test_accounts_in_the_namespace_of_kfp_have_the_same_roles(overlays):
    roles = {}
    for item in overlays["standalone"]:
        if item["kind"] == "ServiceAccount":
            role = item["metadata"].get("annotations", {}).get("eks.amazonaws.com/role-arn")
            roles.setdefault(item["metadata"]["name"], {})[item["metadata"]["namespace"]] = role
    for name in ("phasetune-pipeline", "phasetune-ray"):
        assert roles[name]["kubeflow"]
        assert roles[name]["kubeflow"] == roles[name]["phasetune"]
