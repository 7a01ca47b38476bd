"""Text that is written for somebody's template engine: Kubeflow's, Argo's, Kubernetes's, YAML's, a shell's."""

import json
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from components.common.records import RunInfo
from components.common.spec import Spec
from components.common.spec_file import load_spec
from pipelines.phased import compile_pipeline

RUN = "{{$.pipeline_job_uuid}}"
EVIL = [
    "{{workflow.name}}",
    "{{$.inputs.parameters['prepared']}}",
    "{{{{inputs.parameters.component}}}}",
    "{{=sprig.env('JUDGE_API_KEY')}}",
    "$(JUDGE_API_KEY)",
    "$$(JUDGE_API_KEY) ${HOME} `id`",
    "a: &b [*b]\n---\n!!python/object/apply:os.system [id]",
    "\u2028\u0000'\"\\",
]
VALUES = {
    "name": "evil",
    "splitting": {"tiers": 1},
    "controls": [],
    "tracking": {"uri": "http://mlflow:5000"},
    "store": "s3://bucket/store",
}


def spec_with(text: str) -> Spec:
    """A spec with the text wherever a spec takes any."""
    return Spec.model_validate(
        VALUES
        | {
            "model": {"path": f"org/{text}", "adapter": {"target_modules": [text]}},
            "data": {"train": [{"path": f"s3://bucket/{text}.jsonl", "name": text}]},
            "scoring": {"method": "column", "column": text, "model": text},
            "curriculum": {"then": [{"method": "grpo", "data": [{"path": f"hf://{text}"}], "rewards": [text]}]},
            "tracking": {"uri": "http://mlflow:5000", "experiment": text},
            "compute": {"kubernetes": {"image": "registry.example/phasetune@sha256:" + 64 * "0"}},
        }
    )


def contexts(text: str) -> list[str]:
    """The context of every task of a compiled pipeline, wherever it stands."""
    found: list[str] = []

    def visit(value: object) -> None:
        if isinstance(value, dict):
            given = value.get("context")
            if isinstance(given, dict) and "runtimeValue" in given:
                found.append(given["runtimeValue"]["constant"])
            for inner in value.values():
                visit(inner)
        elif isinstance(value, list):
            for inner in value:
                visit(inner)

    for document in yaml.safe_load_all(text):
        visit(document)
    return found


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Spec, str]:
    spec = spec_with(" ".join(EVIL))
    path: Path = tmp_path_factory.mktemp("evil") / "pipeline.yaml"
    compile_pipeline(spec, path, allow_local=True)
    return spec, path.read_text()


def test_nothing_of_a_spec_is_a_placeholder_in_a_compiled_pipeline(compiled):
    spec, text = compiled
    found = contexts(text)
    assert len(found) >= 8  # prepare twice, score, split, two phases with their evaluations, ...
    for context in found:
        run = json.loads(context)["run"]
        assert run == f"evil-{RUN}"
        rest = context.replace(RUN, "")
        assert "{{" not in rest and "$" not in rest
        assert RunInfo.from_json(context).parsed() == spec  # and yet it all arrives


def test_nothing_of_a_spec_is_a_placeholder_anywhere_else(compiled):
    _, text = compiled
    for piece in ("workflow.name", "sprig", "inputs.parameters['prepared']", "JUDGE_API_KEY"):
        # Within a context the braces and the dollar before it are spelt otherwise.
        assert all(not before.endswith(("{{", "$(", "{{$.", "{{=")) for before in text.split(piece)[:-1])


def test_a_run_s_records_come_back_as_they_were():
    for text in EVIL:
        info = RunInfo(f"n-{text}", "n", {"a": {text: [text]}}, "", text, "", "", machine={"a": {"b": {"c": text}}})
        assert RunInfo.from_json(info.to_json()) == info


@pytest.mark.parametrize("text", EVIL)
@pytest.mark.parametrize(
    ("key", "build"),
    [
        ("name", lambda text: {"name": text}),
        ("curriculum.phases.0.name", lambda text: {"curriculum": {"phases": [{"name": text, "tiers": [1]}]}}),
        ("secrets", lambda text: {"secrets": {text: {"secret": "a", "key": "b"}}}),
        ("secrets.a.secret", lambda text: {"secrets": {"a": {"secret": text, "key": "b"}}}),
        ("secrets.a.key", lambda text: {"secrets": {"a": {"secret": "a", "key": text}}}),
        ("compute.ray", lambda text: {"compute": {"ray": text}}),
        ("compute.ray", lambda text: {"compute": {"ray": f"http://head:8265/{text}"}}),
        ("compute.kubernetes.queue", lambda text: {"compute": {"kubernetes": {"queue": text}}}),
        ("compute.kubernetes.service_account", lambda text: {"compute": {"kubernetes": {"service_account": text}}}),
        ("compute.kubernetes.head.memory", lambda text: {"compute": {"kubernetes": {"head": {"memory": text}}}}),
        ("compute.kubernetes.gpu_resource", lambda text: {"compute": {"kubernetes": {"gpu_resource": text}}}),
        ("compute.kubernetes.environment", lambda text: {"compute": {"kubernetes": {"environment": {text: "x"}}}}),
        ("compute.kubernetes.image", lambda text: {"compute": {"kubernetes": {"image": text}}}),
        (
            "compute.kubernetes.pipeline.node_selector",
            lambda text: {"compute": {"kubernetes": {"pipeline": {"node_selector": {"a": text}}}}},
        ),
        (
            "compute.kubernetes.worker.tolerations",
            lambda text: {"compute": {"kubernetes": {"worker": {"tolerations": [{"key": "a", "value": text}]}}}},
        ),
    ],
)
def test_names_that_reach_the_cluster_are_plain(text, key, build):
    data = {"train": [{"path": "lab://instructions"}]}
    with pytest.raises(ValidationError) as refused:
        Spec.model_validate({"name": "n", "data": data, **build(text)})
    assert ".".join(map(str, refused.value.errors()[0]["loc"])).startswith(key)


def test_a_variable_of_pods_is_no_placeholder():
    """Argo reads the pods of a pipeline; Kubernetes's own `$(NAME)` is what users may want there."""
    for text in (text for text in EVIL if "{{" in text):
        with pytest.raises(ValidationError, match=r"environment\.A holds `\{\{`"):
            Spec.model_validate(
                VALUES | {"data": {"train": []}, "compute": {"kubernetes": {"environment": {"A": text}}}}
            )


@pytest.mark.parametrize("text", ["x\n", "a\nb", "-a", "a/../b", "ä"])
def test_a_name_with_a_line_end_is_no_name(text):
    with pytest.raises(ValidationError, match="name"):
        Spec.model_validate({"name": text, "data": {"train": [{"path": "lab://instructions"}]}})


@pytest.mark.timeout(60)
def test_a_spec_is_plain_yaml(tmp_path, trap):
    from components.common.errors import SpecError

    bombs = [
        f"name: !!python/object/apply:os.system ['touch {trap.mark}']",
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
        ),
        "name: &n [*n]",
        "[" * 10_000,
    ]
    for place, bomb in enumerate(bombs):
        (tmp_path / f"{place}.yaml").write_text(bomb)
        with pytest.raises(SpecError):
            load_spec(tmp_path / f"{place}.yaml")
    assert not trap.sprung
