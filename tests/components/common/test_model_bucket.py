"""Models in S3, on a real server: what is fetched, what is not, and what changes the digest."""

from __future__ import annotations

import subprocess
import sys

import pytest

from components.common import model_bucket
from components.common.errors import UserError
from components.common.models import load_tokenizer, model_digest, model_folder, model_headers
from components.common.objects_s3 import S3Objects

LAB = model_folder("lab")


@pytest.fixture(autouse=True)
def _asked_anew():
    """What was listed is forgotten: tests change buckets, processes of the product do not."""
    model_bucket._listed.cache_clear()


def upload(place: str, **more: bytes) -> str:
    """The lab's model in S3, with further objects; returns its path."""
    objects = S3Objects(place)
    for file in LAB.iterdir():
        if file.is_file():
            objects.write(f"model/{file.name}", file.read_bytes())
    for name, data in more.items():
        objects.write(f"model/{name}", data)
    return f"{place}/model"


def test_only_what_a_model_needs_is_fetched(s3_place, cache):
    path = upload(s3_place, **{"pytorch_model.bin": b"x", "code.py": b"x", "original/consolidated.safetensors": b"x"})
    folder = model_folder(path)
    wanted = {file.name: file.read_bytes() for file in LAB.iterdir() if file.suffix in (".json", ".safetensors")}
    found = {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in (".json", ".safetensors")}
    assert found == wanted
    assert not {"pytorch_model.bin", "code.py", "original"} & {file.name for file in folder.iterdir()}
    assert folder.is_relative_to(cache)
    assert load_tokenizer(folder)("7 + 5")["input_ids"] == load_tokenizer(LAB)("7 + 5")["input_ids"]


def test_a_key_needs_no_copy_and_changes_with_the_content(s3_place, cache):
    path = upload(s3_place)
    before = model_digest(path)
    assert not (cache / "models").exists()
    assert model_digest(path + "/") == before
    upload(s3_place, **{"config.json": (LAB / "config.json").read_bytes() + b"\n"})
    model_bucket._listed.cache_clear()
    assert model_digest(path) != before


def test_several_processes_fetch_it_once(s3_place, cache):
    path = upload(s3_place)
    code = f"from components.common.models import model_folder\nprint(model_folder({path!r}))"
    run = [sys.executable, "-c", code]
    processes = [subprocess.Popen(run, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outs = {process.communicate(timeout=100)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(outs) == 1
    [folder] = [item for item in (cache / "models").iterdir() if item.is_dir()]
    assert str(folder) == outs.pop().strip()


def test_a_model_that_changes_while_it_is_read_is_no_model(s3_place, cache):
    path = upload(s3_place)
    marks = model_bucket.listed(path, ("*.json", "*.safetensors"))
    upload(s3_place, **{"config.json": (LAB / "config.json").read_bytes() + b"\n"})
    with pytest.raises(UserError, match="is changed while it is read"):
        model_bucket.fetched(path, marks)
    assert [item.name for item in (cache / "models").iterdir() if item.is_dir()] == []


@pytest.mark.parametrize(
    ("name", "said"),
    [("..", "no file's name"), ("../config.json", "no file's name"), ("a/../b.json", "no file's name")],
)
def test_a_name_that_leads_elsewhere_is_refused(s3_place, monkeypatch, cache, name, said):
    path = upload(s3_place)
    listed = list(S3Objects(s3_place).list("model"))
    evil = [*listed, type(listed[0])(f"model/{name}", 1, 0.0)]
    # A server that normalises names would not even keep such an object; what it lists is not ours to trust.
    monkeypatch.setattr(S3Objects, "list", lambda self, prefix: iter(evil))
    with pytest.raises(UserError, match=said):
        model_bucket.listed(path, ("*.json", ".."))


def test_what_is_no_model_is_said_plainly(s3_place, cache):
    with pytest.raises(UserError, match=r"no config\.json"):
        model_folder(f"{s3_place}/nothing")
    with pytest.raises(UserError, match="names a bucket alone"):
        model_folder("s3://bucket")
    S3Objects(s3_place).write("bare/config.json", b"{}")
    with pytest.raises(UserError, match="no weights in safetensors"):
        model_digest(f"{s3_place}/bare")
    S3Objects(s3_place).write("adapters/config.json", b"{}")
    S3Objects(s3_place).write("adapters/adapters.json", b"{}")
    with pytest.raises(UserError, match="holds adapters"):
        model_folder(f"{s3_place}/adapters")


def test_an_adapter_beside_the_weights_is_refused_before_anything_is_fetched(s3_place, cache):
    path = upload(s3_place, **{"adapter_config.json": b"{}"})
    for read in (model_folder, model_digest, model_headers):
        with pytest.raises(UserError, match=r"has an adapter \(adapter_config\.json\) beside its weights"):
            read(path)
    assert not (cache / "models").exists()


@pytest.mark.parametrize("length", [3 << 30, 16])
def test_a_header_longer_than_it_can_be_is_refused(s3_place, cache, length):
    path = upload(s3_place, **{"model.safetensors": length.to_bytes(8, "little") + b"{}"})
    with pytest.raises(UserError, match="is not a safetensors file: the header is longer than"):
        model_headers(path)
