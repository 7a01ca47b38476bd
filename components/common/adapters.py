"""Adapters: the folder that a LoRA phase leaves, and the model that it stands for.

Such a folder holds no weights of the base model but a stack of adapters: `adapters.json` names those that are merged
into the base, in order, and the active one on top. The stack makes the folder whole: it needs no earlier phase. It
needs the base model, which it names by the digest of its files.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.common.errors import Damaged, UserError
from components.common.model_files import ADAPTER, unusable
from components.common.names import plain_name
from components.common.objects_json import json_object

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STACK = "adapters.json"


@dataclass(frozen=True, slots=True)
class Stack:
    """The adapters of a folder, by the names of their subfolders.

    Attributes:
        merged: Those merged into the base model, in order.
        active: The one on top; None where there is none yet.
        base: Digest of the base model that they were trained on; None where there is none, or nobody wrote it down.
        base_name: The base model's name where it means the same everywhere: `lab` or a hub id. None for a folder.
    """

    merged: tuple[str, ...] = ()
    active: str | None = None
    base: str | None = None
    base_name: str | None = None


def read_stack(folder: Path) -> Stack:
    """The stack of a phase's folder; empty for the folder of a base model.

    Raises:
        Damaged: If it is none, or names anything but subfolders.
    """
    file = folder / STACK
    if not file.is_file():
        return Stack()
    try:
        value = json_object(file.read_bytes())
        merged = tuple(plain_name(name) for name in value["merged"])
        active = None if value["active"] is None else plain_name(value["active"])
        return Stack(merged, active, value.get("base"), value.get("base_name"))
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{file} is damaged: {error!r}", f"delete {folder}; it is made again") from error


def write_stack(folder: Path, stack: Stack, source: Path) -> None:
    """Write a stack into a folder, with copies of its merged adapters from another."""
    for name in stack.merged:
        shutil.copytree(source / name, folder / name)
    (folder / STACK).write_text(json.dumps(asdict(stack), sort_keys=True), encoding="utf-8")


def merge(model: PreTrainedModel, folder: Path, names: tuple[str, ...]) -> PreTrainedModel:
    """The model with adapters merged into its weights: summed in float32, and rounded to the weights' type once.

    Raises:
        UserError: If an adapter does not fit the model, or makes weights that are no numbers.
    """
    if not names:
        return model
    import torch
    from peft.tuners.lora import LoraLayer

    stacked: Any = model
    for name in names:
        stacked = with_adapter(stacked, folder / name, trained=False, name=name)
    for layer in stacked.modules():
        if isinstance(layer, LoraLayer):
            weight = layer.get_base_layer().weight
            total = weight.data.float()
            for name in names:
                if name in layer.scaling:
                    total = total + layer.get_delta_weight(name).float()
            if not torch.isfinite(total).all():
                raise UserError(f"the adapters in {folder} make weights that are no numbers", "train their phase again")
            weight.data = total.to(weight.dtype)
    merged: PreTrainedModel = stacked.unload()
    return merged


def with_adapter(model: Any, folder: Path, trained: bool, name: str = "default") -> Any:
    """The model with an adapter on top, or beside those that it has.

    Raises:
        UserError: If the adapter does not fit the model.
    """
    from peft import PeftModel

    if not (folder / "adapter_model.safetensors").is_file():
        raise UserError(f"the adapter in {folder} has no safetensors", "save it with `save_pretrained`")
    with unusable(
        f"the adapter in {folder} does not fit the model",
        "adapters belong to the base model that they were trained on: see `model.path`",
    ):
        # Other kinds of adapters load further models and tokenizers, which their configuration names.
        kind = json_object((folder / ADAPTER).read_bytes()).get("peft_type")
        if kind != "LORA":
            raise ValueError(f"its peft_type is {kind!r}, and only LORA can be used")
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), name, is_trainable=trained, local_files_only=True)
            return model
        return PeftModel.from_pretrained(model, folder, name, is_trainable=trained, local_files_only=True)
