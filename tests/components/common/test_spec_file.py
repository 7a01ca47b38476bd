import re
import subprocess
import sys
from pathlib import Path

import pytest

from components.common.errors import SpecError
from components.common.spec_file import load_spec, resolve_model, spec_digest

BASE = "name: x\ndata: {train: [{path: 'lab://instructions'}]}\n"


@pytest.fixture
def load(tmp_path):
    def run(more="", overrides=(), whole=None):
        file = tmp_path / "spec.yaml"
        file.write_text(BASE + more if whole is None else whole)
        return load_spec(file, overrides)

    return run


@pytest.fixture
def lines(load, tmp_path):
    """The lines of the error that a spec gives, without the first one's file."""

    def run(*arguments, **options):
        with pytest.raises(SpecError) as caught:
            load(*arguments, **options)
        first, *rest = caught.value.message.replace(str(tmp_path / "spec.yaml"), "FILE").splitlines()
        return [first, *(line.strip() for line in rest)]

    return run


# --- errors ----------------------------------------------------------------------------------------------------------


def test_an_error_names_file_key_value_and_what_is_allowed(lines):
    assert lines("model: {dtype: float8}") == [
        "the spec FILE has 1 error:",
        "model.dtype: 'float8' is not allowed: allowed: 'float32' or 'bfloat16'; did you mean 'float32'?",
    ]


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("sed: 3", "sed: unknown key; did you mean `seed`? allowed: compute, controls, curriculum, data, evaluation, "),
        ("model: {dtyp: float32}", "unknown key; did you mean `dtype`? allowed: adapter, attention, dtype, path"),
        ("curriculum: {sft: {epoch: 1}}", "curriculum.sft.epoch: unknown key; did you mean `epochs`?"),
        ("curriculum: {phases: [{tiers: [1]}, {tier: 1}]}", "phases.1.tier: unknown key; did you mean `tiers`?"),
        ("curriculum: {then: [{tiers: [1], replays: 0}]}", "then.0.replays: unknown key; did you mean `replay`?"),
        ("controls: [one_off, {onli: [1]}]", "controls.1.onli: unknown key; did you mean `only`? allowed: only"),
        ("secrets: {judge: {sceret: a, key: b}}", "sceret: unknown key; did you mean `secret`? allowed: key, secret"),
        ("splitting: {zzz: 1}", "splitting.zzz: unknown key; allowed: cut, thresholds, tiers"),
        ("controls: [one_of]", "'hardest_only' or 'one_off_restarts'; did you mean 'one_off'?"),
        ("scoring: {method: lenght}", "allowed: 'length', 'loss', 'ifd' or 'column'; did you mean 'length'?"),
        ("evaluation: {suites: [loss, verifable]}", "evaluation.suites.1: 'verifable' is not allowed: allowed: "),
        ("curriculum: {order: ascnding}", "'descending' or 'random'; did you mean 'ascending'?"),
        ("curriculum: {order: [1, x, 3]}", "curriculum.order.1: 'x' is not allowed: input should be a valid integer"),
        ("curriculum: {sft: {epochs: 1.5}}", "curriculum.sft.epochs: 1.5 is not allowed: input should be a valid"),
        ("curriculum: {sft: {adam_betas: [0.9]}}", "curriculum.sft.adam_betas: [0.9] has too few values"),
        ("model: 5", "model: 5 is not allowed: allowed: a mapping of adapter, attention, dtype, path"),
        ("splitting: {tiers: 2, cut: thresholds}", "splitting: 2 tiers need 1 thresholds, got 0"),
        ("data: {held_out: {fraction: 1}}", "the key 'data' appears twice in one mapping"),
        ("1: 2", "1: 1 is not allowed: keys should be strings"),
    ],
)  # fmt: skip
def test_an_error_says_this(lines, more, line):
    assert any(line in item for item in lines(more)), lines(more)


