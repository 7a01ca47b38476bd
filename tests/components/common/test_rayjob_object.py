"""What is sent to the API: valid for KubeRay's schema and for a namespace with the restricted pod security."""

import json

import pytest
import yaml

from components.common.errand import ERRAND, Errand
from components.common.errors import UserError
from components.common.rayjob_object import rayjob, work_digest
from components.common.rayjob_pods import amount
from components.common.spec_kubernetes import KubernetesSpec
from tests import needed
from tests.kubernetes_api import kuberay as rayjobs
from tests.kubernetes_api import schemas

GPUS = {"workers": 8, "gpus_per_worker": 1}
SPOT = {
    "node_selector": {"phasetune/pool": "gpu-spot"},
    "tolerations": [{"key": "phasetune/spot", "operator": "Exists"}],
}
WORKER = {"cpu": "8", "memory": "64Gi", "node_selector": {"phasetune/pool": "gpu", "zone": "a"}}
SHAPES = {
    "one process on the head": {},
    "one GPU": {"workers": 1, "gpus_per_worker": 1},
    "several on CPUs": {"workers": 4},
    "GPUs": GPUS,
    "GPUs, as many as there is room for": {**GPUS, "workers": [2, 8]},
    "autoscaled": {**GPUS, "workers": [2, 8], "kubernetes": {"queue": None}},
    "spot": {**GPUS, "kubernetes": {"spot": SPOT, "worker": WORKER}},
    "spot, as many as there is room for": {**GPUS, "workers": [2, 8], "kubernetes": {"spot": SPOT, "worker": WORKER}},
    "spot, autoscaled": {**GPUS, "kubernetes": {"spot": SPOT, "queue": None, "priority": "high"}},
}


@pytest.fixture
def made():
    """`made(**compute)`: the RayJob of an errand."""

    def make(attempt: int = 1, secrets: dict | None = None, **compute):
        spec = rayjobs.spec_of("store", **compute)
        if secrets:
            spec = spec.model_validate({**spec.model_dump(), "secrets": secrets})
        return rayjob(rayjobs.errand_of(), spec, attempt)

    return make


def pods(job: dict) -> dict[str, dict]:
    """The templates of its pods, by name."""
    cluster = job["spec"]["rayClusterSpec"]
    return {
        "head": cluster["headGroupSpec"]["template"],
        "submitter": job["spec"]["submitterPodTemplate"],
        **{group["groupName"]: group["template"] for group in cluster.get("workerGroupSpecs", [])},
    }


def groups(job: dict) -> dict[str, tuple[int, int, int]]:
    """Replicas, least and most of its groups of workers."""
    found = job["spec"]["rayClusterSpec"].get("workerGroupSpecs", [])
    return {one["groupName"]: (one["replicas"], one["minReplicas"], one["maxReplicas"]) for one in found}


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_valid(made, shape) -> None:
    needed.crds()
    job = made(**SHAPES[shape], secrets={"judge_api_key": {"secret": "judge", "key": "token"}})
    assert schemas.faults(job) == []
    for name, template in pods(job).items():
        assert (name, schemas.pod_faults(template)) == (name, [])


def test_the_check_bites(made) -> None:
    needed.crds()
    job = made()
    job["spec"]["retries"] = 3
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["gpu"] = 1
    del job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["name"]
    assert len(schemas.faults(job)) == 3
    assert schemas.pod_faults(pods(job)["head"])


