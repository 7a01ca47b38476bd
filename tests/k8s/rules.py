"""What must hold of all objects in k8s/ beyond their schemas. A rule takes objects and pods, and returns faults."""

from __future__ import annotations

import re
from typing import Any

from components.common.image import ENVIRONMENT

VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
TOKENS = {"phasetune-pipeline", "phasetune-secrets"}
"""Accounts that ask the Kubernetes API: all others mount no token."""
SECRETS = {
    "phasetune-mlflow-auth": {"username", "password", "flask-secret-key"},
    "phasetune-postgres": {"username", "password", "host", "port", "database"},
    "phasetune-s3": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
    "phasetune-tracking": {"username", "password"},
}
"""The secrets that the user makes (in development a job does), and their keys."""


def each_container(pods: list[Any]) -> list[tuple[Any, dict[str, Any], str]]:
    return [(pod, item, f"{pod.owner}: {item['name']}") for pod in pods for item in pod.containers]


def restricted(_objects: list[Any], pods: list[Any]) -> list[str]:
    """The profile `restricted` of the pod security standards, and a read-only root."""
    faults = []
    for pod in pods:
        spec, outer = pod.spec, pod.spec.get("securityContext", {})
        faults += [f"{pod.owner}: {key}" for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
        for volume in spec.get("volumes", []):
            if not set(volume) - {"name"} <= VOLUMES:
                faults.append(f"{pod.owner}: volume {volume['name']} is of a kind that is not allowed")
        if not outer.get("runAsNonRoot") or not outer.get("runAsUser"):
            faults.append(f"{pod.owner}: the pod does not name a user other than root")
        if outer.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            faults.append(f"{pod.owner}: no seccomp profile")
    for _, item, name in each_container(pods):
        inner = item.get("securityContext", {})
        wanted = {
            "allowPrivilegeEscalation is not false": inner.get("allowPrivilegeEscalation") is False,
            "runs as root": inner.get("runAsNonRoot") is True and inner.get("runAsUser", 1) != 0,
            "keeps capabilities": inner.get("capabilities") == {"drop": ["ALL"]},
            "is privileged": not inner.get("privileged"),
            "may write its root": inner.get("readOnlyRootFilesystem") is True,
            "has a port of its node": not any(port.get("hostPort") for port in item.get("ports", [])),
            "no seccomp profile": inner.get("seccompProfile", {}).get("type") == "RuntimeDefault",
            "unmasks /proc": inner.get("procMount", "Default") == "Default",
        }
        faults += [f"{name}: {what}" for what, holds in wanted.items() if not holds]
    return faults


def images(_objects: list[Any], pods: list[Any]) -> list[str]:
    """Every image has a tag or a digest, and the tag is not one that moves."""
    faults = []
    for _, item, name in each_container(pods):
        image = item["image"]
        tag = re.search(r":([\w.-]+)$", image.split("@")[0])
        if "@sha256:" not in image and (tag is None or tag[1] in ("latest", "main", "master", "stable")):
            faults.append(f"{name}: {image}")
    return faults


def digests(_objects: list[Any], pods: list[Any]) -> list[str]:
    """For production: every image by digest."""
    named = [(name, item["image"]) for _, item, name in each_container(pods)]
    return [f"{name}: {image}" for name, image in named if not re.search(r"@sha256:[0-9a-f]{64}$", image)]


def limits(_objects: list[Any], pods: list[Any]) -> list[str]:
    """Requests and limits of processor, memory and disk; the same of memory, so that no node promises too much."""
    faults = []
    for _, item, name in each_container(pods):
        held = item.get("resources", {})
        for kind in ("requests", "limits"):
            missing = {"cpu", "memory", "ephemeral-storage"} - held.get(kind, {}).keys()
            faults += [f"{name}: no {kind} of {what}" for what in sorted(missing)]
        if held.get("requests", {}).get("memory") != held.get("limits", {}).get("memory"):
            faults.append(f"{name}: its limit of memory is not its request")
    for pod in pods:
        for volume in pod.spec.get("volumes", []):
            if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {}):
                faults.append(f"{pod.owner}: volume {volume['name']} may fill the node")
    return faults


