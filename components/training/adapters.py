"""The model that a phase trains: every weight, or an adapter on frozen ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from components.common.adapters import Stack, merge, read_stack, with_adapter, write_stack
from components.common.errors import UserError
from components.common.models import base_folder, base_of, load_model, load_weights, model_digest
from components.common.spec import AdapterSpec, ModelSpec


def trainable(folder: Path, spec: ModelSpec, job: dict[str, Any]) -> Any:
    """The model of a folder, ready to be trained.

    Mixed precision keeps trained weights in float32; frozen ones have the spec's type.

    Args:
        folder: What the parent left, or the base model.
        spec: The model's part of the spec.
        job: Of the phase, see `fit`; says whether its adapter continues the parent's.

    Raises:
        UserError: If the parent's adapters were trained on another base model.
    """
    if spec.adapter is None:
        return load_model(folder, spec.model_copy(update={"dtype": "float32"})).train()
    stack, how = read_stack(folder), job["plan"]["settings"]["adapter"]
    merged = _merged(stack, how)
    base = base_of(folder, spec.path)
    model = merge(load_weights(base, spec, quantize=bool(job["gpus_per_worker"])), folder, merged)
    if spec.adapter.quantize != "none":
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=job["compute"]["gradient_checkpointing"]
        )
    if how == "continue" and stack.active is not None:
        found = with_adapter(model, folder / stack.active, trained=True)
    else:
        from peft import get_peft_model

        found = get_peft_model(model, _lora(spec.adapter))
    return found.train()


def _merged(stack: Stack, how: str) -> tuple[str, ...]:
    return (*stack.merged, stack.active) if how == "merge" and stack.active is not None else stack.merged


def _lora(adapter: AdapterSpec) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # peft says int, and only divides by the rank
        lora_dropout=adapter.dropout,
        target_modules=adapter.target_modules or "all-linear",
        task_type="CAUSAL_LM",
    )


def refuse_head_adapter(model: Any) -> None:
    """Refuse an adapter on the output layer where a trainer reads that layer's weight itself, past the adapter.

    Raises:
        UserError: If the model has one.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        raise UserError(
            "the adapter covers the model's output layer, which dpo and grpo phases cannot train",
            "take the output layer (`lm_head`) out of `model.adapter.target_modules`",
        )


def save_trained(
    model: Any, out: Path, spec: ModelSpec, parent: Path, how: str, whole: dict[str, Any] | None = None
) -> None:
    """Write what the phase trained: a folder that `load_model` reads, in the spec's type.

    Args:
        model: The trained model, unwrapped.
        out: An empty folder.
        spec: The model's part of the spec.
        parent: The folder that the phase started from.
        how: The phase's setting `adapter`.
        whole: The weights, where the model is spread over workers.
    """
    import torch

    if spec.adapter is None:
        model.config.use_cache = True
        dtype = getattr(torch, spec.dtype)
        if whole is None:
            model.to(dtype).save_pretrained(out, safe_serialization=True)
        else:
            tensors = {name: tensor.to(dtype) for name, tensor in whole.items()}
            model.save_pretrained(out, state_dict=tensors, safe_serialization=True)
        return
    before = read_stack(parent)
    merged, named = _merged(before, how), spec.path if not Path(spec.path).is_dir() else None
    # A parent's base was compared when the phase began.
    stack = Stack(merged, f"adapter-{len(merged)}", before.base or model_digest(spec.path), named)
    write_stack(out, stack, parent)
    active = out / str(stack.active)
    # Only this one: what a reference is compared with is an adapter too while the phase trains.
    model.save_pretrained(active, state_dict=whole, safe_serialization=True, selected_adapters=["default"])
    (active / "README.md").unlink(missing_ok=True)  # a form to fill in
    config = active / "adapter_config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    values["base_model_name_or_path"] = ""  # a place on this machine; the spec names the base model
    config.write_text(json.dumps(values, indent=1, sort_keys=True), encoding="utf-8")
    for name in ("config.json", "generation_config.json"):
        if (base_folder(spec.path) / name).is_file():
            shutil.copy(base_folder(spec.path) / name, out / name)