def test_all_errors_are_told_at_once(lines):
    assert lines("sed: 3\nmodel: {dtype: 5}\ncompute: {workers: 0}\nevaluation: {confidence: x}") == [
        "the spec FILE has 4 errors:",
        "model.dtype: 5 is not allowed: allowed: 'float32' or 'bfloat16'",
        "evaluation.confidence: 'x' is not allowed: input should be a valid number, unable to parse string as a number",
        "compute.workers: 0 is not allowed: input should be greater than or equal to 1",
        lines("sed: 3")[1],
    ]


def test_required_keys_are_named(lines):
    assert lines(whole="seed: 3") == [
        "the spec FILE has 2 errors:",
        "name: required, but absent",
        "data: required, but absent",
    ]


def test_a_mapping_among_the_controls_is_judged_as_a_mapping(lines):
    assert lines("controls: [{onli: [1]}]")[1:] == [
        "controls.0.only: required, but absent",
        "controls.0.onli: unknown key; did you mean `only`? allowed: only",
    ]


def test_an_error_has_a_remedy(load):
    with pytest.raises(SpecError) as caught:
        load("sed: 3")
    assert caught.value.remedy == "`phasetune validate SPEC` checks a spec; docs/spec.md lists every key"


# --- files that are no spec ------------------------------------------------------------------------------------------


def test_a_missing_file_suggests_the_near_one(tmp_path):
    (tmp_path / "quickstart.yaml").touch()
    with pytest.raises(SpecError) as caught:
        load_spec(tmp_path / "quikstart.yaml")
    assert caught.value.message == f"there is no spec at {tmp_path / 'quikstart.yaml'}"
    assert caught.value.remedy == f"did you mean {tmp_path / 'quickstart.yaml'}?"


def test_a_missing_folder_and_a_folder_for_a_file_are_said(tmp_path):
    with pytest.raises(SpecError, match="there is no spec at"):
        load_spec(tmp_path / "no" / "spec.yaml")
    with pytest.raises(SpecError, match="cannot be read"):
        load_spec(tmp_path)


@pytest.mark.parametrize("whole", ["- a\n- b", "", "just words", "3", "null"])
def test_a_file_without_keys_is_said(lines, whole):
    assert lines(whole=whole) == ["the spec FILE is not a mapping of keys"]


@pytest.mark.parametrize(
    "whole",
    [
        "a: [",
        "a: b: c",
        "\ta: 1",
        "a: \x01",
        "a: 1\n---\nb: 2\n---",
        "a: *nothing",
        "a: 2024-13-45",
        "a: 0x_",
        "a: " + "[" * 5000,
        "a: " + "[" * 5000 + "]" * 5000,
        "? [a]\n: 1",
    ],
    ids=range(11),
)
def test_a_file_that_is_no_yaml_is_said(lines, whole):
    (only,) = lines(whole=whole)
    assert only.startswith("the spec FILE is not YAML: ")


