"""Adapters: the folder that a LoRA phase leaves, and the model that it stands for.

Such a folder holds no weights of the base model but a stack of adapters: `adapters.json` names those that are merged
into the base, in order, and the active one on top. The stack makes the folder whole: it needs no earlier phase.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.common.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STACK = "adapters.json"


@dataclass(frozen=True, slots=True)
class Stack:
    """The adapters of a folder, by the names of their subfolders.

    Attributes:
        merged: Those merged into the base model, in order.
        active: The one on top; None where there is none yet.
    """

    merged: tuple[str, ...] = ()
    active: str | None = None


def read_stack(folder: Path) -> Stack:
    """The stack of a phase's folder; empty for the folder of a base model."""
    file = folder / STACK
    if not file.is_file():
        return Stack()
    value = json.loads(file.read_text(encoding="utf-8"))
    return Stack(tuple(value["merged"]), value["active"])


def write_stack(folder: Path, stack: Stack, source: Path) -> None:
    """Write a stack into a folder, with copies of its merged adapters from another."""
    for name in stack.merged:
        shutil.copytree(source / name, folder / name)
    (folder / STACK).write_text(json.dumps(asdict(stack), sort_keys=True), encoding="utf-8")


def merge(model: PreTrainedModel, folder: Path, names: tuple[str, ...]) -> PreTrainedModel:
    """The model with adapters merged into its weights, one after another."""
    for name in names:
        model = with_adapter(model, folder / name, trained=False).merge_and_unload(safe_merge=True)
    return model


def with_adapter(model: PreTrainedModel, folder: Path, trained: bool) -> Any:
    """The model with an adapter on top.

    Raises:
        UserError: If the adapter does not fit the model.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    if not (folder / "adapter_model.safetensors").is_file():
        raise UserError(f"the adapter in {folder} has no safetensors", "save it with `save_pretrained`")
    try:
        return PeftModel.from_pretrained(model, folder, is_trainable=trained, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"the adapter in {folder} does not fit the model: {str(error).splitlines()[0]}",
            "adapters belong to the base model that they were trained on: see `model.path`",
        ) from None
