"""Objects against their schemas, strictly: a field that a schema does not know is a fault.

Custom kinds by their CRDs beside the checkout, core kinds by the package kubernetes-validate.
"""

from __future__ import annotations

import functools
from typing import Any

import jsonschema
import yaml

from tests.k8s.manifests import K8S
from tests.needed import CRDS


@functools.lru_cache(maxsize=4)
def schema(kind: str, version: str) -> dict[str, Any]:
    """The strict schema of a CRD, `ray.io_rayjobs`."""
    definition = yaml.load((CRDS / f"{kind}.yaml").read_text(), yaml.CSafeLoader)
    found = next(one for one in definition["spec"]["versions"] if one["name"] == version)
    return _strict(found["schema"]["openAPIV3Schema"])


def faults(value: dict[str, Any], kind: str = "ray.io_rayjobs", version: str = "v1") -> list[str]:
    """What is wrong with an object."""
    validator = jsonschema.Draft202012Validator(schema(kind, version))
    return [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}" for error in validator.iter_errors(value)
    ]


@functools.cache
def kubernetes_version() -> str:
    """Of the core kinds that the manifests are written for."""
    return str(yaml.safe_load((K8S / "versions.yaml").read_text())["kubernetes"])


def pod_faults(template: dict[str, Any]) -> list[str]:
    """What is wrong with a pod's template, as a Pod."""
    import kubernetes_validate

    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "x", **template["metadata"]},
        "spec": template["spec"],
    }
    try:
        kubernetes_validate.validate(pod, kubernetes_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{error.path}: {error.message}"]
    return []


def _strict(node: Any) -> Any:
    """The schema without room for more than it names; the top and `metadata` are the API's own."""
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    made = {key: _strict(value) for key, value in node.items()}
    if node.get("type") == "object" and "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made
