"""Score with a model through Ray Data: tokenized, sorted by length, then measured by a pool of actors.

Sorting puts examples of like length into one batch, so little is computed for padding; each actor loads the model
once. The result does not depend on how many actors there are.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from components.common.models import (
    context_length,
    encode,
    load_model,
    load_tokenizer,
    model_folder,
    quiet,
    reply_header,
)
from components.common.progress import Progress

Batch = dict[str, Any]


class Scorer:
    """An actor that holds the scorer's model.

    Args:
        job: See `measure`.
        limit: Tokens of an example that are kept.
        threads: CPU threads of this actor.
    """

    def __init__(self, job: dict[str, Any], limit: int, threads: int) -> None:
        import torch

        from components.common.spec import ModelSpec

        quiet()
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
        folder = model_folder(job["scorer"])
        self._tokenizer = load_tokenizer(folder)
        self._limit = min(limit, context_length(folder))
        device = "cuda" if job["gpus"] else "cpu"
        self._model = load_model(folder, ModelSpec.model_validate(job["model_spec"]), device)
        self._header = reply_header(self._tokenizer)
        self._scoring = job["scoring"]

    def __call__(self, batch: Batch) -> Batch:
        """Difficulty of a batch: columns `id`, `messages` in, `id`, `difficulty` out."""
        from components.common.likelihood import response_nll
        from components.scoring.measure import alone, last_reply

        messages = [[(turn["role"], turn["content"]) for turn in turns] for turns in batch["messages"]]
        replies = [last_reply(item) for item in encode(self._tokenizer, messages, self._limit)]
        tokens = np.array([max(1, item.response_tokens) for item in replies], dtype=np.float64)
        budget = self._scoring["batch_tokens"]
        given = response_nll(self._model, replies, budget) / tokens
        if self._scoring["method"] == "loss":
            return {"id": batch["id"], "difficulty": given}
        bare = response_nll(self._model, [alone(item, self._header) for item in replies], budget) / tokens
        with np.errstate(divide="ignore", invalid="ignore"):
            return {"id": batch["id"], "difficulty": given / bare}


def _characters(batch: Batch) -> Batch:
    """Length in characters: a good enough order for batching, and free."""
    sizes = [sum(len(turn["content"]) for turn in turns) for turns in batch["messages"]]
    return {"id": batch["id"], "messages": batch["messages"], "size": np.array(sizes, dtype=np.int64)}


def score_with_model(job: dict[str, Any], limit: int) -> tuple[dict[str, float], float]:
    """Difficulty by example id, and the seconds that starting Ray took.

    Args:
        job: See `measure`.
        limit: Tokens of an example that are kept.
    """
    began = time.time()
    from components.common.launcher import connect_ray

    connect_ray()
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False
    started = time.time() - began
    actors = max(1, min(job["workers"], os.cpu_count() or 1))
    rows = ray.data.read_parquet([str(Path(path)) for path in job["files"].values()], columns=["id", "messages"])
    total = rows.count()
    scored = (
        rows.map_batches(_characters, batch_size=4096)
        .sort("size", descending=True)
        .map_batches(
            Scorer,
            fn_constructor_args=(job, limit, max(1, job["threads"] // actors)),
            batch_size=max(32, min(512, total // (2 * actors))),
            concurrency=actors,
            num_cpus=1,
            num_gpus=1 if job["gpus"] else 0,
        )
    )
    progress = Progress("score", total, "examples")
    values: dict[str, float] = {}
    for batch in scored.iter_batches(batch_size=None):
        values.update(zip((str(name) for name in batch["id"]), map(float, batch["difficulty"]), strict=True))
        progress.update(len(values))
    return values, started
