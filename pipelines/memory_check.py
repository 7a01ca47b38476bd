"""Whether a phase fits into the memory that there is, by the estimate of `components.common.memory`, and what helps."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from components.common.curriculum import PhasePlan
from components.common.digests import seed_for
from components.common.errors import UserError
from components.common.memory import Batch, Memory, estimate, rows_of
from components.common.model_shape import ModelShape
from components.common.spec import Spec
from components.common.spec_phases import GrpoSettings, SftSettings
from components.training.batches import StepBatches, accumulation, group_by_length
from components.training.packing import bins
from pipelines.compute_check import Machine

GIB = 1 << 30
PROCESS = 550 << 20
"""A worker's Python with torch, transformers, trl and ray, before it has a model (546 MiB seen, see docs/memory.md)."""
GPU_SHARE, GPU_CONTEXT = 0.95, GIB // 2
"""What of a GPU can be allocated: the rest is lost between blocks, and the CUDA context takes about half a GiB."""
VLLM_SHARE = 0.3
"""What of a GPU TRL lets vLLM have beside the training (`vllm_gpu_memory_utilization`)."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a phase needs, and what there is.

    Attributes:
        memory: The estimate for one worker.
        needed: Bytes: of each GPU, or of the process (of all of them) on a CPU.
        there: Bytes that can be had; None where that is not known.
    """

    memory: Memory
    needed: int
    there: int | None

    @property
    def fits(self) -> bool:
        """Whether it can be, as far as is known."""
        return self.there is None or self.needed <= self.there


