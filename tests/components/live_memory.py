"""What training really holds in memory, measured: for the tests of the estimate, and `docs/memory.md`.

`python tests/components/live_memory.py` prints that page's table for CPUs; `tests/benchmarks/gpu.py` the one for GPUs.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pyarrow as pa
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from components.common.curriculum import expand
from components.common.memory import Batch, Memory, estimate, rows_of
from components.common.model_shape import model_shape
from components.common.models import load_tokenizer, model_folder
from components.common.spec import ModelSpec, Spec
from components.training import preferences, tokens
from components.training.adapters import trainable
from components.training.batches import StepBatches, accumulation
from components.training.curve import Curve
from components.training.ordered import Conduct
from components.training.state import Progressed

SMALL = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}


def llama(folder: Path, **shape: int) -> Path:
    """A folder with a Llama of random weights in float32, whose tokenizer is the lab's."""
    config = LlamaConfig(**{**SMALL, "vocab_size": 16384, "max_position_embeddings": 4096, **shape})
    LlamaForCausalLM(config).save_pretrained(folder)
    load_tokenizer(model_folder("lab")).save_pretrained(folder)
    return folder


def spec_of(path: Path | str, rows: int, length: int, method: str = "sft", **more: Any) -> Spec:
    """A spec whose phase trains on batches of `rows` examples of `length` tokens."""
    data = {"tiers": [1]} if method == "sft" else {"data": [{"path": "lab://instructions"}]}
    batching = {"batching": "padded"} if method == "sft" else {}
    shared = {"batch_size": rows, "max_length": length, **batching, **more.pop("settings", {})}
    values = {
        "name": "memory",
        "data": {"train": [{"path": "lab://instructions"}]},
        "model": {"path": str(path), **more.pop("model", {})},
        "splitting": {"tiers": 1},
        "curriculum": {"phases": [{"method": method, **data}], method: shared},
        "controls": [],
        "compute": more.pop("compute", {}),
    }
    return Spec.model_validate(values)


