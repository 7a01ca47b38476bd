"""Values of secrets, looked for in everything that a run leaves behind and in everything that is sent to a cluster."""

from __future__ import annotations

import base64
import gzip
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import yaml

from components.common.errors import SpecError
from components.common.spec import Spec
from components.common.spec_file import load_spec
from pipelines.phased import compile_pipeline

CANARY = "canary-8f3b1d"
SECRET = {
    name: f"{CANARY}-{name.lower()}"
    for name in (
        "JUDGE_API_KEY",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "HF_TOKEN",
        "KFP_TOKEN",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "RAY_AUTH_TOKEN",
    )
}
"""As pods and users have them: the spec names the first, the libraries read the others."""
SPEC = {
    "name": "quiet",
    "model": {"path": "lab"},
    "data": {"train": [{"path": "lab://instructions?count=120", "name": "lab"}], "held_out": {"fraction": 0.25}},
    "scoring": {"method": "column"},
    "splitting": {"tiers": 1},
    "curriculum": {"sft": {"epochs": 1, "learning_rate": 2.0e-3, "batch_size": 16, "max_length": 256}},
    "controls": [],
    "evaluation": {"max_new_tokens": 8, "resamples": 200},
    "secrets": {"judge_api_key": {"secret": "judge", "key": "token"}},
}


def holds(data: bytes) -> bool:
    """Whether bytes hold the canary: as they are, or as base64 at any of its three offsets."""
    needles = [CANARY.encode(), *(base64.b64encode(b" " * shift + CANARY.encode())[4:-4] for shift in range(3))]
    return any(needle in data for needle in needles)


def leaks(folder: Path) -> list[str]:
    """The files below a folder, by name, whose name or content holds the canary, unpacked where they are packed."""
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data += gzip.decompress(data)
        if holds(data) or holds(str(path).encode()):
            found.append(str(path.relative_to(folder)))
    return found


@pytest.mark.parametrize("shift", range(6))
def test_the_search_finds_what_it_looks_for(tmp_path, shift):
    (tmp_path / "plain").write_text("x" * shift + CANARY)
    (tmp_path / "packed.gz").write_bytes(gzip.compress(CANARY.encode()))
    (tmp_path / "coded").write_bytes(base64.b64encode(b"x" * shift + CANARY.encode() + b"yyy"))
    (tmp_path / "nothing").write_bytes(zlib.compress(b"canary"))
    assert leaks(tmp_path) == ["coded", "packed.gz", "plain"]


@pytest.mark.proof
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_a_run_leaves_no_secret_behind(tmp_path, workers):
    """One worker trains in the step's process; two go through Ray, whose folder is looked through if it is left."""
    (tmp_path / "home").mkdir()
    (tmp_path / "tmp").mkdir()
    spec = {**SPEC, "compute": {"threads": 1, "workers": workers}}
    (tmp_path / "quiet.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    environment = {**os.environ, **SECRET, "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp")}
    environment["PHASETUNE_RAY_FOLDER"] = str(tmp_path / "r")
    command = [str(Path(sys.executable).with_name("phasetune")), "run", "quiet.yaml"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stderr
    (tmp_path / "screen").write_text(ended.stdout + ended.stderr)
    assert (tmp_path / "mlflow.db").stat().st_size > 0
    assert (tmp_path / "runs" / "quiet" / "report.html").is_file()
    assert list((tmp_path / "runs" / "store").rglob("model.safetensors"))
    assert leaks(tmp_path) == []


def test_a_compiled_pipeline_names_secrets_and_has_none(tmp_path, monkeypatch):
    for name, value in SECRET.items():
        monkeypatch.setenv(name, value)
    values = {
        **SPEC,
        "model": {"path": "org/model"},
        "tracking": {"uri": f"http://ann:{CANARY}@mlflow:5000"},
        "store": "s3://bucket/store",
    }
    compile_pipeline(Spec.model_validate(values), tmp_path / "pipeline.yaml", allow_local=False)
    assert leaks(tmp_path) == []
    text = (tmp_path / "pipeline.yaml").read_text()
    assert "JUDGE_API_KEY" in text and "judge" in text  # by name it is there


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("store", {"store": f"s3://ann:{CANARY}@bucket/store"}),
        ("model.path", {"model": {"path": f"s3://ann:{CANARY}@bucket/model"}}),
        ("scoring.model", {"scoring": {"method": "ifd", "model": f"https://ann:{CANARY}@hub/model"}}),
        ("data.train.0.path", {"data": {"train": [{"path": f"S3://ann:{CANARY}@bucket/a.jsonl"}]}}),
        ("tracking.uri", {"tracking": {"uri": f"http://mlflow:5000/?token={CANARY}"}}),
        ("environment.HF_TOKEN", {"compute": {"kubernetes": {"environment": {"HF_TOKEN": CANARY}}}}),
        ("environment.A_Password", {"compute": {"kubernetes": {"environment": {"A_Password": CANARY}}}}),
    ],
)
def test_a_spec_with_a_secret_in_it_is_refused_without_saying_it(tmp_path, key, change):
    (tmp_path / "quiet.yaml").write_text(yaml.safe_dump({**SPEC, **change}), encoding="utf-8")
    with pytest.raises(SpecError) as refused:
        load_spec(tmp_path / "quiet.yaml")
    assert key in str(refused.value)
    assert CANARY not in str(refused.value)


def test_plain_variables_of_pods_are_no_secrets():
    plain = {"AWS_ENDPOINT_URL": "http://s3:9000", "TOKENIZERS_PARALLELISM": "false", "HF_TOKEN_PATH": "/x/token"}
    Spec.model_validate({**SPEC, "compute": {"kubernetes": {"environment": plain}}})


@pytest.mark.parametrize("place", ["s3://bucket/rows.jsonl", "store"])
def test_an_address_with_a_password_is_not_said_where_it_fails(tmp_path, monkeypatch, place):
    """Libraries put the address that they were given into their errors."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://ann:{CANARY}@127.0.0.1:9")
    monkeypatch.setenv("PHASETUNE_S3_PATIENCE", "1")
    changed = {"store": "s3://bucket/store"} if place == "store" else {"data": {"train": [{"path": place}]}}
    (tmp_path / "quiet.yaml").write_text(yaml.safe_dump({**SPEC, **changed}), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("phasetune")), "run", "quiet.yaml"]
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_MAX_ATTEMPTS": "1"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 1
    assert "127.0.0.1:9" in ended.stderr
    (tmp_path / "screen").write_text(ended.stdout + ended.stderr)
    assert leaks(tmp_path) == []