def probes(_objects: list[Any], pods: list[Any]) -> list[str]:
    """What runs for good is asked how it is, on a port that it has; what has an end has a deadline."""
    faults = []
    for pod in pods:
        if pod.owner.split()[0] in ("Job", "CronJob"):
            continue
        for item in pod.spec["containers"]:
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                probe = item.get(kind)
                if probe is None:
                    faults.append(f"{pod.owner}: {item['name']}: no {kind}")
                elif "httpGet" in probe and probe["httpGet"]["port"] not in {port["name"] for port in item["ports"]}:
                    faults.append(f"{pod.owner}: {item['name']}: {kind} asks an unknown port")
    for item in _objects:
        job = (
            item["spec"]
            if item["kind"] == "Job"
            else item["spec"]["jobTemplate"]["spec"]
            if item["kind"] == "CronJob"
            else {}
        )
        if job and not job.get("activeDeadlineSeconds"):
            faults.append(f"{item['kind']} {item['metadata']['name']}: no deadline")
    return faults


def rights(objects: list[Any], _pods: list[Any]) -> list[str]:
    """Least rights: in one namespace, no wildcard, secrets by name, and bindings that point at what there is."""
    faults = []
    there = {(item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]) for item in objects}
    for item in objects:
        name = f"{item['kind']} {item['metadata']['name']}"
        if item["kind"] in ("ClusterRole", "ClusterRoleBinding"):
            faults.append(f"{name}: rights in the whole cluster")
        for rule in item.get("rules", []) if item["kind"] == "Role" else []:
            values = [value for kind in ("apiGroups", "resources", "verbs") for value in rule[kind]]
            if any("*" in value for value in values):
                faults.append(f"{name}: a wildcard")
            if {"escalate", "bind", "impersonate"} & set(rule["verbs"]) or "pods/exec" in rule["resources"]:
                faults.append(f"{name}: a way to other rights")
            if "secrets" in rule["resources"] and set(rule["verbs"]) != {"create"} and not rule.get("resourceNames"):
                faults.append(f"{name}: all secrets")
        if item["kind"] == "RoleBinding":
            space = item["metadata"]["namespace"]
            if (item["roleRef"]["kind"], space, item["roleRef"]["name"]) not in there:
                faults.append(f"{name}: no such role")
            for subject in item["subjects"]:
                if (subject["kind"], subject.get("namespace", space), subject["name"]) not in there:
                    faults.append(f"{name}: no such account")
    return faults


def tokens(objects: list[Any], pods: list[Any]) -> list[str]:
    """Only pods that ask the Kubernetes API mount a token."""
    faults = [
        f"{item['kind']} {item['metadata']['name']}: mounts its token"
        for item in objects
        if item["kind"] == "ServiceAccount"
        and item.get("automountServiceAccountToken") is not (item["metadata"]["name"] == "phasetune-pipeline")
    ]
    for pod in pods:
        mounted = pod.spec.get("automountServiceAccountToken")
        if mounted is not (pod.spec.get("serviceAccountName") in TOKENS):
            faults.append(f"{pod.owner}: mounts a token, or does not say that it mounts none")
    return faults


def _named(pod: Any) -> list[tuple[str, str, str | None]]:
    """(kind, name, key) of everything that a pod refers to in its namespace."""
    found: list[tuple[str, str, str | None]] = [("ServiceAccount", pod.spec.get("serviceAccountName", "default"), None)]
    for item in pod.containers:
        for variable in item.get("env", []):
            source = variable.get("valueFrom", {})
            for field, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
                if field in source:
                    found.append((kind, source[field]["name"], source[field]["key"]))
    for volume in pod.spec.get("volumes", []):
        if "configMap" in volume:
            found.append(("ConfigMap", volume["configMap"]["name"], None))
        if "secret" in volume:
            found.append(("Secret", volume["secret"]["secretName"], None))
        if "persistentVolumeClaim" in volume:
            found.append(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], None))
    return found


