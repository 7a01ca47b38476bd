"""Fit one phase: a Ray Train `TorchTrainer` around the trainer of its method. Heavy: runs behind the launcher."""

from __future__ import annotations

import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

from components.common.curriculum import PhasePlan, Portion, sequence
from components.common.errors import UserError
from components.common.progress import Progress
from components.common.spec import SftSettings


def plan_from_json(value: dict[str, Any]) -> PhasePlan:
    """A phase's plan from the JSON values of `dataclasses.asdict` (with the settings dumped)."""
    portions = tuple(Portion(tuple(p["tiers"]), p["epochs"], p["replay"], tuple(p["seen"])) for p in value["portions"])
    return PhasePlan(**{**value, "portions": portions, "settings": SftSettings.model_validate(value["settings"])})


def fit(job: dict[str, Any]) -> dict[str, Any]:
    """Train one phase.

    Args:
        job: JSON values: `plan`, `tiers` (files by tier), `seed`, `training_seed`, `model` (folder), `model_spec`,
            `workers`, `gpus_per_worker`, `threads`, `out` (an empty folder), `stream` (what the tracking child is
            called, or null), `order_folder` (null, or where each worker notes the rows it reads).

    Returns:
        `examples`, `tokens`, `response_tokens`, `truncated`, `steps`, `learning`, `train_seconds`, and
        `overhead_seconds` (starting Ray and its workers). The weights and the tokenizer lie in `out/model`.
    """
    from components.common.models import context_length, load_tokenizer, quiet
    from components.training.step import tier_ids
    from components.training.tokens import tokenize

    quiet()
    out, plan = Path(job["out"]), plan_from_json(job["plan"])
    files = {int(tier): Path(path) for tier, path in job["tiers"].items()}
    folder = Path(job["model"])
    order = sequence(plan, tier_ids(files), job["seed"])
    scratch = out / "scratch"
    scratch.mkdir()
    limit = min(plan.settings.max_length, context_length(folder))
    data = tokenize(load_tokenizer(folder), files, order, limit, scratch / "tokens.arrow")
    started = time.time()
    metrics = _run(
        {
            **job,
            "rows": data.rows,
            "filler": data.filler,
            "data": str(scratch / "tokens.arrow"),
            "scratch": str(scratch),
        }
    )
    shutil.rmtree(scratch)
    return {
        "examples": data.examples,
        "sequence": len(order),
        "tokens": data.tokens,
        "response_tokens": data.response_tokens,
        "truncated": data.truncated,
        "steps": int(metrics["steps"]),
        "learning": metrics["learning"],
        "train_seconds": metrics["loop_seconds"],
        "overhead_seconds": max(0.0, time.time() - started - metrics["loop_seconds"]),
    }


def _run(job: dict[str, Any]) -> dict[str, Any]:
    import ray.train
    from ray.train.torch import TorchTrainer

    from components.common.launcher import connect_ray

    workers = job["workers"]
    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # it prints the whole learning curve
    if workers > 1:
        connect_ray()
    elif job["gpus_per_worker"]:
        # The trainer would spread one process over every GPU it sees, and the key says one.
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=job,
        scaling_config=ray.train.ScalingConfig(
            num_workers=0 if workers == 1 else workers,
            use_gpu=bool(job["gpus_per_worker"]),
            resources_per_worker=None if workers == 1 else {"CPU": 1, **({"GPU": 1} if job["gpus_per_worker"] else {})},
        ),
        run_config=ray.train.RunConfig(name="phase", storage_path=job["scratch"]),
    )
    try:
        result = trainer.fit()
    except Exception as error:
        raise _cause(error) from error
    if result.checkpoint is None:
        raise RuntimeError("the training loop ended without a checkpoint")
    shutil.move(result.checkpoint.path, Path(job["out"]) / "model")
    metrics: dict[str, Any] = result.metrics
    return metrics


def _cause(error: BaseException) -> BaseException:
    """What the worker raised, out of Ray's wrapping."""
    failures = getattr(error, "worker_failures", {})
    causes = [getattr(one, "cause", None) or getattr(one, "_base_exc", None) or one for one in failures.values()]
    # One worker's mistake makes the others fail too, with less to say.
    told = [cause for cause in causes if isinstance(cause, UserError)]
    return next(iter([*told, *causes]), error)


def train_worker(job: dict[str, Any]) -> None:
    """The loop of one worker; rank 0 reports the checkpoint."""
    import ray.train
    from datasets import Dataset

    from components.common.models import load_model, load_tokenizer, quiet
    from components.common.reproducible import set_reproducible
    from components.common.spec import ModelSpec
    from components.training.batches import StepBatches, accumulation
    from components.training.sft import Curve, OrderedSFTTrainer, trainer_config

    began = time.time()
    quiet()
    rank, workers = ray.train.get_context().get_world_rank(), job["workers"]
    set_reproducible(max(1, job["threads"] // workers), job["training_seed"])
    settings = job["plan"]["settings"]
    passes = accumulation(settings["batch_size"], workers, settings["micro_batch_size"])
    batches = StepBatches(job["rows"], settings["batch_size"], workers, rank, passes, job["filler"])
    folder, scratch = Path(job["model"]), Path(job["scratch"])
    model_spec = ModelSpec.model_validate(job["model_spec"])
    # Mixed precision keeps the weights in float32 while they are trained; they are saved in the spec's type.
    model = load_model(folder, model_spec.model_copy(update={"dtype": "float32"})).train()
    progress = Progress(job["label"], batches.steps, "steps") if rank == 0 else None
    stream = _stream(job) if rank == 0 else None

    def on_point(point: dict[str, float]) -> None:
        if progress is not None:
            progress.update(int(point["step"]))
        if stream is not None:
            stream.log(point)

    curve = Curve(on_point)
    trainer = OrderedSFTTrainer(
        model=model,
        args=trainer_config(job, batches, scratch / "trainer"),
        train_dataset=Dataset.from_file(job["data"]),
        processing_class=load_tokenizer(folder),
        callbacks=[curve],
        batches=batches,
        order_file=Path(job["order_folder"]) / f"rank-{rank}.jsonl" if job.get("order_folder") else None,
    )
    trainer.train()
    if stream is not None:
        stream.close()
    checkpoint = None
    if rank == 0:
        saved = scratch / "checkpoint"
        _save(trainer, saved, model_spec)
        checkpoint = ray.train.Checkpoint.from_directory(str(saved))
    found = {"steps": trainer.state.global_step, "learning": curve.points, "loop_seconds": time.time() - began}
    ray.train.report(found, checkpoint=checkpoint)


def _stream(job: dict[str, Any]) -> Any:
    if job.get("stream") is None:
        return None
    from components.common.records import RunInfo
    from components.common.tracking import PhaseStream

    about = dict(job["stream"])
    return PhaseStream(RunInfo.from_json(about.pop("info")), **about)


def _save(trainer: Any, folder: Path, model_spec: Any) -> None:
    """Weights in the spec's type, tokenizer and chat template: a folder that `from_pretrained` reads."""
    import torch

    model = trainer.accelerator.unwrap_model(trainer.model)
    model.config.use_cache = True
    model.to(getattr(torch, model_spec.dtype)).save_pretrained(folder, safe_serialization=True)
    trainer.processing_class.save_pretrained(folder)