@pytest.mark.parametrize("shape", SHAPES)
def test_its_pods_are_restricted(made, shape) -> None:
    job = made(**SHAPES[shape])
    cluster = job["spec"]["rayClusterSpec"]
    for name, template in pods(job).items():
        about = template["spec"]
        assert about["serviceAccountName"] == "phasetune-ray"
        assert about["automountServiceAccountToken"] is False
        assert about["securityContext"]["runAsNonRoot"] is True
        assert about["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert {"hostNetwork", "hostPID", "hostIPC"}.isdisjoint(about)
        assert all(set(volume) - {"name"} <= {"emptyDir", "projected"} for volume in about["volumes"])
        [container] = about["containers"]
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert len(mounts) == (2 if name == "submitter" else 3)  # scratch, home, and shared memory where Ray runs
        assert not any("serviceaccount" in mount for mount in mounts)
        for part in [container, *([cluster["autoscalerOptions"]] if "autoscalerOptions" in cluster else [])]:
            context = part["securityContext"]
            assert context["allowPrivilegeEscalation"] is False and context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert part["resources"]["requests"] == part["resources"]["limits"]
            assert {"cpu", "memory", "ephemeral-storage"} <= set(part["resources"]["limits"])
        if name != "submitter":
            assert {"livenessProbe", "readinessProbe", "startupProbe"} <= set(container)
        assert container["image"] == "registry/phasetune:1"
        component = {"head": "ray-head", "submitter": "ray-submitter"}.get(name, "ray-worker")
        assert template["metadata"]["labels"]["app.kubernetes.io/component"] == component
        assert template["metadata"]["labels"]["app.kubernetes.io/part-of"] == "phasetune"


@pytest.mark.parametrize("shape", SHAPES)
def test_it_claims_no_volume_that_would_outlive_it(made, shape) -> None:
    kinds = {
        kind
        for template in pods(made(**SHAPES[shape])).values()
        for volume in template["spec"]["volumes"]
        for kind in volume
    }
    assert kinds <= {"name", "emptyDir", "projected"}


def test_what_it_is(made) -> None:
    job = made(attempt=3)
    assert job["metadata"]["name"] == "phases-0123456789abcdef01234567-3"
    assert job["metadata"]["labels"] == {
        "app.kubernetes.io/part-of": "phasetune",
        "app.kubernetes.io/component": "ray-job",
        "phasetune/key": "0123456789abcdef",
        "phasetune/kind": "phases",
        "phasetune/attempt": "3",
        "kueue.x-k8s.io/queue-name": "phasetune",
    }
    spec = job["spec"]
    assert (spec["suspend"], spec["shutdownAfterJobFinishes"], spec["backoffLimit"]) == (True, True, 0)
    assert spec["activeDeadlineSeconds"] == 48 * 3600
    assert spec["ttlSecondsAfterFinished"] == KubernetesSpec().keep_seconds
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert spec["rayClusterSpec"]["rayVersion"].startswith("2.")
    variables = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    assert Errand.decoded(variables[ERRAND]) == rayjobs.errand_of()


def test_names_fit_kuberay() -> None:
    errand = Errand("s", "r", "evaluations", "F" * 32, "t", {})
    name = rayjob(errand, rayjobs.spec_of("store"), 10)["metadata"]["name"]
    assert len(name) <= 47
    assert name == name.lower()


def test_without_a_queue_it_starts_at_once(made) -> None:
    job = made(kubernetes={"queue": None})
    assert job["spec"]["suspend"] is False
    assert "kueue.x-k8s.io/queue-name" not in job["metadata"]["labels"]
    assert made(kubernetes={"priority": "urgent"})["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "urgent"


@pytest.mark.parametrize(
    ("shape", "sizes", "autoscaled"),
    [
        ("one process on the head", {}, False),
        ("one GPU", {"gpu": (1, 1, 1)}, False),
        ("several on CPUs", {"cpu": (4, 4, 4)}, False),
        ("GPUs", {"gpu": (8, 8, 8)}, False),
        ("GPUs, as many as there is room for", {"gpu": (8, 8, 8)}, False),  # Kueue takes no autoscaler
        ("autoscaled", {"gpu": (2, 2, 8)}, True),
        ("spot", {"gpu": (8, 8, 8)}, False),  # on either: Kueue's flavors decide
        ("spot, as many as there is room for", {"gpu-spot": (6, 6, 6), "gpu": (2, 2, 2)}, False),
        ("spot, autoscaled", {"gpu-spot": (0, 0, 8), "gpu": (0, 0, 8)}, True),
    ],
)
def test_groups_of_workers(made, shape, sizes, autoscaled) -> None:
    job = made(**SHAPES[shape])
    cluster = job["spec"]["rayClusterSpec"]
    assert groups(job) == sizes
    assert cluster["enableInTreeAutoscaling"] is autoscaled
    assert ("autoscalerOptions" in cluster) is autoscaled
    start = cluster["headGroupSpec"]["rayStartParams"]
    assert (start["num-cpus"], start["num-gpus"]) == ("0" if sizes else "3", "0")


def test_spot_machines_are_asked_for_first(made) -> None:
    job = made(**SHAPES["spot, autoscaled"])
    first = max(job["spec"]["rayClusterSpec"]["workerGroupSpecs"], key=lambda group: group.get("priority", 0))
    assert first["groupName"] == "gpu-spot"
    assert first["template"]["spec"]["nodeSelector"] == {"phasetune/pool": "gpu-spot"}
    either = pods(made(**SHAPES["spot"]))["gpu"]["spec"]
    assert "nodeSelector" not in either  # no label is in both places
    assert {one["key"] for one in either["tolerations"]} == {"phasetune/spot", "nvidia.com/gpu"}
    stay = pods(made(**SHAPES["spot, as many as there is room for"]))
    assert stay["gpu"]["spec"]["nodeSelector"] == {"phasetune/pool": "gpu", "zone": "a"}
    assert [one["key"] for one in stay["gpu"]["spec"]["tolerations"]] == ["nvidia.com/gpu"]


def test_gpus_are_on_workers_alone(made) -> None:
    job = made(**GPUS, kubernetes={"gpu_resource": "amd.com/gpu"})
    resources = {name: pod["spec"]["containers"][0]["resources"]["limits"] for name, pod in pods(job).items()}
    assert resources["gpu"]["amd.com/gpu"] == "1"
    assert not any("gpu" in what for name in ("head", "submitter") for what in resources[name])


def test_each_stage_has_pods_of_its_own_size() -> None:
    small = {"worker": {"cpu": "2", "memory": "8Gi"}, "workers": 1}
    spec = rayjobs.spec_of("store", **GPUS, kubernetes={"worker": WORKER, "attempts": 5}, evaluation=small)

    def limits(asked) -> dict[str, tuple[str, str]]:
        found = pods(rayjob(rayjobs.errand_of(), asked, 1))
        resources = {name: pod["spec"]["containers"][0]["resources"]["limits"] for name, pod in found.items()}
        return {name: (one["cpu"], one["memory"]) for name, one in resources.items() if name != "submitter"}

    training = {"head": ("2", "16Gi"), "gpu": ("8", "64Gi")}
    assert limits(spec) == limits(spec.at("scoring")) == training
    assert limits(spec.at("evaluation")) == {**training, "gpu": ("2", "8Gi")}
    assert spec.at("evaluation").compute.kubernetes.attempts == 5


def test_only_the_autoscaler_has_a_token(made) -> None:
    job = made(**SHAPES["autoscaled"])
    options = job["spec"]["rayClusterSpec"]["autoscalerOptions"]
    [token] = [mount for mount in options["volumeMounts"] if mount["name"] == "token"]
    assert token["mountPath"].endswith("/serviceaccount") and token["readOnly"]
    assert "token" in [volume["name"] for volume in pods(job)["head"]["spec"]["volumes"]]
    assert "token" not in [volume["name"] for volume in pods(made(**GPUS))["head"]["spec"]["volumes"]]


def test_secrets_are_named_where_work_is_done(made) -> None:
    job = made(**GPUS, secrets={"judge_api_key": {"secret": "judge", "key": "token"}})
    reference = {"name": "JUDGE_API_KEY", "valueFrom": {"secretKeyRef": {"name": "judge", "key": "token"}}}
    for name, pod in pods(job).items():
        assert (reference in pod["spec"]["containers"][0]["env"]) == (name != "submitter")


def test_a_variable_means_itself(made) -> None:
    job = made(kubernetes={"environment": {"PATTERN": "$(HOME) $x 'b'"}})
    [found] = [one for one in pods(job)["head"]["spec"]["containers"][0]["env"] if one["name"] == "PATTERN"]
    assert found["value"] == "$$(HOME) $$x 'b'"  # Kubernetes makes one `$` of two, and no variable


def test_nothing_of_the_errand_is_read_by_a_shell(made) -> None:
    nasty = Errand("s", "r'; $(reboot)", "phases", "k" * 32, "t", {"context": '`id` "$HOME" \n- x: y'})
    job = rayjob(nasty, rayjobs.spec_of("store"), 1)
    text = job["spec"]["runtimeEnvYAML"]
    assert not set("$`'\"\\") & set(json.loads(json.dumps(yaml.safe_load(text)))["env_vars"][ERRAND])
    assert Errand.decoded(yaml.safe_load(text)["env_vars"][ERRAND]) == nasty
    assert job["spec"]["entrypoint"] == "python -m components.common.ray_driver"


def test_an_errand_that_no_command_line_holds_is_refused() -> None:
    import random

    noise = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=200_000))
    with pytest.raises(UserError, match="limit"):
        rayjob(Errand("s", "r", "phases", "k" * 32, "t", {"context": noise}), rayjobs.spec_of("store"), 1)


def test_the_digest_is_of_the_work_not_of_who_asks() -> None:
    spec = rayjobs.spec_of("store")
    one = work_digest(rayjobs.errand_of("run-1"), spec)
    assert one == work_digest(rayjobs.errand_of("run-2"), rayjobs.spec_of("store", workers=2))
    assert one != work_digest(rayjobs.errand_of("run-1", "f" * 32), spec)
    assert one != work_digest(rayjobs.errand_of("run-1"), rayjobs.spec_of("elsewhere"))
    assert one != work_digest(rayjobs.errand_of("run-1"), rayjobs.spec_of("store", kubernetes={"image": "b:2"}))


def test_quantities() -> None:
    assert [amount(text) for text in ("2", "500m", "1.5", "2Ki", "1M")] == [2, 0.5, 1.5, 2048, 10**6]