def test_bytes_that_are_no_text_are_said(tmp_path):
    (tmp_path / "spec.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(SpecError, match="cannot be read"):
        load_spec(tmp_path / "spec.yaml")


def test_a_key_given_twice_is_refused_at_its_line(lines):
    assert "the key 'seed' appears twice in one mapping" in lines("seed: 1\nmodel: {}\nseed: 2")[0]
    assert "line 5" in lines("seed: 1\nmodel: {}\nseed: 2")[0]


def test_anchors_and_merges_work(load):
    spec = load("curriculum: {phases: [&a {tiers: [1], epochs: 3}, {<<: *a, tiers: [2]}]}")
    assert [(phase.tiers, phase.epochs) for phase in spec.curriculum.phases] == [([1], 3), ([2], 3)]


def test_python_tags_run_nothing(lines, tmp_path):
    trap = tmp_path / "sprung"
    for tag in (f"!!python/object/apply:os.system ['touch {trap}']", "!!python/name:os.system", "!!python/tuple [1]"):
        assert "is not YAML: could not determine a constructor" in lines(f"seed: {tag}")[0]
    assert not trap.exists()


@pytest.mark.timeout(60)  # that it ends at all; unguarded it would take minutes or never end
def test_aliases_that_multiply_end_at_once_in_a_short_error(lines):
    bomb = "a0: &a0 [" + ",".join("x" * 10) + "]\n"
    bomb += "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30))
    said = lines(bomb + "seed: *a29\nmodel: {dtype: *a29}\ncontrols: *a29\ncurriculum: {order: *a29}")
    assert max(map(len, said)) < 2000


def test_values_that_contain_themselves_end_in_an_error(lines):
    assert lines("seed: &a [*a]")[1].startswith("seed: [[")
    assert "unknown key" in lines("a: &a {b: *a}")[1]


# --- --set -----------------------------------------------------------------------------------------------------------


def test_values_of_set_are_yaml(load):
    spec = load(
        "controls: [one_off]",
        [
            "seed=3",
            "name=y",
            "curriculum.order=[3, 1, 2]",
            "curriculum.sft.learning_rate=1e-4",
            "data.train.0.weight=0.5",
            "controls.0={only: [2]}",
            "tracking.enabled=false",
            "evaluation.max_examples=null",
            "store=a=b",
        ],
    )
    assert (spec.seed, spec.name, spec.curriculum.order) == (3, "y", [3, 1, 2])
    assert (spec.curriculum.sft.learning_rate, spec.data.train[0].weight) == (1e-4, 0.5)
    assert (spec.controls[0].only, spec.tracking.enabled, spec.evaluation.max_examples) == ([2], False, None)
    assert spec.store == str(Path("a=b").absolute())


def test_set_makes_the_mappings_on_its_way_and_the_last_one_wins(load):
    spec = load("curriculum:\n", ["curriculum.sft.epochs=4", "curriculum.sft.epochs=5", "scoring.method=length"])
    assert (spec.curriculum.sft.epochs, spec.scoring.method) == (5, "length")


def test_set_fills_an_empty_item_of_a_list(load):
    assert load("controls: [null]", ["controls.0.only=[1]"]).controls[0].only == [1]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set 'seed' is not KEY.PATH=VALUE"),
        ("=3", "--set '=3' is not KEY.PATH=VALUE"),
        ("seed=[", "--set 'seed=[': the value is not YAML"),
        ("seed=2024-13-45", "--set 'seed=2024-13-45': the value is not YAML"),
        ("name.first=1", "--set 'name.first=1': name is 'x', not a mapping"),
        ("data.train.0.path.x=", "data.train.0.path is 'lab://instructions', not a mapping"),
        ("data.train.1.weight=1", "--set 'data.train.1.weight=1': there is no item '1' in a list of 1"),
        ("data.train.first=1", "--set 'data.train.first=1': there is no item 'first' in a list of 1"),
        ("data.train.-1=1", "--set 'data.train.-1=1': there is no item '-1' in a list of 1"),
        ("data.train.²=1", "--set 'data.train.²=1': there is no item '²' in a list of 1"),
    ],
)  # fmt: skip
def test_a_set_that_cannot_be_is_said(lines, override, message):
    (only,) = lines(overrides=[override])
    assert message in only


def test_a_misspelt_key_of_set_is_an_unknown_key(lines):
    assert lines(overrides=["curriculum.stf.epochs=1"])[1].startswith(
        "curriculum.stf: unknown key; did you mean `sft`?"
    )


# --- paths -----------------------------------------------------------------------------------------------------------


