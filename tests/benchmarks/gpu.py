"""A phase's training step on a GPU: peak memory beside the estimate, tokens per second, and MFU.

`python tests/benchmarks/gpu.py [NAME ...]` measures the models of these names, or all. Weights are random; those of the
large models are made on the GPU, and their folders hold shapes only. Trained is as a phase trains: TRL's trainer in the
promised order, one worker, the deterministic algorithms included. Not in it are Ray, checkpoints and reading the data.

MFU counts 6 operations for each parameter and token where all weights are trained, and 4 under an adapter, whose frozen
weights get no gradient (Kaplan et al., arXiv 2001.08361, section 2.1: 2 forward, 2 for the inputs' gradients, 2 for the
weights'). Input embeddings are not counted, nor is attention's own product, nor what checkpointing computes twice.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
PEAK = 989e12
"""Dense bfloat16 operations per second of an H100 (SXM) by its datasheet; of other devices the MFU means nothing."""
STEPS = 6
BF16 = {"dtype": "bfloat16"}
LORA = {"adapter": {"rank": 16}}
NF4 = {"adapter": {"rank": 16, "quantize": "nf4"}}
CHECKPOINTING = {"gradient_checkpointing": True}

SMALL: tuple[tuple[str, int, int, bool, dict[str, Any]], ...] = (
    ("42M", 32, 512, False, {}),
    ("42M", 32, 512, True, {}),
    ("42M", 32, 512, True, {"settings": {"batching": "packed"}}),
    ("42M", 32, 512, False, {"model": BF16}),
    ("42M", 32, 512, True, {"model": BF16}),
    ("42M", 32, 512, False, {"compute": CHECKPOINTING}),
    ("42M", 64, 512, False, {"model": BF16, "compute": CHECKPOINTING}),
    ("42M", 32, 512, False, {"settings": {"micro_batch_size": 8}}),
    ("42M", 32, 512, False, {"model": LORA}),
    ("42M", 32, 512, False, {"model": {**LORA, **BF16}}),
    ("42M", 64, 512, False, {"model": {**LORA, **BF16}, "compute": CHECKPOINTING}),
    ("42M", 32, 512, False, {"model": {**NF4, **BF16}}),
    ("42M", 16, 512, True, {"method": "dpo"}),
    ("42M", 16, 512, True, {"method": "dpo", "model": BF16}),
    ("42M", 16, 512, True, {"method": "dpo", "model": LORA}),
    ("27M, 2 kv heads", 32, 512, False, {}),
    ("27M, 2 kv heads", 32, 512, True, {}),
    ("27M, 2 kv heads", 32, 512, False, {"model": BF16}),
    ("27M, 2 kv heads", 32, 512, True, {"settings": {"batching": "packed"}, "model": BF16}),
    ("27M, 2 kv heads", 32, 512, True, {"model": {"attention": "eager", **BF16}}),
    ("27M, 2 kv heads", 32, 512, True, {"model": {**LORA, **BF16}}),
)
LARGE: tuple[tuple[str, int, int, bool, dict[str, Any]], ...] = (
    ("1B", 8, 2048, False, {"model": BF16}),
    ("1B", 8, 2048, True, {"model": BF16}),
    ("1B", 16, 2048, False, {"model": BF16, "compute": CHECKPOINTING}),
    ("1B", 8, 2048, False, {"model": BF16, "compute": {"liger": True}}),
    ("1B", 2, 2048, False, {}),
    ("8B", 2, 2048, False, {"model": {**LORA, **BF16}}),
    ("8B", 8, 2048, False, {"model": {**LORA, **BF16}, "compute": CHECKPOINTING}),
    ("8B", 8, 2048, True, {"model": {**LORA, **BF16}, "compute": CHECKPOINTING}),
    ("8B", 16, 2048, False, {"model": {**LORA, **BF16}, "compute": CHECKPOINTING}),
)
"""Model, examples of a step, tokens of the longest, uneven lengths, what else; as `CASES` of `live_memory`."""
SHAPES: dict[str, dict[str, Any]] = {
    "42M": {},
    "27M, 2 kv heads": {"num_key_value_heads": 2, "vocab_size": 4096},
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "tie_word_embeddings": True},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
}
"""The large ones are Llama 3.2 1B and Llama 3.1 8B."""
LLAMA3 = {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192}


def shape_only(folder: Path, **shape: Any) -> Path:
    """A folder that says what shape a Llama has, and holds the header of its weights without the weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from components.common.models import load_tokenizer, model_folder

    config = LlamaConfig(**LLAMA3, **shape)
    with torch.device("meta"):
        tensors = LlamaForCausalLM(config).state_dict()
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    about = {name: {"dtype": "BF16", "shape": list(one.shape), "data_offsets": [0, 0]} for name, one in tensors.items()}
    header = json.dumps(about).encode()
    config.save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    load_tokenizer(model_folder("lab")).save_pretrained(folder)
    return folder


