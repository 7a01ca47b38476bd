"""One attempt at a phase in one worker: from the newest checkpoint to the end, and what it leaves."""

from __future__ import annotations

import contextlib
import importlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from components.common.checkpoints import CheckpointPlace, latest
from components.common.models import load_tokenizer
from components.common.progress import Progress, say
from components.common.spec import ModelSpec
from components.training import state
from components.training.adapters import save_trained, trainable
from components.training.batches import StepBatches, accumulation
from components.training.curve import Curve
from components.training.keeping import Keeper, Selection
from components.training.ordered import Conduct
from components.training.state import Progressed


def train(job: dict[str, Any], rank: int, workers: int) -> dict[str, Any]:
    """Train from the newest checkpoint to the end of the phase.

    Returns:
        The metrics that `fit` reads; on the first worker the weights lie in `scratch/left`.
    """
    began, marks = time.monotonic(), {"worker": time.time()}
    progressed, resume = _state(job, rank)
    if workers > 1:
        _agree(progressed.step)
    model = trainable(Path(job["model"]), ModelSpec.model_validate(job["model_spec"]), job)
    if resume is not None:
        state.load_weights(model, resume / state.WEIGHTS)
    marks["model"] = time.time()
    method = importlib.import_module(f"components.training.{job['plan']['method']}")
    job = {**job, "data": dict(job["data"])}
    method.arrange(job, model)
    batches = _batches(job, rank, workers, progressed.step)
    if resume is not None and rank == 0:
        say(label=job["label"], total=batches.steps, unit="steps", done=progressed.step, resumed=progressed.step)
    keeper = _keeper(job, resume) if rank == 0 else None
    on_point, close = _listeners(job, batches, rank)
    curve = Curve(progressed.points, job["data"].get("tokens_at"), on_point)
    conduct = _conduct(job, batches, progressed, curve, keeper, rank, resume)
    tokenizer = load_tokenizer(Path(job["model"]))
    trainer = method.make_trainer(job, conduct, model, tokenizer)
    marks["trainer"] = time.time()
    try:
        if progressed.step < batches.steps:
            trainer.train()
    except BaseException:
        if keeper is not None:  # another attempt must not read a checkpoint that is being written
            with contextlib.suppress(Exception):
                keeper.wait()
        raise
    finally:
        close()
    marks["trained"] = time.time()
    whole = trainer.accelerator.get_state_dict(trainer.model) if job["compute"]["strategy"] != "ddp" else None
    if keeper is not None:
        keeper.wait()
        _leave(job, trainer, keeper, tokenizer, whole, resume)
    return {
        "steps": batches.steps,
        "learning": curve.points,
        "loop_seconds": progressed.seconds + time.monotonic() - began,
        "batching": job["data"].get("batching"),
        "marks": {**marks, "left": time.time()},
        "selected": progressed.selected,
        "best": progressed.best,
        "rollbacks": progressed.rollbacks,
        "resumed_at": batches.start,
        "checkpoint_seconds": 0.0 if keeper is None else keeper.stall,
        "extra": trainer.growing(),
    }


def _place(job: dict[str, Any]) -> CheckpointPlace | None:
    return None if job["checkpoints"] is None else CheckpointPlace(**job["checkpoints"])


def _state(job: dict[str, Any], rank: int) -> tuple[Progressed, Path | None]:
    """What is done of the phase, and the folder with its tensors."""
    place = _place(job)
    folder = Path(job["scratch"]) / f"resumed-{rank}"
    shutil.rmtree(folder, ignore_errors=True)
    found = None if place is None else latest(place, folder)
    progressed = Progressed(seed=job["training_seed"]) if found is None else state.read(found[1])
    # What this process has rolled back, or those before it: a further rollback counts on from there.
    progressed.lr_factor = job["lr_factor"] = min(progressed.lr_factor, float(job.get("lr_factor", 1.0)))
    progressed.rollbacks = job["rollbacks"] = max(progressed.rollbacks, int(job.get("rollbacks", 0)))
    return progressed, None if found is None else found[1]


def _agree(step: int) -> None:
    """See that all workers go on from the same step.

    Raises:
        RuntimeError: If one found another checkpoint than the others.
    """
    import torch
    import torch.distributed

    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    ends = torch.tensor([step, -step], device=device)
    torch.distributed.all_reduce(ends, op=torch.distributed.ReduceOp.MAX)
    if int(ends[0]) != -int(ends[1]):
        raise RuntimeError(f"the workers found different checkpoints, of the steps {-int(ends[1])} to {int(ends[0])}")


