"""The pods of a RayJob: Ray's head, its workers, and the submitter; as the namespace's "restricted" demands.

Requests are limits, so that none is the first to be evicted. Nobody but the autoscaler's container, where there is one,
gets a token of the cluster's: whoever takes over Ray may ask the cluster nothing.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from components.common.image import ENVIRONMENT, HOME, IMAGE, USER
from components.common.spec import Spec
from components.common.spec_kubernetes import PlaceSpec, PodSpec

Part = dict[str, Any]
PART_OF = {"app.kubernetes.io/part-of": "phasetune"}
COMPONENT = "app.kubernetes.io/component"
JOB = "phasetune/job"
"""The label that names a pod's RayJob."""
SUBMITTER = "ray-job-submitter"
"""The container that prints the driver's log; KubeRay's name for it."""
RAY = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""What Ray reads when it starts."""
_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105  # the place that clients look at
_AGENT, _DASHBOARD = 52365, 8265
_LIGHT = PodSpec(cpu="500m", memory="1Gi", disk="1Gi")
"""Of the submitter, which prints a log, and of the autoscaler: both are a Python process that imports Ray."""
_POWERS = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def amount(quantity: str) -> Fraction:
    """A quantity of Kubernetes as a number: `500m` is a half, `2Gi` 2147483648."""
    found = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", quantity)
    if found is None:
        raise AssertionError(f"{quantity} has passed the spec and is no quantity")
    number, unit = Fraction(found[1]), found[2]
    return number / 1000 if unit == "m" else number * _POWERS.get(unit, 1)


def image_of(spec: Spec) -> str:
    """The image of a spec's pods."""
    return spec.compute.kubernetes.image or IMAGE


def head_pod(spec: Spec, name: str, autoscaled: bool) -> Part:
    """Ray's head, where the driver runs.

    Args:
        spec: The spec.
        name: The RayJob's.
        autoscaled: Whether KubeRay puts its autoscaler beside it.
    """
    about = spec.compute.kubernetes
    container = _ray_container(spec, "ray-head", about.head, _head_health())
    container["ports"] = [
        {"name": "gcs-server", "containerPort": 6379, "protocol": "TCP"},
        {"name": "dashboard", "containerPort": _DASHBOARD, "protocol": "TCP"},
        {"name": "client", "containerPort": 10001, "protocol": "TCP"},
    ]
    pod = _pod(spec, name, "ray-head", container, about.head, _scratch(about.head, shared=True))
    if autoscaled:
        pod["spec"]["volumes"].append(_token_volume())
    return pod


def worker_pod(spec: Spec, name: str, place: PlaceSpec, gpus: int) -> Part:
    """One of Ray's workers.

    Args:
        spec: The spec.
        name: The RayJob's.
        place: The nodes that it may go to.
        gpus: It gets.
    """
    about = spec.compute.kubernetes
    container = _ray_container(spec, "ray-worker", about.worker, _ask(_AGENT, "api/local_raylet_healthz"))
    container["ports"] = [{"name": "agent", "containerPort": _AGENT, "protocol": "TCP"}]
    tolerations = [one.model_dump(exclude_none=True) for one in place.tolerations]
    if gpus:
        for side in ("requests", "limits"):
            container["resources"][side][about.gpu_resource] = str(gpus)
        # What keeps other pods off the machines with GPUs; clusters name the taint as the resource.
        standard = {"key": about.gpu_resource, "operator": "Exists", "effect": "NoSchedule"}
        tolerations += [] if standard in tolerations else [standard]
    pod = _pod(spec, name, "ray-worker", container, place, _scratch(about.worker, shared=True))
    if tolerations:
        pod["spec"]["tolerations"] = tolerations
    return pod


def submitter_pod(spec: Spec, name: str) -> Part:
    """The pod that hands the driver to Ray and prints its log; KubeRay gives it its command."""
    container = _container(spec, SUBMITTER, _LIGHT)
    container["env"] = _variables({**ENVIRONMENT, **RAY})  # no secret: it runs nothing of ours
    pod = _pod(spec, name, "ray-submitter", container, spec.compute.kubernetes.head, _scratch(_LIGHT, shared=False))
    pod["spec"]["restartPolicy"] = "Never"
    return pod


