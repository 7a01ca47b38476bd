"""The pods that Kubeflow runs a pipeline's tasks in: image, resources, place, retries, secrets by name.

They are small and have no GPU: heavy work goes to Ray. The container's file system and its capabilities are for the
cluster to restrict, as Kubeflow offers a task no setting for them.
"""

from __future__ import annotations

import os
from copy import deepcopy
from typing import Any

from components.common.errors import UserError
from components.common.image import DEFAULT, ENVIRONMENT, HOME, USER
from components.common.progress import EVENTS, PRINTED
from components.common.rayjob_pods import amount
from components.common.spec import Spec

LABELS = {"app.kubernetes.io/part-of": "phasetune", "app.kubernetes.io/component": "pipeline"}
FIELDS = {
    "KFP_RUN_ID": "metadata.labels['pipeline/runid']",
    "PHASETUNE_WORKFLOW": "metadata.labels['workflows.argoproj.io/workflow']",
}
"""What a pod learns of its own run, to own the RayJobs that it makes."""
FIRST_PAUSE = "30s"
"""Before the first retry; each later pause is twice as long."""


def image_of(spec: Spec) -> str:
    """The image of a spec's pods."""
    return spec.compute.kubernetes.image or os.environ.get("PHASETUNE_IMAGE") or DEFAULT


def check_image(image: str) -> None:
    """See that an image's name says which build it is: tomorrow's scheduled run must not get another one unseen.

    Raises:
        UserError: If it has neither a digest nor a tag, or the tag `latest`.
    """
    name, _, digest = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    if not digest and tag in ("", "latest"):
        raise UserError(
            f"the image {image} may be another one tomorrow: a scheduled or retried run would change with it",
            "name a tag or a digest in `compute.kubernetes.image` or PHASETUNE_IMAGE, or pass --allow-latest",
        )


def secret_variables(spec: Spec) -> dict[str, tuple[str, str]]:
    """The variables that hold secrets: (the secret's name, the key within it), by variable."""
    return {name.upper(): (reference.secret, reference.key) for name, reference in spec.secrets.items()}


def place(task: Any, spec: Spec, image: str, like: Any = None) -> None:
    """Give a task of a compiled pipeline its pod.

    Args:
        task: KFP's task.
        spec: The spec.
        image: The pod's image.
        like: A task of the same pipeline that has its pod already; KFP takes long to build the same again.
    """
    about = spec.compute.kubernetes
    # It reads the source files of all its callers, for the message of an error that a task of one step never has.
    task._ensure_container_spec_exists = lambda: None
    task.set_container_image(image)
    if about.retries:
        # Argo counts the longest duration from the first start: by default a step that waited an hour gets no retry.
        task.set_retry(about.retries, FIRST_PAUSE, 2.0, f"{_seconds(spec)}s")
    if like is None:
        _on_any_platform(task, spec)
        _on_kubernetes(task, spec)
    else:
        task.container_spec.env = dict(like.container_spec.env)
        task.container_spec.resources = deepcopy(like.container_spec.resources)
        task.platform_config = deepcopy(like.platform_config)


def _on_any_platform(task: Any, spec: Spec) -> None:
    """A pod's variables and its size."""
    for name, value in {**ENVIRONMENT, EVENTS: PRINTED, **spec.compute.kubernetes.environment}.items():
        task.set_env_variable(name, value.replace("$", "$$"))  # Kubernetes would put in another variable's value
    pod = spec.compute.kubernetes.pipeline
    memory = str(bytes_of(pod.memory))
    task.set_cpu_request(pod.cpu).set_cpu_limit(pod.cpu).set_memory_request(memory).set_memory_limit(memory)


def _seconds(spec: Spec) -> int:
    return int(spec.compute.kubernetes.step_hours * 3600)


def _on_kubernetes(task: Any, spec: Spec) -> None:
    """What only Kubernetes knows of a pod."""
    from kfp import kubernetes

    pod = spec.compute.kubernetes.pipeline
    kubernetes.set_timeout(task, _seconds(spec))
    kubernetes.set_image_pull_policy(task, "IfNotPresent")
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    for name, path in FIELDS.items():
        kubernetes.use_field_path_as_env(task, name, path)
    for key, value in LABELS.items():
        kubernetes.add_pod_label(task, key, value)
    for variable, (secret, key) in secret_variables(spec).items():
        kubernetes.use_secret_as_env(task, secret, {key: variable})
    # Kubeflow has no setting for ephemeral storage; a volume that may not grow beyond it bounds it as well.
    for volume, path in (("phasetune-home", HOME), ("phasetune-tmp", ENVIRONMENT["TMPDIR"])):
        kubernetes.empty_dir_mount(task, volume, path, size_limit=pod.disk)
    for key, value in pod.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for one in pod.tolerations:
        kubernetes.add_toleration(task, key=one.key, operator=one.operator, value=one.value, effect=one.effect)


def bytes_of(quantity: str) -> int:
    """A quantity of Kubernetes in bytes; KFP itself knows no `1.5Gi` and no small `k`."""
    return round(amount(quantity))