def largest_batch(
    spec: Spec,
    plan: PhasePlan,
    seed: int,
    context: int,
    order: Sequence[str] = (),
    tokens: Mapping[str, int] | None = None,
) -> Batch:
    """The batch of a phase that needs the most memory.

    Args:
        spec: The spec.
        plan: The phase.
        seed: The run's seed.
        context: Tokens that the model's positions allow.
        order: The promised order, where it is known.
        tokens: The tokens of each example of it; without them every row is as long as it may be.
    """
    settings, workers = plan.settings, spec.compute.least_workers
    limit = min(settings.max_length, context)
    micro = settings.micro_batch_size
    if isinstance(settings, GrpoSettings) and micro is not None:
        micro = max(1, micro // settings.samples)
    passes = accumulation(settings.batch_size, workers, micro)
    lengths = [min(limit, tokens[item]) for item in order] if tokens else []
    together = rows_of(settings, workers)
    if isinstance(settings, SftSettings):
        rows, longest = _largest_sft(settings, lengths, workers, passes, seed) if lengths else (together, limit)
        return Batch(rows, longest, passes, masked=together > 1)
    new = settings.max_new_tokens if isinstance(settings, GrpoSettings) else 0
    if plan.generate is not None:
        new = plan.generate.max_new_tokens
    longest = min(limit, max(lengths) + new) if lengths else limit
    if not isinstance(settings, GrpoSettings):
        return Batch(together, longest, passes)
    prompts = -(-settings.batch_size // workers) * settings.samples
    return Batch(-(-prompts // passes), longest, passes, prompts=prompts, new_tokens=new)


def _largest_sft(
    settings: SftSettings, lengths: Sequence[int], workers: int, passes: int, seed: int
) -> tuple[int, int]:
    """Rows and tokens of a row of the largest micro-batch that any worker will see."""
    order = list(range(len(lengths)))
    if settings.batching == "grouped":
        order = group_by_length(order, lengths, settings.batch_size, seed_for(seed, "training"))
    packed = settings.batching in ("auto", "packed")
    most = (1, 1)
    for rank in range(workers):
        for batch in StepBatches(order, settings.batch_size, workers, rank, passes, None):
            of_batch = [lengths[row] for row in batch]
            longest = max(of_batch)
            rows = len(of_batch)
            if rows * longest > most[0] * most[1]:  # packing makes it no larger
                rows = len(bins(of_batch, longest)) if packed else rows
                most = max(most, (rows, longest), key=lambda one: one[0] * one[1])
    return most


@dataclass(frozen=True, slots=True)
class Case:
    """A phase as it would be trained: what an estimate is made of."""

    spec: Spec
    plan: PhasePlan
    shape: ModelShape
    batch: Batch


def needed(case: Case, machine: Machine) -> Need:
    """What a phase needs on a machine."""
    spec, settings, compute = case.spec, case.plan.settings, case.spec.compute
    refers = isinstance(settings, GrpoSettings) and settings.beta > 0 and spec.model.adapter is None
    memory = estimate(case.shape, spec.model, compute, settings, case.batch, references=refers)
    if not compute.gpus_per_worker:
        workers = compute.least_workers
        return Need(memory, workers * (memory.device + PROCESS) + memory.copies, machine.memory)
    gpus = [size for size in machine.gpus[: compute.least_workers] if size]
    with_vllm = isinstance(settings, GrpoSettings) and settings.generator != "transformers" and _has_vllm()
    share = GPU_SHARE - (VLLM_SHARE if with_vllm else 0)
    return Need(memory, memory.device, round(share * min(gpus)) - GPU_CONTEXT if gpus else None)


def _has_vllm() -> bool:
    return importlib.util.find_spec("vllm") is not None


SHORT = 64
"""Tokens of an example that are assumed where lengths are not known and a phase is to be refused."""


def check_fits(case: Case, machine: Machine, lengths_known: bool) -> Need:
    """What a phase needs, seen to fit.

    Args:
        case: The phase.
        machine: What there is.
        lengths_known: Whether the batch is of the examples' own lengths. If not, the need is an upper bound, and only
            a phase is refused that would not even fit with short examples.

    Raises:
        UserError: If it does not fit, with the change that helps most.
    """
    need = needed(case, machine)
    if need.there is None or need.fits:
        return need
    if not lengths_known:
        short = replace(case, batch=replace(case.batch, length=min(SHORT, case.batch.length)))
        if needed(short, machine).fits:
            return need
    where = "each GPU" if case.spec.compute.gpus_per_worker else f"the memory of {machine.what}"
    raise UserError(
        f"the phase {case.plan.name} needs about {gib(need.needed)} of {where}, of which {gib(need.there)} can be had: "
        f"{told(need.memory)}, in batches of {case.batch.rows} x {case.batch.length} tokens",
        remedy(case, machine),
    )


def remedy(case: Case, machine: Machine) -> str:
    """The change that makes a phase fit: of those that leave what is learned alone, else of those that do not.

    Every change is tried on the estimate; of the first group in which one fits, the one that needs least is named.
    """
    for group in _groups(case):
        tried = [(needed(changed, machine), words) for words, changed in group]
        fitting = [(need.needed, words) for need, words in tried if need.fits]
        if fitting:
            least, words = min(fitting)
            return f"set {words}: it then needs about {gib(least)}"
    return "take a smaller model, or a machine with more memory: no setting makes it fit"


Change = tuple[str, Case]
"""A change in words, and the phase with it."""


def _groups(case: Case) -> Iterator[list[Change]]:
    """Changes, those to try first in front: one that only costs time, two of these, shards, an adapter."""
    yield from _same_weights(case)
    for words, changed in [*_sharded(case), *_adapted(case)]:
        yield [(words, changed)]
        for group in _same_weights(changed):
            yield [(f"{words}, {more}", further) for more, further in group]


def _same_weights(case: Case) -> Iterator[list[Change]]:
    smaller = list(_smallest_batches(case))
    if case.spec.compute.gradient_checkpointing:
        yield smaller
        return
    words = "`compute.gradient_checkpointing: true`"
    recomputed = _with(case, "compute", gradient_checkpointing=True)
    yield [(words, recomputed), *smaller]
    yield [(f"{words} and {more}", both) for more, both in _smallest_batches(recomputed)]


def _smallest_batches(case: Case) -> Iterator[Change]:
    """The phase with the smallest micro-batches that its method allows, where they are not that small already."""
    plan, batch = case.plan, case.batch
    least = plan.settings.samples if isinstance(plan.settings, GrpoSettings) else 1
    rows = 2 * least if plan.method == "dpo" else least
    if batch.rows > rows:
        settings = plan.settings.model_copy(update={"micro_batch_size": least})
        less = replace(batch, rows=rows, passes=batch.passes * -(-batch.rows // rows), masked=rows > 1)
        words = f"`micro_batch_size: {least}` in `curriculum.{plan.method}`"
        yield words, replace(case, plan=replace(plan, settings=settings), batch=less)


def _sharded(case: Case) -> Iterator[Change]:
    compute, adapter = case.spec.compute, case.spec.model.adapter
    quantized = adapter is not None and adapter.quantize != "none"
    if compute.strategy == "ddp" and compute.gpus_per_worker and compute.least_workers > 1 and not quantized:
        yield "`compute.strategy: fsdp`", _with(case, "compute", strategy="fsdp")


def _adapted(case: Case) -> Iterator[Change]:
    if case.spec.model.adapter is None:
        yield "`model.adapter: {rank: 16}`", _with(case, "model", adapter={"rank": 16})


def _with(case: Case, part: str, **changes: Any) -> Case:
    values = case.spec.model_dump(mode="json")
    values[part] |= changes
    return replace(case, spec=Spec.model_validate(values))


def told(memory: Memory) -> str:
    """The parts of an estimate in words, those that matter."""
    parts = {
        "weights": memory.weights,
        "AdamW": memory.moments,
        "gradients": memory.gradients,
        "activations": memory.activations,
        "reference": memory.reference,
        "a checkpoint's copy": memory.copies,
    }
    return ", ".join(f"{name} {gib(size)}" for name, size in parts.items() if size)


def gib(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / (1 << 20):.0f} MiB"
