"""Compiled pipelines compared with what was agreed on: pods, edges, inputs, retries. UPDATE_GOLDEN=1 writes them anew.

The files hold what a reviewer reads: every task once, each kind of pod once, the context once. Left out are the source
text of the components and the version of KFP.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import yaml

from components.common.spec_file import load_spec
from pipelines.phased import compile_pipeline
from pipelines.submission_check import local_places
from pipelines.sweep_pipeline import compile_sweep
from pipelines.sweep_spec import load_sweep

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).with_name("golden")
SPEC = ROOT / "pipelines" / "specs" / "cluster.yaml"
CANARY = "hunter2-is-the-value"
CASES = {
    "cluster": [],
    "seeds": ["seeds=[1, 2]", "controls=[one_off]", "curriculum.then=[]", "splitting={tiers: 2}"],
    "bare": [
        "controls=[]", "curriculum.then=[]", "splitting={tiers: 1}", "secrets={}",
        "compute={kubernetes: {image: 'phasetune:1', retries: 0, environment: {A: b}, pipeline: {memory: 1.5Gi}}}",
    ],
}  # fmt: skip
SWEEP = {
    "name": "orders", "space": {"splitting.tiers": [1, 2], "curriculum.order": "permutations"}, "slots": 3,
    "search": {"seeds": 3},
}  # fmt: skip
SWEPT = ["splitting={cut: quantiles, tiers: 2}", "tracking.uri=http://ann:hunter2-is-the-value@mlflow.phasetune:5000"]
NAMES = [*CASES, "sweep"]


def compiled(name: str, folder: Path) -> str:
    """The text of a case's compiled pipeline."""
    file = folder / f"{name}.yaml"
    if name == "sweep":
        written = folder / "written.yaml"
        written.write_text(yaml.safe_dump({**SWEEP, "base": str(SPEC)}), encoding="utf-8")
        compile_sweep(load_sweep(written, SWEPT), file)
        return file.read_text(encoding="utf-8")
    compile_pipeline(load_spec(SPEC, CASES[name]), file, allow_local=False)
    return file.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> dict[str, str]:
    os.environ |= {"MLFLOW_TRACKING_PASSWORD": CANARY, "AWS_SECRET_ACCESS_KEY": CANARY}
    try:
        return {name: compiled(name, tmp_path_factory.mktemp("compiled")) for name in NAMES}
    finally:
        del os.environ["MLFLOW_TRACKING_PASSWORD"], os.environ["AWS_SECRET_ACCESS_KEY"]


def readable(text: str) -> dict:
    """What is compared, of a compiled pipeline."""
    pipeline, platform = yaml.safe_load_all(text)
    executors = pipeline["deploymentSpec"]["executors"]
    pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert executors.keys() == pods.keys()  # a task without its pod would run with no limits
    contexts, kinds, graphs = set(), {}, {}
    for name, executor in executors.items():
        container = {key: value for key, value in executor["container"].items() if key not in ("command", "args")}
        kinds.setdefault(json.dumps([container, pods[name]], sort_keys=True), []).append(name)
    for graph, part in (("root", pipeline["root"]), *pipeline["components"].items()):
        for name, task in part.get("dag", {}).get("tasks", {}).items():
            inputs = {key: _source(value) for key, value in task.get("inputs", {}).get("parameters", {}).items()}
            if "context" in inputs:
                contexts.add(inputs.pop("context"))
            if graph == "root" and "sweep" in inputs:
                inputs["sweep"] = json.loads(inputs["sweep"])
            kept = {key: task[key] for key in ("retryPolicy", "triggerPolicy", "dependentTasks") if key in task}
            assert not task.get("cachingOptions", {}).get("enableCache")
            graphs.setdefault(graph, {})[name] = {"name": task["taskInfo"]["name"], "inputs": inputs, **kept}
    (context,) = contexts
    return {
        "context": json.loads(context),
        "pods": [
            {"executors": sorted(names), "container": json.loads(kind)[0], "kubernetes": json.loads(kind)[1]}
            for kind, names in kinds.items()
        ],
        "tasks": graphs,
    }


def _source(value: dict) -> object:
    """Where a task's input comes from, in a word."""
    if "taskOutputParameter" in value:
        return f"{value['taskOutputParameter']['producerTask']}.{value['taskOutputParameter']['outputParameterKey']}"
    return value["runtimeValue"]["constant"]


@pytest.mark.parametrize("name", NAMES)
def test_the_compiled_pipeline_is_as_agreed(texts, name):
    said = yaml.safe_dump(readable(texts[name]), sort_keys=True, width=120, allow_unicode=True)
    file = GOLDEN / f"{name}.yaml"
    if "UPDATE_GOLDEN" in os.environ:
        file.parent.mkdir(exist_ok=True)
        file.write_text(said, encoding="utf-8")
    assert yaml.safe_load(said) == yaml.safe_load(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["bare", "sweep"])
def test_compiling_again_gives_the_same_bytes(texts, tmp_path, name):
    assert compiled(name, tmp_path) == texts[name]  # else the same spec would be uploaded again and again