def autoscaler() -> Part:
    """KubeRay's `autoscalerOptions`: a container beside the head, the only one with a token of the cluster's."""
    return {
        "version": "v2",
        "upscalingMode": "Default",
        "idleTimeoutSeconds": 120,
        "resources": _resources(_LIGHT),
        "securityContext": _security(),
        "env": _variables({**ENVIRONMENT, **RAY}),
        "volumeMounts": [*_mounts(shared=False), {"name": "token", "mountPath": _TOKEN, "readOnly": True}],
    }


def _ray_container(spec: Spec, name: str, size: PodSpec, health: str) -> Part:
    container = _container(spec, name, size)
    plain = {**ENVIRONMENT, **RAY, **spec.compute.kubernetes.environment}
    secret = [
        {"name": name.upper(), "valueFrom": {"secretKeyRef": {"name": reference.secret, "key": reference.key}}}
        for name, reference in spec.secrets.items()
    ]
    container["env"] = [*_variables(plain), *secret]
    container["volumeMounts"] = _mounts(shared=True)
    probe = {"exec": {"command": ["bash", "-c", health]}, "timeoutSeconds": 10}
    container["startupProbe"] = {**probe, "periodSeconds": 5, "failureThreshold": 60}
    container["readinessProbe"] = {**probe, "periodSeconds": 10, "failureThreshold": 6}
    # A machine that trains is slow to answer; the loss of Ray itself is seen by Ray within seconds.
    container["livenessProbe"] = {**probe, "periodSeconds": 20, "failureThreshold": 15}
    return container


def _container(spec: Spec, name: str, size: PodSpec) -> Part:
    return {
        "name": name,
        "image": image_of(spec),
        "imagePullPolicy": "IfNotPresent",
        "resources": _resources(size),
        "securityContext": _security(),
        "volumeMounts": _mounts(shared=False),
    }


def _pod(spec: Spec, name: str, component: str, container: Part, place: PlaceSpec, volumes: list[Part]) -> Part:
    about: Part = {
        "serviceAccountName": spec.compute.kubernetes.ray_service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 60,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": volumes,
    }
    if place.node_selector:
        about["nodeSelector"] = dict(place.node_selector)
    if place.tolerations:
        about["tolerations"] = [one.model_dump(exclude_none=True) for one in place.tolerations]
    labels = {**PART_OF, COMPONENT: component, JOB: name, "sidecar.istio.io/inject": "false"}
    return {"metadata": {"labels": labels}, "spec": about}


def _variables(values: dict[str, str]) -> list[Part]:
    """Plain variables, each meaning itself: Kubernetes would read $(NAME) in a value as another variable."""
    return [{"name": name, "value": value.replace("$", "$$")} for name, value in values.items()]


def _resources(size: PodSpec) -> Part:
    what = {"cpu": size.cpu, "memory": size.memory, "ephemeral-storage": size.disk}
    return {"requests": dict(what), "limits": dict(what)}


def _security() -> Part:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _mounts(shared: bool) -> list[Part]:
    memory = [{"name": "shared-memory", "mountPath": "/dev/shm"}] if shared else []  # noqa: S108  # a pod's own
    return [{"name": "tmp", "mountPath": "/tmp"}, {"name": "home", "mountPath": HOME}, *memory]  # noqa: S108  # as above


def _scratch(size: PodSpec, shared: bool) -> list[Part]:
    """What a pod writes to; memory that processes share counts as the pod's memory."""
    volumes: list[Part] = [{"name": name, "emptyDir": {"sizeLimit": size.disk}} for name in ("tmp", "home")]
    if shared:
        limit = f"{shared_memory(size) // 2**20}Mi"
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": limit}})
    return volumes


def shared_memory(size: PodSpec) -> int:
    """Bytes of /dev/shm, a quarter of the pod's memory: Ray's objects, and what data loaders and NCCL share."""
    return max(256 * 2**20, int(amount(size.memory) / 4))


def _ask(port: int, path: str) -> str:
    """A question that Ray answers without its token."""
    return f"wget -T 4 -q -O- http://localhost:{port}/{path} | grep -q success"


def _head_health() -> str:
    return " && ".join([_ask(_AGENT, "api/local_raylet_healthz"), _ask(_DASHBOARD, "api/gcs_healthz")])


def _token_volume() -> Part:
    return {
        "name": "token",
        "projected": {
            "sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
            ]
        },
    }
