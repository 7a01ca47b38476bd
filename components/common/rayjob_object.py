"""The RayJob of an errand: a Ray cluster of its own, a driver in it, and labels by which others find both.

Kueue (`queue`) decides when it starts. It refuses Ray's autoscaler, which would take machines past the quota, so with a
queue the groups of workers have fixed sizes; without one the autoscaler sizes them.
"""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import Any

import yaml

from components.common.digests import digest
from components.common.errand import ERRAND, INSIDE, Errand, errand_name
from components.common.errors import UserError
from components.common.launcher import STOPPING
from components.common.objects import open_objects
from components.common.rayjob_pods import (
    COMPONENT,
    PART_OF,
    amount,
    autoscaler,
    head_pod,
    image_of,
    shared_memory,
    submitter_pod,
    worker_pod,
)
from components.common.spec import Spec
from components.common.spec_kubernetes import PlaceSpec, PodSpec

Part = dict[str, Any]
ENTRYPOINT = "python -m components.common.ray_driver"
KEY, KIND, ATTEMPT = "phasetune/key", "phasetune/kind", "phasetune/attempt"
"""Labels."""
DIGEST, RESULT, RUN = "phasetune/digest", "phasetune/result", "phasetune/made-by"
"""Annotations: of the work, which result it makes, and the run that made the RayJob."""
QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
_LONGEST = 96 * 1024
"""Characters of an errand: it is a word of a command line in the end, and Linux allows 131072."""


def work_digest(errand: Errand, spec: Spec) -> str:
    """Digest of what two RayJobs have in common that may stand for each other: nothing of who asks."""
    place = open_objects(spec.store).place
    return digest(
        {"target": errand.target, "kind": errand.kind, "key": errand.key, "store": place, "image": image_of(spec)}
    )


def selector_of(errand: Errand) -> str:
    """Selects the RayJobs of an errand's result by their labels."""
    return f"{KIND}={errand.kind},{KEY}={errand.key[:16]}"


def result_of(errand: Errand) -> str:
    """What the annotation `RESULT` says."""
    return f"{errand.kind}/{errand.key}"


def rayjob(errand: Errand, spec: Spec, attempt: int) -> Part:
    """The RayJob of an errand's attempt, as it is sent to the API, without anyone who waits for it.

    Raises:
        UserError: If the errand is too long for a command line.
    """
    about, name = spec.compute.kubernetes, errand_name(errand, attempt)
    groups = worker_groups(spec, name)
    autoscaled = any(group["minReplicas"] < group["maxReplicas"] for group in groups)
    labels = {
        **PART_OF,
        COMPONENT: "ray-job",
        KEY: errand.key[:16],
        KIND: errand.kind,
        ATTEMPT: str(attempt),
        **({QUEUE: about.queue} if about.queue else {}),
        **({PRIORITY: about.priority} if about.priority else {}),
    }
    cluster: Part = {
        # KubeRay wants it for the token: an open dashboard is remote code execution.
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": autoscaled,
        "headGroupSpec": _head_group(spec, name, bool(groups), autoscaled),
    }
    if groups:
        cluster["workerGroupSpecs"] = groups
    if autoscaled:
        cluster["autoscalerOptions"] = autoscaler()
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": name,
            "labels": labels,
            "annotations": {DIGEST: work_digest(errand, spec), RESULT: result_of(errand), RUN: errand.run},
        },
        "spec": {
            "entrypoint": ENTRYPOINT,
            "runtimeEnvYAML": _runtime(errand),
            "submissionMode": "K8sJobMode",
            "submitterPodTemplate": submitter_pod(spec, name),
            "submitterConfig": {"backoffLimit": 2},
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": about.keep_seconds,
            "activeDeadlineSeconds": max(1, round(about.deadline_hours * 3600)),
            "backoffLimit": 0,  # attempts are ours: each has its number, and the reason of the last one is known
            "suspend": about.queue is not None,  # Kueue lets it go
            "rayClusterSpec": cluster,
        },
    }