@pytest.mark.parametrize("name", NAMES)
def test_no_value_of_a_secret_and_no_place_of_this_machine_is_in_it(texts, name):
    text = texts[name]
    assert CANARY not in text
    for place in (str(ROOT), str(Path.home()), str(Path.cwd()), "sqlite:"):
        assert not re.search(rf"{re.escape(place)}\b", text), place
    allowed = ("/home/phasetune", "/tmp", "/dev")  # noqa: S108  # the pods' own
    found = {path for path in re.findall(r"[\s:'\"](/[a-z]+/?[a-z]*)", _without_sources(text)) if path != "/"}
    assert not {path for path in found if not path.startswith(allowed)}


def _without_sources(text: str) -> str:
    """A compiled pipeline without the components' source text."""
    documents = list(yaml.safe_load_all(text))
    for executor in documents[0]["deploymentSpec"]["executors"].values():
        del executor["container"]["command"]
    return yaml.safe_dump_all(documents)


@pytest.mark.parametrize("name", CASES)
def test_no_volume_is_claimed_that_would_outlive_the_run(texts, name):
    text = _without_sources(texts[name])
    assert "emptyDirMount" in text
    assert not re.search("pvc|volume_?claim|workspace", text, re.IGNORECASE)


@pytest.mark.parametrize("name", ["cluster", "sweep"])
def test_secrets_are_variables_by_name(texts, name):
    _, platform = yaml.safe_load_all(texts[name])
    for pod in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        told = {
            pair["envVar"]: (secret["secretName"], pair["secretKey"])
            for secret in pod["secretAsEnv"]
            for pair in secret["keyToEnv"]
        }
        assert told == {
            "MLFLOW_TRACKING_USERNAME": ("phasetune-tracking", "username"),
            "MLFLOW_TRACKING_PASSWORD": ("phasetune-tracking", "password"),
        }


def test_a_step_s_pod_is_a_small_user_s(texts):
    pipeline, platform = yaml.safe_load_all(texts["cluster"])
    for executor in pipeline["deploymentSpec"]["executors"].values():
        resources = executor["container"]["resources"]
        assert resources["resourceCpuLimit"] == resources["resourceCpuRequest"] != ""
        assert resources["resourceMemoryLimit"] == resources["resourceMemoryRequest"] != ""
        assert "accelerator" not in resources
    for pod in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        # All that KFP 2.17 offers: with a read-only root, docs/security.md would have a line less under "not stopped".
        assert pod["securityContext"] == {"runAsUser": "10001", "runAsGroup": "10001", "runAsNonRoot": True}
        assert all(volume["sizeLimit"] for volume in pod["emptyDirMounts"])


def test_the_token_of_the_interactive_cluster_is_a_variable_by_name(tmp_path):
    """The example of docs/operations.md, against the cluster of k8s/."""
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    (example,) = (text for text in re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S) if "ray_auth_token" in text)
    given = yaml.safe_load(example)
    cluster = yaml.safe_load((ROOT / "k8s" / "base" / "ray" / "cluster.yaml").read_text(encoding="utf-8"))
    name = cluster["metadata"]["name"]
    assert cluster["spec"]["authOptions"] == {"mode": "token"}  # with `secretName`, the token would be elsewhere
    assert given["compute"]["ray"] == f"http://{name}-head-svc:8265"  # KubeRay's name of the head's service
    changes = [*CASES["bare"], f"compute.ray={given['compute']['ray']}", f"secrets={json.dumps(given['secrets'])}"]
    compile_pipeline(load_spec(SPEC, changes), tmp_path / "pipeline.yaml", allow_local=False)
    _, platform = yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text(encoding="utf-8"))
    for pod in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        (secret,) = pod["secretAsEnv"]
        assert secret["secretName"] == name
        assert secret["keyToEnv"] == [{"envVar": "RAY_AUTH_TOKEN", "secretKey": "auth_token"}]


@pytest.mark.parametrize("name", ["cluster", "sweep"])
def test_no_digest_of_data_is_in_it(texts, name):
    context = readable(texts[name])["context"]
    digests = re.findall(r"\b[0-9a-f]{16,64}\b", _without_sources(texts[name]))
    assert set(digests) == {context["spec_digest"]}  # data are read when a run starts


def test_the_worked_example_is_fit_for_a_cluster():
    spec = load_spec(SPEC)
    assert local_places(spec) == []
    assert spec.compute.ray == "rayjob"
    assert len(spec.controls) == 3
    assert spec.compute.kubernetes.spot is not None
    assert spec.at("scoring").compute.least_workers == 2


def test_twelve_phases_and_three_controls_stay_under_a_megabyte(tmp_path):
    changes = ["splitting={tiers: 10}", "controls=[one_off, random_tiers, one_off_restarts]"]
    file = tmp_path / "large.yaml"
    compile_pipeline(load_spec(SPEC, changes), file, allow_local=False)
    assert file.stat().st_size < 1_000_000
    main = re.findall(r"name: train main (\d+) ", file.read_text())
    assert max(int(number) for number in main) == 12
