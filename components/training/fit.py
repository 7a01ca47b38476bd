"""Fit one phase: a Ray Train `TorchTrainer` around the trainer of its method. Heavy: runs behind the launcher."""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

from components.common.curriculum import PhasePlan, sequence, steps_of
from components.common.errand import INSIDE
from components.common.errors import UserError
from components.common.importing import importing
from components.training.nodes import open_courier
from components.training.stopping import Stopped, asked, on_signals, watched
from components.training.worker import TOLD, train_worker

FAILURES = 3
"""How often a group of workers starts again after one of them was lost; it goes on from the last checkpoint."""


_METRICS = ("steps", "learning", "batching", "best", "selected", "rollbacks", "resumed_at", "checkpoint_seconds")
_PATIENCE = 6 * 3600
"""Seconds that workers wait for each other: the first one alone measures what `select` compares. Lost ones are noticed
otherwise, by Ray."""


def fit(job: dict[str, Any]) -> dict[str, Any]:
    """Train one phase, from its last checkpoint where there is one.

    Args:
        job: JSON values: `plan`, `tiers` (files by tier; 0: the phase's own data), `seed`, `training_seed`, `model`
            (folder), `sources` (the store's URIs of the entries that `model` and `carried` are of, for workers on other
            machines; null where there is none), `model_spec`, `compute` (a ComputeSpec's values), `gpus_per_worker`,
            `threads`, `span` (see `curriculum.schedule_spans`; null: the phase alone), `carried` (folder with the
            parent's optimizer, or null), `keep_optimizer`, `checkpoints` (a CheckpointPlace's values; null keeps
            none), `selection` (file of held-out examples to select on, or null), `evaluation` (an EvaluationSpec's
            values), `out` (an empty folder), `label`, `stream` (what the tracking child is called, or null),
            `order_folder` (null, or where each worker notes the rows it reads).

    Returns:
        `examples`, `tokens`, `response_tokens`, `truncated`, `steps`, `learning`, `batching`, `best`, `selected`,
        `rollbacks`, `resumed_at`, `checkpoint_seconds`, `marks` (Unix times of the parts of its start and end),
        `train_seconds`, `prepare_seconds`, `overhead_seconds` (starting Ray and its workers), and `extra` (what the
        method adds). What the phase leaves lies in `out/model`, and with `keep_optimizer` the optimizer's state in
        `out/optimizer`.
    """
    _see_one_gpu(job)
    out, plan = Path(job["out"]).absolute(), PhasePlan.from_json(job["plan"])  # workers are in folders of their own
    with importing():
        from components.common.models import context_length, load_tokenizer, quiet
        from components.training.selecting import check_selection
        from components.training.step import tier_ids

        quiet()  # before TRL is imported: the hub's client reads then whether it may report
        method = importlib.import_module(f"components.training.{plan.method}")
    job = {**job, "out": str(out)}
    files = {int(tier): Path(path) for tier, path in job["tiers"].items()}
    folder, scratch = Path(job["model"]), out / "scratch"
    order = sequence(plan, tier_ids(files), job["seed"])
    scratch.mkdir()
    limit, tokenizer = min(plan.settings.max_length, context_length(folder)), load_tokenizer(folder)
    started = time.time()
    marks = {"fit": started}
    with on_signals(scratch):
        check_selection(job, tokenizer, limit)
        data = method.prepare(job, tokenizer, order, limit, scratch / "data.arrow")
        began = marks["data"] = time.time()
        span = job["span"] or [0, steps_of(plan.settings, len(data["rows"]))]
        data["file"] = str(scratch / "data.arrow")
        if asked(scratch):
            raise Stopped
        metrics = _run({**job, "span": span, "data": data, "scratch": str(scratch)})
    if job["keep_optimizer"]:
        shutil.move(scratch / "optimizer", out / "optimizer")
    shutil.rmtree(scratch)
    loop = metrics["loop_seconds"]
    return {
        **data["counts"],
        "sequence": len(order),
        **{name: metrics[name] for name in _METRICS},
        "extra": {**data.get("extra", {}), **metrics["extra"]},
        "marks": {**marks, **metrics["marks"]},
        "train_seconds": loop,
        "prepare_seconds": began - started,
        "overhead_seconds": max(0.0, time.time() - began - loop),
    }


def _see_one_gpu(job: dict[str, Any]) -> None:
    """One process would spread the model over every GPU it sees, and the key says one."""
    if job["compute"]["workers"] == 1 and job["gpus_per_worker"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def _run(job: dict[str, Any]) -> dict[str, Any]:
    from components.common.launcher import connect_ray, set_ray_environment

    set_ray_environment()  # Ray reads it when it is imported
    with importing():
        import ray.train
        from ray.train.torch import TorchConfig

        from components.training.lean import LeanTrainer

    workers, gpus = job["compute"]["workers"], job["gpus_per_worker"]
    alone = workers == 1
    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # it prints the whole learning curve
    if not alone:
        connect_ray()
        # In a Ray cluster the workers may be on other machines.
        job = {**job, "courier": open_courier(job) if INSIDE in os.environ else None}
    trainer = LeanTrainer(
        train_worker,
        train_loop_config=job,
        torch_config=TorchConfig(timeout_s=_PATIENCE),
        scaling_config=ray.train.ScalingConfig(
            num_workers=0 if alone else tuple(workers) if isinstance(workers, list) else workers,
            use_gpu=bool(gpus),
            resources_per_worker=None if alone else {"CPU": 1, **({"GPU": 1} if gpus else {})},
        ),
        run_config=ray.train.RunConfig(
            name="phase",
            storage_path=job["scratch"],
            failure_config=None if alone else ray.train.FailureConfig(max_failures=FAILURES),
        ),
    )
    try:
        trainer.fit() if alone else watched(trainer.fit, Path(job["scratch"]))
    except Exception as error:
        raise _cause(error) from error
    # Not by a checkpoint of Ray Train, which needs a disk that all machines share, and copies the weights once more.
    told = Path(job["scratch"]) / TOLD
    if not told.exists():
        raise RuntimeError("the training loop ended without a result")
    shutil.move(Path(job["scratch"]) / "left", Path(job["out"]) / "model")
    metrics: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))
    return metrics


def _cause(error: BaseException) -> BaseException:
    """What the worker raised, out of Ray's wrapping."""
    failures = getattr(error, "worker_failures", {})
    causes = [getattr(one, "cause", None) or getattr(one, "_base_exc", None) or one for one in failures.values()]
    # One worker's mistake makes the others fail too, with less to say.
    told = [cause for cause in causes if isinstance(cause, UserError)]
    return next(iter([*told, *causes]), error)