def _batches(job: dict[str, Any], rank: int, workers: int, start: int) -> StepBatches:
    data, settings = job["data"], job["plan"]["settings"]
    micro: int | None = settings["micro_batch_size"]
    if micro is not None:  # grpo counts completions, its batches prompts
        micro = max(1, micro // int(settings.get("samples", 1)))
    passes = accumulation(settings["batch_size"], workers, micro)
    return StepBatches(data["rows"], settings["batch_size"], workers, rank, passes, data["filler"], start)


def _keeper(job: dict[str, Any], resume: Path | None) -> Keeper:
    from safetensors.torch import load_file

    keeper = Keeper(_place(job), Path(job["scratch"]) / "checkpoints")
    if resume is not None and (resume / state.BEST).exists():
        keeper.best = load_file(resume / state.BEST)
    return keeper


def _conduct(
    job: dict[str, Any],
    batches: StepBatches,
    progressed: Progressed,
    curve: Curve,
    keeper: Keeper | None,
    rank: int,
    resume: Path | None,
) -> Conduct:
    settings, notes = job["plan"]["settings"], job.get("order_folder")
    before, whole = job["span"]
    strategy = job["compute"]["strategy"]
    return Conduct(
        batches=batches,
        progressed=progressed,
        curve=curve,
        keeper=keeper,
        selection=None if rank else _selection(job, batches),
        every=job["compute"]["checkpoint_every"],
        span=(before, whole),
        warmup=settings["warmup_ratio"],
        rank=rank,
        scratch=Path(job["scratch"]),
        resume=resume or (Path(job["carried"]) if job["carried"] else None),
        order_file=Path(notes) / f"rank-{rank}.jsonl" if notes else None,
        sharded=strategy == "fsdp",
        saves=strategy != "deepspeed_zero3",  # whose state comes in pickles of its own: a fault costs the phase
    )


def _listeners(
    job: dict[str, Any], batches: StepBatches, rank: int
) -> tuple[Callable[[dict[str, float]], None], Callable[[], None]]:
    """Who is told every point of the curve, and what to call at the end."""
    if rank:
        return (lambda point: None), (lambda: None)
    progress = Progress(job["label"], batches.steps, "steps")
    stream = None
    if job.get("stream") is not None:
        from components.common.records import RunInfo
        from components.common.tracking import PhaseStream

        about = dict(job["stream"])
        stream = PhaseStream(RunInfo.from_json(about.pop("info")), **about)

    def on_point(point: dict[str, float]) -> None:
        progress.update(int(point["step"]))
        if stream is not None:
            stream.log(point)

    return on_point, (lambda: None) if stream is None else stream.close


def _selection(job: dict[str, Any], batches: StepBatches) -> Selection | None:
    settings = job["plan"]["settings"]
    if settings["select"] == "last":
        return None
    from components.training.selecting import measure

    every = settings["select_every"] or max(1, batches.steps // 8)
    return Selection(lambda model: measure(job, model), settings["select"] == "best(loss)", every)


def _leave(
    job: dict[str, Any],
    trainer: Any,
    keeper: Keeper,
    tokenizer: Any,
    whole: dict[str, Any] | None,
    resume: Path | None,
) -> None:
    """Put what the phase leaves into `scratch/left`: a folder that `load_model` reads, and the optimizer if asked.

    `whole` holds the weights of a model that is spread over the workers; `resume` the state that was found, which is
    the last one where no step was left.
    """
    left = Path(job["scratch"]) / "left"
    shutil.rmtree(left, ignore_errors=True)
    left.mkdir()
    model = trainer.accelerator.unwrap_model(trainer.model)
    if keeper.best is not None:
        import torch

        with torch.no_grad():
            for name, tensor in state.trained(model).items():
                tensor.copy_(keeper.best[name])
    if job["keep_optimizer"]:
        from safetensors.torch import save_file

        folder = Path(job["scratch"]) / "optimizer"
        folder.mkdir(exist_ok=True)
        if trainer.optimizer is None and resume is not None:
            shutil.copy(resume / state.OPTIMIZER, folder / state.OPTIMIZER)
        else:
            save_file(state.copied(state.optimizer_tensors(trainer.optimizer)), folder / state.OPTIMIZER)
    spec = ModelSpec.model_validate(job["model_spec"])
    save_trained(model, left, spec, Path(job["model"]), job["plan"]["settings"]["adapter"], whole)
    tokenizer.save_pretrained(left)
