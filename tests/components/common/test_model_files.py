"""What a model's folder may hold: JSON, indexes, adapters, and what libraries say of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from components.common.adapters import STACK, read_stack
from components.common.errors import Damaged, UserError
from components.common.model_files import header_length, unusable
from components.common.model_shape import model_shape
from components.common.models import model_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder("lab"), tmp_path / "model"))


def test_the_length_of_a_header_is_its_first_eight_bytes():
    assert header_length(b"\x02\x01\0\0\0\0\0\0", 8 + 258) == 258
    assert header_length(b"", 8) == 0


@pytest.mark.parametrize(
    ("length", "size", "said"),
    [(3, 10, "than the file"), (100_000_001, 1 << 40, "than safetensors allows"), (100_000_000, 100_000_007, "file")],
)
def test_a_header_that_cannot_be_so_long_is_refused(length, size, said):
    with pytest.raises(ValueError, match=f"the header is longer .*{said}"):
        header_length(length.to_bytes(8, "little"), size)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), UserError("ours"), StopIteration()])
def test_what_is_not_about_the_files_goes_on(error):
    with pytest.raises(type(error)) as caught, unusable("it cannot be loaded", "mend it"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Exception("data did not match"), "data did not match"),
        (TypeError(), "TypeError()"),
        (OSError("first\nsecond"), "first"),
        (ValueError("\nValidation error for 'a':\n   it is a list\nmore"), "Validation error for 'a': it is a list"),
        (ValueError("x" * 1000), "x" * 300),
    ],
)
def test_what_a_library_says_becomes_one_line(error, said):
    with pytest.raises(UserError) as caught, unusable("it cannot be loaded", "mend it"):
        raise error
    assert (caught.value.message, caught.value.remedy) == (f"it cannot be loaded: {said}", "mend it")


def test_a_model_of_the_hub_with_an_adapter_is_refused(folder, monkeypatch):
    (folder / "adapter_config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
    with pytest.raises(UserError, match=r"has an adapter \(adapter_config\.json\) beside its weights"):
        model_folder("some/model")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"weight_map": {"a": 5}}', '{"weight_map": []}', "{}", "{"])
def test_a_damaged_index_in_the_hub_s_cache_is_said(folder, monkeypatch, text):
    (folder / "model.safetensors.index.json").write_text(text)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
    with pytest.raises(UserError, match=r"the model's index .* is damaged"):
        model_folder("some/model")


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "5", '{"merged": 5, "active": null}', '{"merged": [[]]}'])
def test_a_stack_of_adapters_of_another_form_is_damaged(folder, text):
    (folder / STACK).write_text(text)
    with pytest.raises(Damaged, match=r"adapters\.json is damaged"):
        read_stack(folder)


def test_a_scalar_tensor_has_no_vocabulary(folder):
    header = json.dumps({"a": {"shape": []}, "b.weight": {"shape": [7, 3]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    config = json.loads((folder / "config.json").read_text())
    del config["vocab_size"]
    (folder / "config.json").write_text(json.dumps(config))
    shape = model_shape(folder)
    assert shape is not None
    assert (shape.vocabulary, shape.parameters) == (7, 22)