class _Watched(TrainerCallback):
    """Profiles the memory of the second optimizer step."""

    def __init__(self) -> None:
        self.profile: Any = None
        self.events: list[tuple[int, int]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self.profile.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            self.profile.__exit__(None, None, None)
            kineto = self.profile.profiler.kineto_results
            self.events = [(one.start_ns(), one.nbytes()) for one in kineto.events() if one.name() == "[memory]"]

    @property
    def peak(self) -> int:
        """The greatest sum of what was allocated in the step and not yet freed, bytes."""
        live = most = 0
        for _, size in sorted(self.events, key=lambda one: one[0]):
            live += size
            most = max(most, live)
        return most


class _WatchedGpu(TrainerCallback):
    """Notes the most that is allocated on the GPU in the second optimizer step, and when each step ended."""

    def __init__(self) -> None:
        self.whole = 0
        self.ends: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        torch.cuda.synchronize()
        self.ends.append(time.perf_counter())
        if state.global_step == 2:
            self.whole = torch.cuda.max_memory_allocated()


def measured(spec: Spec, uneven: bool = False, steps: int = 2) -> dict[str, float]:
    """What the first phase of a spec holds and takes, on this CPU or, where the spec says so, on a GPU.

    The second step is looked at: the optimizer's state is there from the first one on.

    Args:
        spec: Of an sft or dpo phase.
        uneven: Whether one example in two has three quarters of the length.
        steps: Optimizer steps.

    Returns:
        Bytes: `weights`, `moments`, `static` (both), and `step`, the peak on top of them. Of a GPU also `seconds` of a
        step after the second.
    """
    plan = expand(spec, spec.seed)[0].phases[0]
    folder, settings = model_folder(spec.model.path), plan.settings
    method = importlib.import_module(f"components.training.{plan.method}")
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(None):
        place = Path(scratch)
        rows = steps * settings.batch_size
        lengths = [settings.max_length * 3 // 4 if uneven and row % 2 else settings.max_length for row in range(rows)]
        _write_examples(place / "data.arrow", plan.method, lengths)
        job: dict[str, Any] = {
            "plan": plan.to_json(),
            "model": str(folder),
            "model_spec": spec.model.model_dump(mode="json"),
            "compute": spec.compute.model_dump(mode="json"),
            "gpus_per_worker": spec.compute.gpus_per_worker,
            "training_seed": 1,
            "data": {
                "file": str(place / "data.arrow"),
                "rows": list(range(rows)),
                "lengths": lengths,
                "filler": rows,
            },
        }
        model = trainable(folder, ModelSpec.model_validate(job["model_spec"]), job)
        method.arrange(job, model)
        passes = accumulation(settings.batch_size, 1, settings.micro_batch_size)
        batches = StepBatches(job["data"]["rows"], settings.batch_size, 1, 0, passes, None)
        curve = Curve([], job["data"]["tokens_at"], lambda point: None)
        conduct = Conduct(batches, Progressed(), curve, None, None, 100, (0, steps), 0.0, 0, place, None)
        trainer = method.make_trainer(job, conduct, model, load_tokenizer(folder))
        watched = _WatchedGpu() if spec.compute.gpus_per_worker else _Watched()
        trainer.add_callback(watched)
        trainer.train()
        storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
        states = trainer.optimizer.state.values()
        moments = sum(v.nbytes for one in states for v in one.values() if isinstance(v, torch.Tensor) and v.ndim)
    weights = sum(storages.values())
    held: dict[str, float] = {"static": weights + moments, "weights": weights, "moments": moments}
    if isinstance(watched, _Watched):
        return {**held, "step": watched.peak}
    seconds = (watched.ends[-1] - watched.ends[1]) / max(1, steps - 2)
    return {**held, "step": watched.whole - weights - moments, "seconds": seconds}


def _write_examples(file: Path, method: str, lengths: list[int]) -> None:
    random = torch.Generator().manual_seed(0)
    ids = [torch.randint(5, 800, (length,), generator=random).tolist() for length in lengths]
    if method == "dpo":
        half = [len(one) // 2 for one in ids]
        rows = [
            {"prompt_ids": one[:cut], "chosen_ids": one[cut:], "rejected_ids": one[cut:][::-1]}
            for one, cut in zip(ids, half, strict=True)
        ]
        rows = [{**row, "ref_chosen_logps": -1.0, "ref_rejected_logps": -1.0} for row in [*rows, rows[0]]]
        schema = preferences._SCHEMA
    else:
        rows, schema = [{"input_ids": one, "labels": one} for one in ids], tokens._SCHEMA
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))


CASES: tuple[tuple[str, int, int, bool, dict[str, Any]], ...] = (
    ("lab", 8, 96, False, {}),
    ("lab", 32, 96, False, {}),
    ("lab", 16, 64, True, {"method": "dpo"}),
    ("42M", 4, 256, False, {}),
    ("42M", 4, 256, True, {}),
    ("42M", 2, 1024, False, {}),
    ("42M", 1, 64, False, {}),
    ("42M", 1, 64, False, {"settings": {"batch_size": 4, "micro_batch_size": 1}}),
    ("42M", 2, 1024, False, {"compute": {"gradient_checkpointing": True}}),
    ("42M", 4, 256, False, {"model": {"dtype": "bfloat16"}}),
    ("42M", 4, 256, False, {"model": {"dtype": "bfloat16"}, "compute": {"gradient_checkpointing": True}}),
    ("42M", 4, 256, False, {"model": {"adapter": {"rank": 16}}}),
    ("42M", 4, 256, False, {"model": {"adapter": {"rank": 16}}, "compute": {"gradient_checkpointing": True}}),
    ("42M", 4, 256, False, {"model": {"adapter": {"rank": 16}, "dtype": "bfloat16"}}),
    ("42M", 2, 512, True, {"method": "dpo", "model": {"dtype": "bfloat16"}}),
    ("27M, 2 kv heads", 4, 512, True, {}),
    ("27M, 2 kv heads", 4, 512, True, {"settings": {"batching": "packed"}}),
    ("27M, 2 kv heads", 4, 512, True, {"model": {"attention": "eager"}}),
    ("27M, 2 kv heads", 4, 512, True, {"model": {"adapter": {"rank": 16}, "dtype": "bfloat16"}}),
)
"""Of the table in docs/memory.md: model, examples of a step, tokens of the longest, uneven lengths, what else."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What was measured beside what was estimated.

    Attributes:
        batch: Of the estimate.
        told: The setting in words.
        seen: As `measured` gives it.
        found: The estimate.
    """

    batch: Batch
    told: str
    seen: dict[str, float]
    found: Memory

    @property
    def whole(self) -> float:
        """The estimate of all that is held, over what is."""
        return self.found.device / (self.seen["static"] + self.seen["step"])


def compared(folder: Path, rows: int, length: int, uneven: bool, more: dict[str, Any], steps: int = 2) -> Compared:
    """Measure one of `CASES`, and estimate it."""
    spec = spec_of(folder, rows, length, **copy.deepcopy(more))
    batch, found = estimated(spec, folder, length, uneven)
    told = ", ".join([*(["uneven"] if uneven else []), *(f"{key} {value}" for key, value in _flat(more))])
    return Compared(batch, told, measured(spec, uneven, steps), found)


def estimated(spec: Spec, folder: Path, length: int, uneven: bool) -> tuple[Batch, Memory]:
    """The largest batch of a spec's first phase, and the estimate of its memory."""
    settings, shape = expand(spec, spec.seed)[0].phases[0].settings, model_shape(folder)
    assert shape is not None
    passes = accumulation(settings.batch_size, 1, settings.micro_batch_size)
    batch = Batch(rows_of(settings, 1), length, passes, masked=uneven)
    return batch, estimate(shape, spec.model, spec.compute, settings, batch)


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = {
            "lab": model_folder("lab"),
            "42M": llama(Path(scratch) / "42M"),
            "27M, 2 kv heads": llama(Path(scratch) / "27M", num_key_value_heads=2, vocab_size=4096),
        }
        print("| model | rows x tokens | setting | measured, MB | estimate, MB | ratio | ratio with weights |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for name, rows, length, uneven, more in CASES:
            one = compared(folders[name], rows, length, uneven, more)
            seen, step = one.seen["step"], one.found.gradients + one.found.activations
            numbers = f"{seen / 1e6:.1f} | {step / 1e6:.1f} | {step / seen:.3f} | {one.whole:.3f}"
            print(f"| {name} | {one.batch.rows} x {length} | {one.told} | {numbers} |", flush=True)


def _flat(more: dict[str, Any]) -> list[tuple[str, Any]]:
    return [pair for value in more.values() if isinstance(value, dict) for pair in _flat(value)] + [
        (key, value) for key, value in more.items() if not isinstance(value, dict)
    ]


if __name__ == "__main__":
    main()
