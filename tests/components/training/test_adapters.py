"""Adapters: that what is evaluated is what was trained, and that they know the model that they belong to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from components.common.adapters import Stack, merge, read_stack
from components.common.errors import UserError
from components.common.models import load_model, load_weights, model_digest, model_folder
from components.common.spec import ModelSpec, Spec
from components.training.adapters import save_trained, trainable
from pipelines.alone import evaluate_alone
from pipelines.planning import check_inputs

LAB = model_folder("lab")
HALF = ModelSpec.model_validate({"path": "lab", "dtype": "bfloat16", "adapter": {"rank": 4, "alpha": 8}})
IDS = torch.arange(5, 45).unsqueeze(0)


def job(how: str = "continue") -> dict[str, Any]:
    return {"plan": {"settings": {"adapter": how}}, "gpus_per_worker": 0}


def leave(out: Path, parent: Path, how: str = "continue", spec: ModelSpec = HALF) -> Path:
    """What a phase leaves whose adapter went some way in a seeded direction."""
    model = trainable(parent, spec, job(how))
    torch.manual_seed(len(out.name))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.02)
    out.mkdir()
    save_trained(model, out, spec, parent, how)
    for file in LAB.glob("token*"):
        shutil.copy(file, out)
    return out


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Path(shutil.copytree(LAB, tmp_path / "base"))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


@pytest.mark.parametrize("how", ["continue", "merge"])
def test_what_is_evaluated_is_what_was_trained(tmp_path, how):
    """In bfloat16: the adapter's float32 weights are not rounded into the base model's."""
    first = leave(tmp_path / "first", LAB)
    second = leave(tmp_path / "second", first, how)
    assert len(read_stack(second).merged) == (how == "merge")
    evaluated, trained = load_model(second, HALF), trainable(second, HALF, job()).eval()
    assert torch.equal(logits(evaluated), logits(trained))
    assert not torch.equal(logits(evaluated), logits(load_model(first, HALF)))


def test_adapters_are_merged_in_float32_and_rounded_once(tmp_path):
    folder = leave(tmp_path / "first", LAB)
    folder = leave(tmp_path / "second", folder, "merge")
    folder = leave(tmp_path / "the third", folder, "merge")
    stack = read_stack(folder)
    assert len(stack.merged) == 2
    found = merge(load_weights(LAB, HALF), folder, stack.merged)
    weights = dict(found.named_parameters())
    before = dict(load_weights(LAB, HALF).named_parameters())
    adapters = [load_file(folder / name / "adapter_model.safetensors") for name in stack.merged]
    changed = 0
    for name, weight in weights.items():
        total = before[name].double()
        part = f"base_model.model.{name.removesuffix('.weight')}"
        for adapter in adapters:
            if f"{part}.lora_A.weight" in adapter:
                down, up = (adapter[f"{part}.lora_{side}.weight"].double() for side in "AB")
                total = total + 2.0 * up @ down  # alpha / rank
                changed += 1
        expected = total.to(torch.bfloat16)
        # Float32 sums may fall on the other side of a tie now and then.
        assert (weight != expected).double().mean() < 1e-3, name
    assert changed > 10
    assert not any("lora" in name for name in weights)


def test_an_adapter_that_is_no_number_is_not_merged(tmp_path):
    folder = leave(tmp_path / "first", LAB)
    file = folder / "adapter-0" / "adapter_model.safetensors"
    tensors = load_file(file)
    next(tensor for name, tensor in tensors.items() if "lora_B" in name).fill_(float("nan"))
    save_file(tensors, file)
    with pytest.raises(UserError, match="weights that are no numbers"):
        merge(load_weights(LAB, HALF), folder, ("adapter-0",))


def test_a_stack_says_which_base_it_belongs_to(tmp_path, base):
    named = read_stack(leave(tmp_path / "named", LAB))
    assert named == Stack((), "adapter-0", model_digest("lab"), "lab")
    own = HALF.model_copy(update={"path": str(base)})
    first = leave(tmp_path / "first", base, spec=own)
    assert read_stack(leave(tmp_path / "on", first, spec=own)) == Stack((), "adapter-0", model_digest("lab"), None)
    assert str(tmp_path) not in (first / "adapters.json").read_text()


@pytest.mark.parametrize("load", [load_model, lambda folder, spec: trainable(folder, spec, job())])
def test_adapters_are_not_laid_on_another_base_of_the_same_shape(tmp_path, base, load):
    folder = leave(tmp_path / "first", LAB)
    load(folder, HALF.model_copy(update={"path": str(base)}))  # the same files in another place
    weights = load_file(base / "model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in weights.items()}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"were trained on another base model than .*base"):
        load(folder, HALF.model_copy(update={"path": str(base)}))
    stack = json.loads((folder / "adapters.json").read_text())
    (folder / "adapters.json").write_text(json.dumps({**stack, "base": None}))
    with pytest.raises(UserError, match="do not say whether they were trained on lab"):
        load(folder, HALF)


def checked(path: str) -> None:
    data = {"train": [{"path": "lab://instructions?count=8"}]}
    check_inputs(Spec.model_validate({"name": "on", "data": data, "model": {"path": path}}))


@pytest.mark.parametrize("use", [model_digest, lambda path: load_model(Path(path), ModelSpec(path=path)), checked])
def test_adapters_are_no_base_model(tmp_path, use):
    folder = leave(tmp_path / "first", LAB)
    with pytest.raises(UserError, match="holds adapters, and not the model that they were trained on"):
        use(str(folder))


class TestEvaluatedAlone:
    def measured(self, tmp_path: Path, model: Path | str, base: str | None = None) -> dict[str, float]:
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        console, settings = Console(quiet=True), {"max_new_tokens": 4}
        evaluate_alone(["lab://instructions?count=8"], str(model), settings, 3, out, console, base)
        metrics: dict[str, float] = json.loads((out / "metrics.json").read_text())["metrics"]
        return metrics

    def test_adapters_find_a_base_that_has_a_name(self, tmp_path):
        folder = leave(tmp_path / "first", LAB)
        name = "loss.nats_per_token"
        assert self.measured(tmp_path, folder)[name] != self.measured(tmp_path, "lab")[name]
        with pytest.raises(UserError, match="lab is whole"):
            self.measured(tmp_path, "lab", "lab")

    def test_adapters_on_a_folder_ask_for_it(self, tmp_path, base):
        folder = leave(tmp_path / "first", base, spec=HALF.model_copy(update={"path": str(base)}))
        with pytest.raises(UserError, match="they do not say where the model is") as refused:
            self.measured(tmp_path, folder)
        assert "--base" in refused.value.remedy
        assert self.measured(tmp_path, folder, str(base)) == self.measured(tmp_path, folder, "lab")
