"""What `kubectl kustomize` makes of k8s/, and the pods in it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import yaml

Object = dict[str, Any]
K8S = Path(__file__).resolve().parents[2] / "k8s"
STEP = {
    "app.kubernetes.io/part-of": "phasetune",
    "app.kubernetes.io/component": "pipeline",
    "workflows.argoproj.io/workflow": "nightly-x1",
}
"""The labels of a step's pod: ours, and Argo's."""


def render(folder: Path) -> list[Object]:
    """The objects of an overlay.

    Raises:
        AssertionError: It does not render; with what kubectl said.
    """
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # warnings, such as of deprecated fields
    return list(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


def title(item: Object) -> str:
    """How faults name an object."""
    return f"{item['kind']} {item['metadata'].get('namespace', '-')}/{item['metadata']['name']}"


@dataclass(frozen=True)
class Pod:
    """A pod that will exist: its owner's title, its namespace, labels and specification."""

    owner: str
    namespace: str
    labels: dict[str, str]
    spec: Object = field(default_factory=dict)

    @property
    def containers(self) -> list[Object]:
        """All containers; those that run before the others come first."""
        return [*self.spec.get("initContainers", []), *self.spec.get("containers", [])]

    @property
    def ports(self) -> set[int]:
        """Ports that its containers say they listen on."""
        return {port["containerPort"] for container in self.containers for port in container.get("ports", [])}

    @property
    def component(self) -> str:
        """What it is of ours; its owner's title where it carries no such label."""
        return self.labels.get("app.kubernetes.io/component", self.owner)


def _templates(item: Object) -> Iterator[Object]:
    spec = item.get("spec", {})
    if item["kind"] in ("Deployment", "StatefulSet", "Job"):
        yield spec["template"]
    elif item["kind"] == "CronJob":
        yield spec["jobTemplate"]["spec"]["template"]
    elif item["kind"] == "RayCluster":
        yield spec["headGroupSpec"]["template"]
        yield from (group["template"] for group in spec["workerGroupSpecs"])


def pods(objects: list[Object]) -> list[Pod]:
    """The pods of all objects that make some."""
    return [
        Pod(title(item), item["metadata"]["namespace"], template["metadata"]["labels"], template["spec"])
        for item in objects
        for template in _templates(item)
    ]


def environment(container: Object, settings: dict[str, str], secrets: dict[str, dict[str, str]]) -> dict[str, str]:
    """A container's variables, with values for the settings and the secrets that they refer to.

    Raises:
        KeyError: One refers to what is not there.
    """
    values = {}
    for variable in container["env"]:
        source = variable.get("valueFrom", {})
        if "secretKeyRef" in source:
            values[variable["name"]] = secrets[source["secretKeyRef"]["name"]][source["secretKeyRef"]["key"]]
        elif "configMapKeyRef" in source:
            values[variable["name"]] = settings[source["configMapKeyRef"]["key"]]
        else:
            values[variable["name"]] = variable["value"]
    return values


def made_later(namespace: str) -> list[Pod]:
    """The pods that runs make: a step's, KFP's own driver, and those of a RayJob."""

    def ours(component: str, *ports: int) -> Pod:
        labels = {"app.kubernetes.io/part-of": "phasetune", "app.kubernetes.io/component": component}
        spec = {"containers": [{"name": component, "ports": [{"containerPort": port} for port in ports]}]}
        return Pod(f"RayJob {namespace}", namespace, labels, spec)

    found = [
        Pod("step", namespace, STEP),
        ours("ray-submitter"),
        ours("ray-head", 6379, 8265),
        ours("ray-worker", 52365),
    ]
    if namespace == "phasetune":
        found.append(Pod("kfp-driver", namespace, {"workflows.argoproj.io/workflow": "nightly-x1"}))
    return found


def _strict(schema: Any) -> Any:
    """A schema of a CRD as JSON schema, with unknown fields refused."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items() if key != "format"}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict):
        made["properties"] = {name: _strict(value) for name, value in schema["properties"].items()}
        if not open_ended and not schema.get("x-kubernetes-embedded-resource"):
            made["additionalProperties"] = False
    return made


def crd_validators(crds: Path) -> dict[tuple[str, str], jsonschema.protocols.Validator]:
    """A validator for each (apiVersion, kind) that is used here, of the CRDs in a folder."""
    found = {}
    for name in (
        "kueue.x-k8s.io_clusterqueues",
        "kueue.x-k8s.io_localqueues",
        "kueue.x-k8s.io_resourceflavors",
        "ray.io_rayclusters",
    ):
        crd = yaml.load((crds / f"{name}.yaml").read_text(), Loader=yaml.CSafeLoader)["spec"]
        version = next(one for one in crd["versions"] if one["storage"])
        schema = _strict(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        key = (f"{crd['group']}/{version['name']}", crd["names"]["kind"])
        found[key] = jsonschema.Draft7Validator(schema)
    return found