@contextmanager
def weights_made_on_the_gpu() -> Iterator[None]:
    """Inside, a phase gets random weights instead of those that a folder holds, unless they are to be quantized."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from components.common.models import load_weights

    def made(folder: Path, spec: Any, *more: Any, **named: Any) -> Any:
        if spec.adapter is not None and spec.adapter.quantize != "none":
            return load_weights(folder, spec, *more, **named)
        with torch.device("cuda"):
            return AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(folder),
                dtype=getattr(torch, spec.dtype),
                attn_implementation=spec.attention,
            )

    with (
        patch("components.training.adapters.load_weights", made),
        patch("components.training.adapters.load_model", made),
    ):
        yield


def operations(folder: Path, more: dict[str, Any]) -> int:
    """Operations for a token that training needs, see above."""
    from components.common.model_shape import model_shape

    shape = model_shape(folder)
    assert shape is not None
    counted = shape.parameters - (shape.embedding if shape.head else 0)
    return (4 if "adapter" in more.get("model", {}) else 6) * counted


def line(folder: Path, case: tuple[str, int, int, bool, dict[str, Any]]) -> str:
    """A case's row of the table, from its third column on."""
    import torch

    from tests.components.live_memory import compared

    _, _, length, uneven, more = case
    for package, asked in (("bitsandbytes", "nf4"), ("liger_kernel", "liger")):
        if asked in str(more) and importlib.util.find_spec(package) is None:
            return f"{asked}: {package} is not installed | | | | | |"
    gc.collect()
    torch.cuda.empty_cache()
    on_gpu = {**more, "compute": {**more.get("compute", {}), "gpus_per_worker": 1}}
    try:
        one = compared(folder, case[1], length, uneven, on_gpu, STEPS)
    except torch.OutOfMemoryError:
        return "out of memory | | | | | |"
    held = (one.seen["static"] + one.seen["step"]) / 1e9
    # Of uneven lengths one example in two has three quarters.
    tokens = case[1] * (2 if more.get("method") == "dpo" else 1) * length * (0.875 if uneven else 1)
    rate = tokens / one.seen["seconds"]
    mfu = f"{operations(folder, more) * rate / PEAK:.1%}" if more.get("model", {}).get("dtype") == "bfloat16" else ""
    told = one.told.replace(", gpus_per_worker 1", "").replace("gpus_per_worker 1", "")
    return f"{told} | {held:.2f} | {one.found.device / 1e9:.2f} | {one.whole:.3f} | {rate:,.0f} | {mfu} |"


def main() -> None:
    """Print the table, or that there is no GPU."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help="models; all where none is named")
    wanted = parser.parse_args().names or list(SHAPES)
    import torch

    if not torch.cuda.is_available():
        print("no CUDA device: not measured")
        return
    sys.path.insert(0, str(ROOT))
    from components.common.reproducible import set_reproducible
    from tests.components.live_memory import llama

    set_reproducible(4, 1)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print("| model | examples x tokens | setting | held, GB | estimate, GB | ratio | tokens/s | MFU |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as scratch:
        for name in wanted:
            large = any(case[0] == name for case in LARGE)
            folder = (shape_only if large else llama)(Path(scratch) / name, **SHAPES[name])
            with weights_made_on_the_gpu():
                for case in [one for one in (*SMALL, *LARGE) if one[0] == name]:
                    print(f"| {name} | {case[1]} x {case[2]} | {line(folder, case)}", flush=True)


if __name__ == "__main__":
    main()
