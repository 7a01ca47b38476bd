"""What the user gets wrong: one clear message with its remedy, the exit code, and nothing taken for a result."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

WORDS = "one two three four five six seven eight nine ten"


@pytest.fixture
def fails(place):
    """Runs `phasetune`, which must end with this code and one message; returns the message and its remedy."""

    def run(*arguments, code=1, **variables) -> str:
        ended = place.run(*arguments, code=code, **variables)
        assert [
            line.split(":")[0] for line in ended.stderr.splitlines() if re.match("error:|remedy:|warning:", line)
        ] == [
            "error",
            "remedy",
        ]
        assert ended.stderr.startswith("error: ")
        assert "Traceback" not in ended.stdout + ended.stderr
        return ended.stderr

    return run


@pytest.fixture
def nothing_made(place):
    """Nothing of these kinds is in the store, and nothing half-written is left."""

    def check(*kinds: str) -> None:
        assert not [entry for entry in place.entries() if entry.split("/")[0] in kinds]
        assert not list((place.folder / "runs" / "store").glob(".staging/*"))
        assert not (place.folder / "runs" / "small" / "report.html").exists()
        assert not (place.folder / "runs" / "small" / "summary.json").exists()

    return check


def with_data(*train: object, **data: object) -> dict[str, object]:
    return {"data": {"train": [{"path": str(item)} for item in train], **data}, "tracking": {"enabled": False}}


def alpaca(path: Path, rows: int, bad: int = 0, words: int = 3) -> Path:
    """A JSONL file of Alpaca rows, the first of them without an output."""
    good = [{"instruction": f"{number} {WORDS[:words]}", "output": f"answer {number}"} for number in range(rows - bad)]
    lines = [json.dumps(row) for row in [{"instruction": "no output"}] * bad + good]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_misspelt_key(place, fails):
    said = fails("run", place.spec({"curriculm": {"order": "ascending"}}), code=2)
    assert "curriculm: unknown key; did you mean `curriculum`?" in said


def test_a_value_that_is_not_allowed(place, fails):
    said = fails("validate", place.spec(), "--set", "splitting.cut=quantile", code=2)
    assert "splitting.cut: 'quantile' is not allowed" in said
    assert "did you mean 'quantiles'?" in said


def test_no_spec(place, fails):
    place.spec()
    assert "there is no spec at smal.yaml" in fails("run", "smal.yaml", code=2)
    assert "did you mean small.yaml?" in fails("run", "smal.yaml", code=2)


def test_no_data_file(place, fails, nothing_made):
    said = fails("run", place.spec(with_data("absent.jsonl")))
    assert str(place.folder / "absent.jsonl") in said
    nothing_made("prepared")


def test_a_folder_without_data(place, fails):
    (place.folder / "empty").mkdir()
    said = fails("validate", place.spec(with_data("empty")))
    assert str(place.folder / "empty") in said
    assert ".jsonl" in said


def test_too_many_unreadable_rows(place, fails, nothing_made):
    data = alpaca(place.folder / "rows.jsonl", rows=40, bad=10)
    said = fails("run", place.spec(with_data(data)))
    assert "malformed" in said
    assert "max_rejected" in said
    nothing_made("prepared")


def test_a_file_that_is_not_json(place, fails, nothing_made):
    (place.folder / "rows.jsonl").write_bytes(b"\x00\xff not json\n" * 50)
    assert "rows.jsonl" in fails("run", place.spec(with_data("rows.jsonl")))
    nothing_made("prepared")


def test_an_empty_dataset(place, fails, nothing_made):
    (place.folder / "rows.jsonl").write_text("")
    said = fails("run", place.spec(with_data("rows.jsonl")))
    assert "rows.jsonl" in said or "no example" in said
    nothing_made("prepared")


def test_a_tier_without_an_example(place, fails, nothing_made):
    splitting = {"tiers": 3, "cut": "thresholds", "thresholds": [2, 1000]}
    said = fails("run", place.spec({"splitting": splitting, "tracking": {"enabled": False}}))
    assert "tier 3" in said
    nothing_made("splits", "phases")


def test_a_prompt_longer_than_the_context(place, fails, nothing_made):
    data = alpaca(place.folder / "rows.jsonl", rows=40)
    with data.open("a") as out:
        out.write(json.dumps({"instruction": f"{WORDS} " * 200, "output": "too late"}) + "\n")
    said = fails("run", place.spec(with_data(data) | {"scoring": {"method": "length"}}))
    assert "prompt that fills the whole context of 256 tokens" in said
    assert "max_length" in said
    nothing_made("scores", "phases")


def test_a_column_that_is_not_there(place, fails, nothing_made):
    data = alpaca(place.folder / "rows.jsonl", rows=40)
    assert "difficulty" in fails("run", place.spec(with_data(data)))
    nothing_made("scores")


@pytest.fixture
def model_copy(place, lab_model):
    folder = place.folder / "model"
    shutil.copytree(lab_model, folder)
    return folder


def test_a_model_folder_without_weights(place, fails, model_copy):
    (model_copy / "model.safetensors").unlink()
    said = fails("run", place.spec({"model": {"path": "model"}}))
    assert f"the model folder {model_copy} has no weights in safetensors" in said
    assert not (place.folder / "runs").exists()


def test_a_model_folder_with_only_a_pickle(place, fails, model_copy):
    (model_copy / "model.safetensors").rename(model_copy / "pytorch_model.bin")
    said = fails("validate", place.spec({"model": {"path": "model"}}))
    assert "it has pytorch_model.bin, which is pickled and never loaded" in said


def test_damaged_weights(place, fails, model_copy, nothing_made):
    whole = (model_copy / "model.safetensors").read_bytes()
    (model_copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    said = fails("run", place.spec({"model": {"path": "model"}, "tracking": {"enabled": False}}))
    assert str(model_copy) in said
    nothing_made("phases", "evaluations")


@pytest.mark.timeout(60)  # that it ends at all; unguarded it would take minutes or never end
def test_an_unknown_hub_id_without_a_network(place, fails):
    said = fails("run", place.spec({"model": {"path": "nobody/nothing"}}))
    assert "the model 'nobody/nothing' is neither a folder nor to be had from the Hugging Face hub" in said


def test_a_model_folder_that_is_not_there(place, fails):
    assert "there is no folder" in fails("run", place.spec({"model": {"path": "./models/mine"}}), code=2)


def test_a_format_that_is_not_known(place, fails):
    data = alpaca(place.folder / "rows.jsonl", rows=4)
    said = fails("score", data, "--method", "length", "--format", "alpacca", "--out", "scores", code=2)
    assert "'alpacca' is not allowed" in said
    assert "did you mean 'alpaca'?" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ru"], "No such command 'ru'"),
        (["run"], "Missing argument 'SPEC'"),
        (["run", "small.yaml", "--sett", "a=1"], "No such option: --sett"),
        (["split", "absent.parquet", "--out", "x", "--tiers", "three"], "Invalid value for '--tiers'"),
        (["split", "absent.parquet", "--out", "x", "--cut", "halves"], "'halves' is not allowed"),
        (["train", "a.parquet", "--out", "x", "--set", "epochs=0"], "epochs"),
    ],
)
def test_a_wrong_command_line(fails, arguments, message):
    assert message in fails(*arguments, code=2)


@pytest.mark.parametrize(
    "arguments",
    [
        ["split", "absent.parquet", "--out", "x"],
        ["train", "absent.parquet", "--out", "x"],
        ["evaluate", "absent.parquet", "--out", "x"],
        ["score", "absent.parquet", "--method", "length", "--out", "x"],
        ["report", "absent"],
        ["ui", "absent"],
    ],
)
def test_a_file_that_is_not_there(place, fails, arguments):
    assert "absent" in fails(*arguments)
    assert not (place.folder / "x").exists()
    assert not list(place.folder.glob(".x-*"))


def test_debug_shows_the_traceback(place):
    ended = place.run("run", "absent.yaml", "--debug", code=2)
    assert "Traceback" in ended.stderr
    assert "error: there is no spec at absent.yaml" in ended.stderr


def test_a_store_that_cannot_be_written(place, fails):
    (place.folder / "file").write_text("")
    said = fails("run", place.spec({"store": "file/store", "tracking": {"enabled": False}}))
    assert str(place.folder / "file") in said


@pytest.fixture
def small_disk(place):
    """A disk that two phases fit on, and the third does not."""
    folder = place.folder / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk can be mounted only by a privileged user")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(place, fails, small_disk):
    spec = place.spec({"store": "disk/store", "tracking": {"enabled": False}})
    said = fails("run", spec)
    assert "full" in said
    assert "free some space" in said
    store = small_disk / "store"
    made = {path.parent for path in store.glob("phases/*/manifest.json")}
    assert made == set(store.glob("phases/*"))
    assert not list(store.glob(".staging/*"))
    subprocess.run(["mount", "-o", "remount,size=256m", str(small_disk)], check=True)
    place.run("run", spec)
    assert {phase["key"] for phase in place.summary()["phases"] if phase["reused"]} == {path.name for path in made}
    assert 1 <= len(made) <= 2