def worker_groups(spec: Spec, name: str) -> list[Part]:
    """The groups of Ray's workers; none where the head does the work.

    Without a queue, Ray's autoscaler asks for spot machines first, and for others where there are none. With one the
    sizes are fixed. A number of workers that may vary then has its least part on machines that stay, and the rest on
    spot machines; a fixed number may go to either, and Kueue takes the first flavor with room.

    Args:
        spec: The spec as the errand's stage reads it.
        name: The RayJob's.
    """
    compute = spec.compute
    about, least, most = compute.kubernetes, compute.least_workers, compute.most_workers
    if not compute.gpus_per_worker and most == 1:
        return []
    kind = "gpu" if compute.gpus_per_worker else "cpu"
    worker: PlaceSpec = about.worker
    if about.spot is None:
        lowest = most if about.queue else least
        return [_group(spec, name, kind, worker, lowest, most)]
    if not about.queue:
        return [
            _group(spec, name, f"{kind}-spot", about.spot, 0, most, priority=10),
            _group(spec, name, kind, worker, 0, most),
        ]
    if least == most:
        return [_group(spec, name, kind, _either(worker, about.spot), most, most)]
    return [
        _group(spec, name, f"{kind}-spot", about.spot, most - least, most - least),
        _group(spec, name, kind, worker, least, least),
    ]


def _either(one: PlaceSpec, other: PlaceSpec) -> PlaceSpec:
    """Nodes of one place or the other: what both select, and the taints of both."""
    common = {key: value for key, value in one.node_selector.items() if other.node_selector.get(key) == value}
    taints = [*one.tolerations, *(taint for taint in other.tolerations if taint not in one.tolerations)]
    return PlaceSpec(node_selector=common, tolerations=taints)


def _group(spec: Spec, name: str, group: str, place: PlaceSpec, least: int, most: int, priority: int = 0) -> Part:
    gpus = spec.compute.gpus_per_worker
    made: Part = {
        "groupName": group,
        "replicas": least,
        "minReplicas": least,
        "maxReplicas": most,
        "rayStartParams": _start(spec.compute.kubernetes.worker, None, gpus),
        "template": worker_pod(spec, name, place, gpus),
    }
    if priority:
        made["priority"] = priority
    return made


def _head_group(spec: Spec, name: str, has_workers: bool, autoscaled: bool) -> Part:
    head = spec.compute.kubernetes.head
    # Work goes to the workers where there are some; a head that works has a slot for Ray Data's reading beside it.
    cores = 0 if has_workers else max(2, math.ceil(amount(head.cpu))) + 1
    return {
        "serviceType": "ClusterIP",
        "rayStartParams": {"dashboard-host": "0.0.0.0", **_start(head, cores, 0)},  # noqa: S104  # in a pod, behind policies
        "template": head_pod(spec, name, autoscaled),
    }


def _start(size: PodSpec, cores: int | None, gpus: int) -> dict[str, str]:
    """Arguments of `ray start`; KubeRay takes the cores from the pod where they are not given."""
    return {
        **({} if cores is None else {"num-cpus": str(cores)}),
        "num-gpus": str(gpus),
        # Less than /dev/shm holds, which others share.
        "object-store-memory": str(max(80 * 2**20, shared_memory(size) * 3 // 4)),
        "dashboard-agent-listen-port": "52365",
    }


def _runtime(errand: Errand) -> str:
    encoded = errand.encoded()
    if len(encoded) > _LONGEST:
        raise UserError(
            f"{errand.step}: its driver must be told {len(encoded):,} characters, and {_LONGEST:,} are the limit",
            "shorten the spec: lists of sources and phases are what is long in it",
        )
    variables = {
        ERRAND: encoded,
        INSIDE: "1",
        # A phase that is stopped saves its state first; Ray gives it 3 seconds by itself.
        "RAY_JOB_STOP_WAIT_TIME_S": str(int(STOPPING)),
    }
    return yaml.safe_dump({"env_vars": variables}, width=1 << 30)
