"""The part of the spec that says how its steps run on Kubernetes."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from components.common.spec_base import Strict

Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_./-]*[A-Za-z0-9])?$", max_length=316)]
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?)?$", max_length=63)]
Image = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@-]*$")]
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=253)]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

_SECRET = re.compile(r"(TOKEN|PASSWORD|SECRET|SECRET_KEY|API_KEY|ACCESS_KEY|ACCESS_KEY_ID)$", re.IGNORECASE)
"""Ends of the names of variables that hold secrets."""


class Toleration(Strict):
    """A taint that a pod puts up with."""

    key: Label
    operator: Literal["Exists", "Equal"] = "Exists"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """null: every effect."""


class PlaceSpec(Strict):
    """The nodes that pods may go to."""

    node_selector: dict[Label, LabelValue] = {}
    """Labels that a node must have."""
    tolerations: list[Toleration] = []
    """Taints that the pods put up with."""


class PodSpec(PlaceSpec):
    """What a pod gets: requests and limits are the same, so that it is not the first to be evicted."""

    cpu: Quantity = "1"
    """Cores, as Kubernetes writes them: `2`, `500m`."""
    memory: Quantity = "4Gi"
    """Memory, as Kubernetes writes it: `8Gi`."""
    disk: Quantity = "20Gi"
    """Scratch space (ephemeral storage): copies of what lies in the store, and checkpoints being written."""


class KubernetesSpec(Strict):
    """How the steps run on a cluster."""

    image: Image | None = None
    """The image of every pod; null: PHASETUNE_IMAGE where the pipeline is compiled."""
    service_account: ObjectName = "phasetune-pipeline"
    """Of the pipeline's pods, which make RayJobs."""
    ray_service_account: ObjectName = "phasetune-ray"
    """Of Ray's pods, which may ask the cluster nothing."""
    queue: ObjectName | None = "phasetune"
    """Kueue's LocalQueue, in which RayJobs wait for their quota; null: they start at once."""
    priority: ObjectName | None = None
    """Kueue's WorkloadPriorityClass of the RayJobs."""
    pipeline: PodSpec = PodSpec(cpu="1", memory="4Gi", disk="20Gi")
    """The pipeline's pods: they read, split, wait and report; none has a GPU."""
    head: PodSpec = PodSpec(cpu="2", memory="16Gi", disk="100Gi")
    """Ray's head, where a step's driver runs; without GPUs the work as well."""
    worker: PodSpec = PodSpec(cpu="8", memory="64Gi", disk="200Gi")
    """Each of Ray's workers."""
    gpu_resource: Label = "nvidia.com/gpu"
    """What the cluster calls a GPU."""
    spot: PlaceSpec | None = None
    """A second group of workers on nodes that may be taken away; they are asked for first. null: none."""
    attempts: Annotated[int, Field(ge=1, le=20)] = 3
    """RayJobs that may be tried for one result; each goes on from the last checkpoint."""
    deadline_hours: Annotated[float, Field(gt=0)] = 48.0
    """Hours after which a RayJob that has started is ended; waiting in the queue does not count."""
    keep_seconds: Annotated[int, Field(ge=0)] = 10
    """Seconds for which an ended RayJob keeps its machines; itself and its log stay until its runs are deleted."""
    retries: Annotated[int, Field(ge=0, le=10)] = 3
    """How often a pipeline's pod is started again, with growing pauses; it attaches to the RayJob that is there."""
    step_hours: Annotated[float, Field(gt=0)] = 168.0
    """Hours after which a pipeline's pod is ended; it waits in the queue with its RayJob, so this is long."""
    environment: dict[VariableName, str] = {}
    """Plain variables of every pod, such as AWS_ENDPOINT_URL. Never a secret: see `secrets`."""

    @model_validator(mode="after")
    def _environment_is_plain(self) -> Self:
        for name, value in self.environment.items():
            if _SECRET.search(name):
                raise ValueError(
                    f"environment.{name} is named like a secret, and its value would stand in the compiled pipeline: "
                    f"name it under `secrets`, `{name.lower()}: {{secret: NAME, key: KEY}}`"
                )
            if "{{" in value:
                raise ValueError(f"environment.{name} holds `{{{{`, which Argo would replace")
        return self
