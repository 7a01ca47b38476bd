"""One training worker: attempts at the phase until one comes to its end, or to what the user must mend."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from components.common.errors import DataError, UserError
from components.common.importing import importing
from components.common.progress import say
from components.common.spec_phases import rollback_factor
from components.training.nodes import at_hand
from components.training.stopping import Stopped, asked, rest

TOLD = "told.json"
"""Lies in the scratch folder once the phase is trained: the metrics that `fit` reads."""
ROLLBACKS = 3
"""How often a phase may go back before its divergence counts as a failure."""
_NAMED = 32


def train_worker(job: dict[str, Any]) -> None:
    """Train; the first worker leaves the weights and what is to be told of them in the phase's folder.

    Args:
        job: See `fit`; `data` is what the method's `prepare` returned.
    """
    import ray.train

    from components.common.models import quiet
    from components.common.reproducible import set_reproducible

    quiet()
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    set_reproducible(max(1, job["threads"] // workers), job["training_seed"])
    try:
        with at_hand(job) as (job_here, send):
            found = _train(job_here, rank, workers)
            if rank == 0:
                send(_leave(job_here, found))
    except (Stopped, UserError) as error:
        if job["compute"]["workers"] != 1:  # Ray would start this worker again
            rest(Path(job["scratch"]), error if isinstance(error, UserError) else None)
        raise


def _train(job: dict[str, Any], rank: int, workers: int) -> dict[str, Any]:
    with importing():
        import torch.distributed

        from components.training.attempt import train
        from components.training.curve import Diverged

        importlib.import_module(f"components.training.{job['plan']['method']}")

    if asked(Path(job["scratch"])):
        raise Stopped
    while True:
        try:
            return train(job, rank, workers)
        except Diverged as diverged:
            _go_back(job, diverged, rank)
            if workers > 1:  # nobody reads the last checkpoint before it is written
                torch.distributed.barrier()


def _leave(job: dict[str, Any], found: dict[str, Any]) -> list[Path]:
    """Write down what is to be told of the phase; returns all that it leaves, what is told last."""
    scratch = Path(job["scratch"])
    rows = found["extra"].pop("rollouts", None)  # they lie in a file of their own
    told = scratch / TOLD
    told.write_text(json.dumps(found), encoding="utf-8")
    places = [scratch / "left", *([scratch / "optimizer"] if job["keep_optimizer"] else [])]
    return [*places, *([Path(job["out"]) / "rollouts.parquet"] if rows else []), told]


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
    names = list(dict.fromkeys(job["data"]["ids"][row] for row in diverged.rows))
    if rank == 0:  # the log has all of them
        print(json.dumps({"diverged": job["label"], "step": diverged.step, "examples": names}), flush=True)
    more = f" and {len(names) - _NAMED} more (in the log)" if len(names) > _NAMED else ""
    listed = ", ".join(names[:_NAMED]) + more
    raise DataError(
        f"{job['label']}: {diverged}; the batch's examples: {listed}",
        "lower the phase's `learning_rate`, look at these examples, or set `on_divergence: rollback(0.5)`; the last "
        "good checkpoint stays in the store",
    )