def references(objects: list[Any], pods: list[Any]) -> list[str]:
    """What pods refer to is there: in the objects, or among the secrets that the user makes."""
    there = {(item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]): item for item in objects}
    faults = [f"Secret {name}: its values would stand here" for kind, _, name in there if kind == "Secret"]
    for pod in pods:
        for kind, name, key in _named(pod):
            item = there.get((kind, pod.namespace, name))
            known = key in SECRETS.get(name, ()) if kind == "Secret" else item is not None
            if not known or (kind == "ConfigMap" and key is not None and key not in item["data"]):
                faults.append(f"{pod.owner}: there is no {kind} {name} {key or ''}")
        names = {volume["name"] for volume in pod.spec.get("volumes", [])} | (
            {"data"} if pod.owner.startswith("StatefulSet") else set()
        )
        for item in pod.containers:
            for mount in item.get("volumeMounts", []):
                if mount["name"] not in names:
                    faults.append(f"{pod.owner}: {item['name']} mounts {mount['name']}, which is no volume")
    return faults


def services(objects: list[Any], pods: list[Any]) -> list[str]:
    """Every service and every budget selects pods, and a service's ports are theirs; none is open to the outside."""
    faults = []
    for item in objects:
        if item["kind"] not in ("Service", "PodDisruptionBudget") or item["spec"].get("type") == "ExternalName":
            continue
        name, spec = f"{item['kind']} {item['metadata']['name']}", item["spec"]
        selector = spec["selector"].get("matchLabels", spec["selector"])
        chosen = [
            pod
            for pod in pods
            if pod.namespace == item["metadata"]["namespace"] and selector.items() <= pod.labels.items()
        ]
        if not chosen:
            faults.append(f"{name}: selects no pod")
        if spec.get("type", "ClusterIP") != "ClusterIP":
            faults.append(f"{name}: open to the outside")
        for port in spec.get("ports", []):
            for pod in chosen:
                if port["targetPort"] not in {held["name"] for one in pod.containers for held in one.get("ports", [])}:
                    faults.append(f"{name}: {pod.owner} has no port {port['targetPort']}")
    return faults


def places(objects: list[Any], pods: list[Any]) -> list[str]:
    """The namespace is restricted, Ray wants a token, pods carry our labels and the variables that the image needs."""
    faults = []
    for item in objects:
        if item["kind"] == "Namespace":
            labels = item["metadata"].get("labels", {})
            for mode in ("enforce", "audit", "warn"):
                if labels.get(f"pod-security.kubernetes.io/{mode}") != "restricted":
                    faults.append(f"Namespace {item['metadata']['name']}: {mode} is not restricted")
        if item["kind"] == "RayCluster":
            if item["spec"].get("authOptions", {}).get("mode") != "token":
                faults.append(f"RayCluster {item['metadata']['name']}: no token")
            if item["metadata"]["labels"].get("kueue.x-k8s.io/queue-name") != "phasetune":
                faults.append(f"RayCluster {item['metadata']['name']}: not queued")
        if item["metadata"].get("labels", {}).get("app.kubernetes.io/part-of") != "phasetune":
            faults.append(f"{item['kind']} {item['metadata']['name']}: not labelled as ours")
    for pod in pods:
        if pod.labels.get("app.kubernetes.io/part-of") != "phasetune" or not pod.component:
            faults.append(f"{pod.owner}: not labelled as ours")
    for _, item, name in each_container(pods):
        if "phasetune" in item["image"].split("/")[-1]:
            held = {variable["name"]: variable.get("value") for variable in item.get("env", [])}
            faults += [f"{name}: {key}" for key, value in ENVIRONMENT.items() if held.get(key) != value]
            mounts = {mount["mountPath"] for mount in item["volumeMounts"]}
            faults += [
                f"{name}: {ENVIRONMENT[key]} cannot be written"
                for key in ("HOME", "TMPDIR")
                if ENVIRONMENT[key] not in mounts
            ]
    return faults


RULES = {
    rule.__name__: rule for rule in (restricted, images, limits, probes, rights, tokens, references, services, places)
}
