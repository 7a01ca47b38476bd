"""The RayJobs that a step sends: what a spec may put into them, and what their pods may do."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from components.common.errand import ERRAND, Errand
from components.common.rayjob_object import rayjob
from components.common.spec import Spec

EVIL = "{{workflow.name}} $(JUDGE_API_KEY) `id` '; rm -rf / #\n- a: !!python/object/apply:os.system [id]"
COMPUTE = {
    "ray": "rayjob",
    "workers": [2, 4],
    "gpus_per_worker": 1,
    "kubernetes": {
        "queue": None,
        "image": "registry.example/phasetune:1",
        "environment": {"HOSTILE": EVIL.replace("{{", "{")},  # a spec with `{{` there is refused
    },
}
VALUES = {
    "name": "evil",
    "model": {"path": EVIL},
    "data": {"train": [{"path": EVIL, "name": EVIL}]},
    "tracking": {"uri": "http://mlflow:5000", "experiment": EVIL},
    "compute": COMPUTE,
    "secrets": {"judge_api_key": {"secret": "judge", "key": "token"}},
    "store": "s3://bucket/store",
}


@pytest.fixture
def job(monkeypatch) -> Any:
    """A RayJob with every group and the autoscaler, of a spec whose texts are hostile."""
    monkeypatch.setenv("JUDGE_API_KEY", "canary-value")
    spec = Spec.model_validate(VALUES)
    arguments = {"context": json.dumps(spec.model_dump(mode="json")), "seed": 1}
    errand = Errand("train.main.1.s17", f"run {EVIL}", "phases", "a" * 64, "components.training.step:run", arguments)
    return rayjob(errand, spec, 1)


def pods(job: Any) -> Iterator[Any]:
    """The specs of its pods."""
    cluster = job["spec"]["rayClusterSpec"]
    yield job["spec"]["submitterPodTemplate"]["spec"]
    yield cluster["headGroupSpec"]["template"]["spec"]
    for group in cluster["workerGroupSpecs"]:
        yield group["template"]["spec"]


def test_the_jobs_api_wants_a_token(job):
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert job["spec"]["rayClusterSpec"]["headGroupSpec"]["serviceType"] == "ClusterIP"  # not reached from outside


def test_a_driver_s_command_is_always_the_same(job):
    assert job["spec"]["entrypoint"] == "python -m components.common.ray_driver"
    variables = yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]
    assert all(isinstance(value, str) for value in variables.values())
    assert EVIL in Errand.decoded(variables[ERRAND]).run


def test_hostile_text_stands_in_values_that_mean_themselves(job):
    found = []

    def visit(value: Any, place: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                visit(inner, f"{place}.{key}")
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                visit(inner, f"{place}.{number}")
        elif "rm -rf" in str(value):
            found.append((place, value))

    visit(job, "")
    annotations = [place for place, _ in found if place.startswith(".metadata.annotations.")]
    variables = [(place, value) for place, value in found if not place.startswith(".metadata.annotations.")]
    assert len(annotations) == 1  # who made it: read by people and by us, by no template
    assert variables
    assert all(".env." in place and place.endswith(".value") for place, _ in variables)
    assert all("$$(JUDGE_API_KEY)" in value for _, value in variables)  # Kubernetes reads $$ as a dollar


def test_secrets_go_by_name_and_to_ray_only(job):
    assert "canary-value" not in json.dumps(job)
    wanted = {"name": "JUDGE_API_KEY", "valueFrom": {"secretKeyRef": {"name": "judge", "key": "token"}}}
    submitter, *ray = pods(job)
    assert len(ray) >= 2
    assert all(wanted in pod["containers"][0]["env"] for pod in ray)
    assert wanted not in submitter["containers"][0]["env"]


def test_its_pods_are_restricted_and_hold_no_token(job):
    for pod in pods(job):
        assert pod["automountServiceAccountToken"] is False
        assert pod["serviceAccountName"] == "phasetune-ray"
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & pod.keys()
        assert all(volume.keys() & {"emptyDir", "projected"} for volume in pod["volumes"])
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert not [mount for mount in container["volumeMounts"] if "serviceaccount" in mount["mountPath"]]