def test_inputs_are_relative_to_the_spec_and_outputs_to_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "specs" / "models" / "mine").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    file = tmp_path / "specs" / "spec.yaml"
    file.write_text(
        "name: x\nmodel: {path: models/mine}\nscoring: {model: ./models/mine}\nstore: out/store\n"
        "data: {train: [{path: ../a.jsonl}, {path: b.json}], held_out: {sources: [{path: c.csv}]}}\n"
    )
    monkeypatch.chdir(tmp_path / "elsewhere")
    spec = load_spec(Path("../specs/spec.yaml"))
    assert spec.model.path == spec.scoring.model == str(tmp_path / "specs" / "models" / "mine")
    assert [source.path for source in spec.data.train] == [
        str(tmp_path / "a.jsonl"),
        str(tmp_path / "specs" / "b.json"),
    ]
    assert spec.data.held_out.sources[0].path == str(tmp_path / "specs" / "c.csv")
    assert spec.store == str(tmp_path / "elsewhere" / "out" / "store")


def test_data_of_phases_are_relative_to_the_spec_too(tmp_path):
    (tmp_path / "pairs.jsonl").touch()
    then = "{method: dpo, data: [{path: pairs.jsonl}, {path: 's3://bucket/pairs.jsonl'}]}"
    text = f"name: x\ndata: {{train: [{{path: pairs.jsonl}}]}}\ncurriculum: {{then: [{then}]}}\n"
    (tmp_path / "spec.yaml").write_text(text)
    (phase,) = load_spec(tmp_path / "spec.yaml").curriculum.then
    assert [source.path for source in phase.data] == [str(tmp_path / "pairs.jsonl"), "s3://bucket/pairs.jsonl"]
    phases = text.replace("then: [", "phases: [").replace("}\n", ", order: ascending}\n", 0) + "controls: []\n"
    (tmp_path / "spec.yaml").write_text(phases)
    (phase,) = load_spec(tmp_path / "spec.yaml").curriculum.phases
    assert phase.data[0].path == str(tmp_path / "pairs.jsonl")


@pytest.mark.parametrize(
    "path", ["s3://bucket/a.jsonl", "hf://org/data?split=test", "lab://instructions?count=3", "org/data"]
)
def test_places_that_are_no_files_stay_as_they_are(load, path):
    assert load(overrides=[f"data.train.0.path='{path}'"]).data.train[0].path == path


def test_a_file_named_like_a_hub_data_set_is_that_file(load, tmp_path):
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "data").touch()
    assert load(overrides=["data.train.0.path=org/data"]).data.train[0].path == str(tmp_path / "org" / "data")


@pytest.mark.parametrize("path", ["lab", "meta-llama/Llama-3.1-8B", "gpt2", "s3://bucket/model"])
def test_models_elsewhere_stay_as_they_are(path, tmp_path):
    assert resolve_model(path, tmp_path) == path


@pytest.mark.parametrize("path", ["./missing", "a/b/c", "../missing", "/missing/model"])
def test_a_model_folder_that_is_not_there_is_said(path, tmp_path):
    with pytest.raises(SpecError, match=r"model.path: there is no folder .*(missing|a/b/c)"):
        resolve_model(path, tmp_path)


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", '"a\\0b"'])
def test_what_is_no_path_is_said(lines, path):
    assert "is not a path" in lines(overrides=[f"data.train.0.path={path}"])[0]
    assert "is not a path" in lines(overrides=[f"model.path={path}"])[0]


def test_a_home_is_expanded(load, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    spec = load("store: ~/store", ["data.train.0.path=~/a.jsonl"])
    assert (spec.store, spec.data.train[0].path) == (str(tmp_path / "store"), str(tmp_path / "a.jsonl"))


# --- the digest, and the time ----------------------------------------------------------------------------------------


def test_the_digest_is_of_the_values_and_not_of_how_they_are_written(load):
    first = spec_digest(load("seed: 3\ncurriculum: {sft: {learning_rate: 0.001}}"))
    assert spec_digest(load("# a remark\ncurriculum: {sft: {learning_rate: 1e-3}}\nseed: 3\n")) == first
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert spec_digest(load("seed: 4\ncurriculum: {sft: {learning_rate: 0.001}}")) != first


def test_reading_a_spec_imports_nothing_heavy():
    program = "import sys, components.common.spec_file; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "ray", "mlflow", "pyarrow", "pandas"} & set(loaded)
