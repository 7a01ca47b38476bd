"""The loop of one training worker: from the state that it finds to the end of the phase, whatever happens between."""

from __future__ import annotations

import contextlib
import importlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from components.common.checkpoints import CheckpointPlace, latest
from components.common.errors import DataError, UserError
from components.common.progress import Progress, say
from components.common.spec import ModelSpec
from components.common.spec_phases import rollback_factor
from components.training import state
from components.training.batches import StepBatches, accumulation
from components.training.state import Progressed
from components.training.stopping import Stopped, asked, rest

ROLLBACKS = 3
"""How often a phase may go back before its divergence counts as a failure."""
_NAMED = 32


def train_worker(job: dict[str, Any]) -> None:
    """Train; the first worker reports the weights as a checkpoint.

    Args:
        job: See `fit`; `data` is what the method's `prepare` returned.
    """
    import ray.train
    import torch.distributed

    from components.common.models import quiet
    from components.common.reproducible import set_reproducible
    from components.training.curve import Diverged

    quiet()
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    set_reproducible(max(1, job["threads"] // workers), job["training_seed"])
    scratch = Path(job["scratch"])
    try:
        if asked(scratch):
            raise Stopped
        while True:
            try:
                found = _train(job, rank, workers)
                break
            except Diverged as diverged:
                _go_back(job, diverged, rank)
                if workers > 1:  # nobody reads the last checkpoint before it is written
                    torch.distributed.barrier()
    except (Stopped, UserError) as error:
        if workers > 1:
            rest(scratch, error if isinstance(error, UserError) else None)
        raise
    checkpoint = None
    if rank == 0:
        checkpoint = ray.train.Checkpoint.from_directory(str(scratch / "left"))
    ray.train.report(found, checkpoint=checkpoint)


def _state(job: dict[str, Any], rank: int) -> tuple[Progressed, Path | None]:
    """What is done of the phase, and the folder with its tensors."""
    place = _place(job)
    folder = Path(job["scratch"]) / f"resumed-{rank}"
    shutil.rmtree(folder, ignore_errors=True)
    found = None if place is None else latest(place, folder)
    if found is None:
        return Progressed(seed=job["training_seed"]), None
    return state.read(found[1]), found[1]


def _place(job: dict[str, Any]) -> CheckpointPlace | None:
    return None if job["checkpoints"] is None else CheckpointPlace(**job["checkpoints"])


def _train(job: dict[str, Any], rank: int, workers: int) -> dict[str, Any]:
    """One attempt, from the newest checkpoint to the end of the phase.

    Returns:
        The metrics that `fit` reads; on the first worker the weights lie in `scratch/left`.
    """
    from components.common.models import load_tokenizer
    from components.training.adapters import trainable
    from components.training.curve import Curve
    from components.training.keeping import Keeper
    from components.training.ordered import Conduct

    began = time.monotonic()
    progressed, resume = _state(job, rank)
    settings, scratch = job["plan"]["settings"], Path(job["scratch"])
    method = importlib.import_module(f"components.training.{job['plan']['method']}")
    lr_factor = max(0.0, float(job.get("lr_factor", 1.0)))
    progressed.lr_factor = min(progressed.lr_factor, lr_factor)
    progressed.rollbacks = max(progressed.rollbacks, int(job.get("rollbacks", 0)))
    model = trainable(Path(job["model"]), ModelSpec.model_validate(job["model_spec"]), job)
    job = {**job, "data": dict(job["data"])}
    method.arrange(job, model)
    data, passes = job["data"], accumulation(settings["batch_size"], workers, _micro(settings))
    batches = StepBatches(
        data["rows"], settings["batch_size"], workers, rank, passes, data["filler"], start=progressed.step
    )
    if resume is not None:
        state.load_weights(model, resume / state.WEIGHTS)
        if rank == 0:
            say(label=job["label"], total=batches.steps, unit="steps", done=progressed.step, resumed=progressed.step)
    keeper = Keeper(_place(job), scratch / "checkpoints") if rank == 0 else None
    if keeper is not None and resume is not None and (resume / state.BEST).exists():
        keeper.best = _tensors(resume / state.BEST)
    on_point, close = _listeners(job, batches, rank)
    curve = Curve(progressed.points, data.get("tokens_at"), on_point)
    conduct = Conduct(
        batches,
        progressed,
        curve,
        keeper,
        _selection(job, batches, rank),
        job["compute"]["checkpoint_every"],
        tuple(job["span"]),
        settings["warmup_ratio"],
        rank,
        scratch,
        resume or (Path(job["carried"]) if job["carried"] else None),
        Path(job["order_folder"]) / f"rank-{rank}.jsonl" if job.get("order_folder") else None,
    )
    tokenizer = load_tokenizer(Path(job["model"]))
    trainer = method.make_trainer(job, conduct, model, tokenizer)
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
    if keeper is not None:
        keeper.wait()
        _leave(job, trainer, keeper, tokenizer)
    return {
        "steps": batches.steps,
        "learning": curve.points,
        "loop_seconds": progressed.seconds + time.monotonic() - began,
        "batching": data.get("batching"),
        "selected": progressed.selected,
        "best": progressed.best,
        "rollbacks": progressed.rollbacks,
        "resumed_at": batches.start,
        "checkpoint_seconds": 0.0 if keeper is None else keeper.stall,
        "extra": trainer.growing(),
    }


def _micro(settings: dict[str, Any]) -> int | None:
    """Examples of one forward pass: grpo's setting counts completions, its batches prompts."""
    micro: int | None = settings["micro_batch_size"]
    return None if micro is None else max(1, micro // int(settings.get("samples", 1)))


def _tensors(file: Path) -> state.Tensors:
    from safetensors.torch import load_file

    tensors: state.Tensors = load_file(file)
    return tensors


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


def _selection(job: dict[str, Any], batches: StepBatches, rank: int) -> Any:
    settings = job["plan"]["settings"]
    if rank or settings["select"] == "last":
        return None
    from components.training.keeping import Selection
    from components.training.selecting import measure

    every = settings["select_every"] or max(1, batches.steps // 8)
    return Selection(lambda model: measure(job, model), settings["select"] == "best(loss)", every)


def _go_back(job: dict[str, Any], diverged: Any, rank: int) -> None:
    """Prepare another attempt from the last good checkpoint, or say why there is none.

    Raises:
        DataError: Naming the step, the examples of its batch and the learning rate.
    """
    settings = job["plan"]["settings"]
    factor = rollback_factor(settings["on_divergence"])
    rollbacks = int(job.get("rollbacks", 0))
    if factor is not None and rollbacks < ROLLBACKS:
        job["rollbacks"], job["lr_factor"] = rollbacks + 1, float(job.get("lr_factor", 1.0)) * factor
        if rank == 0:
            say(warning=f"{job['label']}: {diverged}; back to the last checkpoint with {factor} of the learning rate")
        return
    rows = StepBatches(job["data"]["rows"], settings["batch_size"], 1, 0, 1, None).slice(diverged.step)
    names = [job["data"]["ids"][row] for row in rows]
    names = list(dict.fromkeys(names))
    if rank == 0:  # the log has all of them
        print(json.dumps({"diverged": job["label"], "step": diverged.step, "examples": names}), flush=True)
    listed = ", ".join(names[:_NAMED]) + (
        f" and {len(names) - _NAMED} more (in the log)" if len(names) > _NAMED else ""
    )
    raise DataError(
        f"{job['label']}: {diverged}; the batch's examples: {listed}",
        f"lower `learning_rate` of the phase, look at these examples, or set `on_divergence: rollback(0.5)`; "
        f"the checkpoint before step {diverged.step} is kept, and a run with the same settings goes on from there",
    )


def _leave(job: dict[str, Any], trainer: Any, keeper: Any, tokenizer: Any) -> None:
    """Put what the phase leaves into `scratch/left`: a folder that `load_model` reads, and the optimizer if asked."""
    from components.training.adapters import save_trained

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
        save_file(state.copied(state.optimizer_tensors(trainer.optimizer)), folder / state.OPTIMIZER)
    spec = ModelSpec.model_validate(job["model_spec"])
    save_trained(model, left, spec, Path(job["model"]), job["plan"]["settings"]["adapter"])
    tokenizer.save_pretrained(left)
