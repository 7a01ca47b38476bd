"""The compiled pipeline: what stands in it, what depends on what, and what it refuses."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import yaml

from components.common.errors import SpecError, UserError
from components.common.records import RunInfo
from components.common.spec import Spec
from pipelines.phased import cluster_info, compile_pipeline
from pipelines.pods import check_image, image_of
from pipelines.running import count_steps
from pipelines.submission_check import local_places, model_there

STAGES = ["preparing", "scoring", "splitting", "training", "evaluation", "reporting"]
VALUES = {
    "name": "cluster",
    "seed": 17,
    "model": {"path": "org/model"},
    "data": {"train": [{"path": "s3://bucket/rows.jsonl"}]},
    "splitting": {"tiers": 2},
    "controls": ["one_off", {"only": [1]}],
    "tracking": {"uri": "http://mlflow:5000"},
    "store": "s3://bucket/store",
}


def compiled(folder: Path, **changes) -> dict:
    spec = Spec.model_validate({**VALUES, **changes})
    compile_pipeline(spec, folder / "pipeline.yaml", allow_local=False)
    pipeline, _ = yaml.safe_load_all((folder / "pipeline.yaml").read_text())
    return pipeline


def tasks_of(pipeline: dict) -> dict[str, dict]:
    """Every task by its inner name: the report, and those of the group that it waits for."""
    (report,) = (name for name in pipeline["root"]["dag"]["tasks"] if not name.startswith("exit-handler"))
    group = pipeline["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    return {**group, report: pipeline["root"]["dag"]["tasks"][report]}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> dict:
    return compiled(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def tasks(pipeline) -> dict:
    """The tasks by the names that users see."""
    return {task["taskInfo"]["name"]: task for task in tasks_of(pipeline).values()}


@pytest.fixture(scope="module")
def edges(pipeline) -> dict[str, set[str]]:
    """The names of the tasks that each task waits for."""
    return edges_of(pipeline)


def test_a_task_for_every_step(tasks):
    assert set(tasks) == {
        "prepare", "score", "split seed 17", "evaluate base", "report",
        "train main 1 tier-1 seed 17", "evaluate main 1 tier-1 seed 17",
        "train main 2 tier-2 seed 17", "evaluate main 2 tier-2 seed 17",
        "train one_off 1 all-tiers seed 17", "evaluate one_off 1 all-tiers seed 17",
        "train only_1 1 tier-1 seed 17", "evaluate only_1 1 tier-1 seed 17",
    }  # fmt: skip


def test_only_real_dependencies_are_edges(edges):
    assert edges["prepare"] == set()
    assert edges["score"] == {"prepare"}
    assert edges["split seed 17"] == {"score"}
    assert edges["evaluate base"] == {"split seed 17"}
    assert edges["train main 1 tier-1 seed 17"] == {"split seed 17"}
    assert edges["train main 2 tier-2 seed 17"] == {"split seed 17", "train main 1 tier-1 seed 17"}
    assert edges["evaluate main 2 tier-2 seed 17"] == {"split seed 17", "train main 2 tier-2 seed 17"}
    assert edges["train one_off 1 all-tiers seed 17"] == {"split seed 17"}
    assert edges["evaluate one_off 1 all-tiers seed 17"] == {"split seed 17", "train one_off 1 all-tiers seed 17"}


def test_the_report_is_written_however_the_other_steps_ended(pipeline, tasks):
    assert tasks["report"]["dependentTasks"] == ["exit-handler-1"]
    assert tasks["report"]["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    assert set(pipeline["root"]["dag"]["tasks"]) == {"exit-handler-1", "report"}
    assert set(tasks["report"]["inputs"]["parameters"]) == {"context"}  # nothing that a failed step would owe it


def test_seeds_share_all_but_the_split(tmp_path):
    pipeline = compiled(tmp_path, seeds=[1, 2], controls=[])
    names = [task["taskInfo"]["name"] for task in tasks_of(pipeline).values()]
    assert sorted(name for name in names if not name.startswith(("train", "evaluate main"))) == [
        "evaluate base", "prepare", "report", "score", "split seed 1", "split seed 2",
    ]  # fmt: skip
    assert sum(name.startswith("train ") for name in names) == 4


def test_the_store_is_the_only_cache(tasks):
    assert [name for name, task in tasks.items() if task["cachingOptions"].get("enableCache")] == []


def test_every_task_runs_in_an_image_and_installs_nothing(pipeline):
    executors = pipeline["deploymentSpec"]["executors"]
    assert len({executor["container"]["image"] for executor in executors.values()}) == 1
    for executor in executors.values():
        assert executor["container"]["image"] not in ("", "python:3.11")
        said = json.dumps(executor["container"])
        assert "pip install" not in said
        assert "kfp==" not in said


def test_the_context_says_what_the_run_is_and_nothing_of_this_machine(pipeline):
    for task in tasks_of(pipeline).values():
        context = json.loads(task["inputs"]["parameters"]["context"]["runtimeValue"]["constant"])
        # KFP fills in the run's own id, so that two runs of one pipeline keep their records apart
        assert context["run"] == "cluster-{{$.pipeline_job_uuid}}"
        assert context["name"] == "cluster"
        assert context["store"] == "s3://bucket/store"
        assert RunInfo.from_json(json.dumps(context)).parsed().curriculum.order == "ascending"
        assert (context["output_dir"], context["machine"]) == ("", {})


def test_it_is_small_enough_for_a_cluster(tmp_path):
    compiled(tmp_path, splitting={"tiers": 10}, controls=["one_off", "random_tiers", "one_off_restarts"])
    # 41 phases; a compiled pipeline of 2 MB could not be retried on a cluster. Every task holds the context and a pod.
    assert (tmp_path / "pipeline.yaml").stat().st_size < 400_000


def test_no_secret_is_in_it(tmp_path):
    compiled(tmp_path, tracking={"uri": "http://ann:hunter2@mlflow:5000"})
    assert "hunter2" not in (tmp_path / "pipeline.yaml").read_text()


def test_places_of_this_machine_are_refused_by_name(tmp_path):
    with pytest.raises(SpecError) as caught:
        compiled(tmp_path, model={"path": "/models/mine"}, store="/runs/store", tracking={"uri": "sqlite:///a.db"})
    message = str(caught.value)
    assert "model.path: /models/mine" in message
    assert "store: /runs/store" in message
    assert "tracking.uri: sqlite:///a.db" in message
    assert "--allow-local" in message
    assert "data.train" not in message
    assert not (tmp_path / "pipeline.yaml").exists()


def test_data_of_this_machine_is_refused_by_its_place_in_the_list():
    held_out = {"sources": [{"path": "hf://org/data"}, {"path": "/data/test.jsonl"}]}
    train = [{"path": "s3://bucket/rows.jsonl"}, {"path": "/data/rows.jsonl"}]
    spec = Spec.model_validate({**VALUES, "data": {"train": train, "held_out": held_out}})
    assert local_places(spec) == [
        ("data.train.1.path", "/data/rows.jsonl"),
        ("data.held_out.sources.1.path", "/data/test.jsonl"),
    ]


PAIRS = {"method": "dpo", "data": [{"path": "s3://bucket/pairs.jsonl"}]}
PROMPTS = {"method": "grpo", "data": [{"path": "s3://bucket/prompts.jsonl"}]}


def edges_of(pipeline: dict) -> dict[str, set[str]]:
    tasks = tasks_of(pipeline)
    names = {"exit-handler-1": "steps", **{inner: task["taskInfo"]["name"] for inner, task in tasks.items()}}
    return {names[t]: {names[inner] for inner in task.get("dependentTasks", [])} for t, task in tasks.items()}


def test_data_of_a_phase_s_own_are_prepared_once_for_main_controls_and_seeds(tmp_path):
    then = [PAIRS, PROMPTS, {**PROMPTS, "name": "again"}]
    pipeline = compiled(tmp_path, curriculum={"then": then}, controls=["one_off"], seeds=[1, 2])
    edges = edges_of(pipeline)
    assert {name for name in edges if name.startswith("prepare ")} == {
        "prepare main 3 dpo seed 1", "prepare main 4 grpo seed 1",
    }  # fmt: skip
    assert edges["prepare main 3 dpo seed 1"] == {"prepare"}
    for name, data in (("main 3 dpo", "main 3 dpo"), ("one_off 2 dpo", "main 3 dpo"), ("main 5 again", "main 4 grpo")):
        for seed in (1, 2):
            assert f"prepare {data} seed 1" in edges[f"train {name} seed {seed}"]
    assert edges["train main 2 tier-2 seed 2"] == {"split seed 2", "train main 1 tier-1 seed 2"}


def test_equal_sources_for_other_methods_are_prepared_apart(tmp_path):
    # Of the same rows, dpo needs those with a rejected reply, and grpo those with an answer.
    then = [{**PAIRS, "data": PROMPTS["data"]}, PROMPTS]
    edges = edges_of(compiled(tmp_path, curriculum={"then": then}, controls=[]))
    assert sum(name.startswith("prepare ") for name in edges) == 2


@pytest.mark.parametrize(
    ("then", "controls", "seeds"),
    [([], ["one_off"], None), ([PAIRS], ["one_off"], [1, 2]), ([PAIRS, PROMPTS, PAIRS], [], None)],
)
def test_as_many_steps_are_counted_as_there_are_tasks_beside_the_report(tmp_path, then, controls, seeds):
    changes = {"curriculum": {"then": then}, "controls": controls, "seeds": seeds}
    tasks = tasks_of(compiled(tmp_path, **changes))
    assert count_steps(Spec.model_validate({**VALUES, **changes})) == len(tasks) - 1


def test_data_of_a_phase_on_this_machine_are_refused_by_their_place():
    phases = [{"tiers": [1]}, {"method": "dpo", "data": [{"path": "s3://b/x"}, {"path": "/data/pairs.jsonl"}]}]
    then = [{"method": "grpo", "data": [{"path": "/data/prompts.jsonl"}]}]
    changes = {"curriculum": {"phases": phases, "then": then}, "controls": []}
    assert local_places(Spec.model_validate({**VALUES, **changes})) == [
        ("curriculum.phases.1.data.1.path", "/data/pairs.jsonl"),
        ("curriculum.then.0.data.0.path", "/data/prompts.jsonl"),
    ]


@pytest.mark.parametrize("stage", STAGES)
def test_every_component_compiles_alone(stage, tmp_path):
    from kfp import compiler
    from kfp.dsl.python_component import PythonComponent

    module = importlib.import_module(f"components.{stage}.component")
    found = [value for value in vars(module).values() if isinstance(value, PythonComponent)]
    assert found
    for component in found:
        assert component.python_func.__doc__
        compiler.Compiler().compile(component, str(tmp_path / "component.yaml"))
        said = json.dumps(yaml.safe_load((tmp_path / "component.yaml").read_text()))
        assert f"from components.{stage}.step import run" in said


def test_addresses_of_this_machine_are_refused_by_their_place():
    compute = {"ray": "http://127.0.0.1:8265", "evaluation": {"ray": "http://localhost:8265"}}
    changes = {"compute": compute, "tracking": {"uri": "http://[::1]:5000"}, "scoring": {"model": "/models/small"}}
    assert [key for key, _ in local_places(Spec.model_validate({**VALUES, **changes}))] == [
        "compute.ray", "tracking.uri", "scoring.model", "compute.evaluation.ray",
    ]  # fmt: skip
    assert local_places(Spec.model_validate({**VALUES, "compute": {"ray": "http://head:8265"}})) == []


@pytest.mark.parametrize(
    ("image", "fine"),
    [
        ("phasetune:1", True),
        ("registry:5000/team/phasetune:v1", True),
        ("phasetune@sha256:" + "0" * 64, True),
        ("phasetune:latest@sha256:" + "0" * 64, True),
        ("phasetune", False),
        ("registry:5000/phasetune", False),
        ("registry/phasetune:latest", False),
    ],
)
def test_an_image_says_which_build_it_is(image, fine):
    if fine:
        check_image(image)
        return
    with pytest.raises(UserError, match="may be another one tomorrow"):
        check_image(image)


def test_the_image_is_the_spec_s_or_that_of_whoever_compiles(monkeypatch):
    monkeypatch.setenv("PHASETUNE_IMAGE", "mine:1")
    spec = Spec.model_validate(VALUES)
    assert cluster_info(spec).spec["compute"]["kubernetes"]["image"] == "mine:1"  # the RayJobs are of the same
    said = Spec.model_validate({**VALUES, "compute": {"kubernetes": {"image": "theirs:2"}}})
    assert image_of(said) == "theirs:2"
    monkeypatch.delenv("PHASETUNE_IMAGE")
    assert image_of(spec) == "phasetune:latest"


def test_a_model_elsewhere_is_asked_for_its_configuration_only(lab_model):
    assert model_there("lab") == model_there(str(lab_model)) == lab_model
    with pytest.raises(UserError, match="not to be had from the Hugging Face hub"):
        model_there("org/no-such-model")
