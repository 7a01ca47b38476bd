"""A model in a bucket that somebody else can write to."""

import json

import pytest

from components.common.errors import UserError
from components.common.models import model_folder


def upload(s3, model, prefix):
    for file in model.iterdir():
        if file.is_file():
            s3.upload_file(str(file), "bucket", f"{prefix}/{file.name}")


def test_pickles_and_code_of_a_bucket_are_not_fetched(s3, model, trap):
    (model / "pytorch_model.bin").write_bytes(trap.pickle)
    (model / "modeling_evil.py").write_text(trap.code)
    upload(s3, model, "mixed")
    s3.put_object(Bucket="bucket", Key="mixed/below/model.safetensors", Body=b"x")
    folder = model_folder("s3://bucket/mixed")
    assert (folder / "config.json").read_bytes() == (model / "config.json").read_bytes()
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".jinja"}
    assert not [path for path in folder.iterdir() if path.is_dir()]


def test_a_bucket_of_pickles_alone_is_refused(s3, model, trap):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(trap.pickle)
    upload(s3, model, "pickled")
    with pytest.raises(UserError, match="no weights in safetensors"):
        model_folder("s3://bucket/pickled")


@pytest.mark.parametrize("name", ["../../escaped.json", "a/../../escaped.json", "/../escaped.json"])
def test_an_object_whose_name_leads_elsewhere_is_refused(s3, model, tmp_path, name):
    prefix = f"hostile-{abs(hash(name))}"
    upload(s3, model, prefix)
    s3.put_object(Bucket="bucket", Key=f"{prefix}/{name}", Body=b"{}")
    with pytest.raises(UserError, match="is no file's name"):
        model_folder(f"s3://bucket/{prefix}")
    assert not list(tmp_path.rglob("escaped*"))


def test_an_index_of_a_bucket_names_its_own_safetensors_only(s3, model):
    index = {"metadata": {}, "weight_map": {"a": "../../other/model.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    upload(s3, model, "indexed")
    with pytest.raises(UserError, match=r"the model's index .* is damaged"):
        model_folder("s3://bucket/indexed")
