"""Score with a model through Ray Data: a pool of actors, each of which loads the model once.

An actor takes a window of examples and measures it in batches of like length, so little is computed for padding
and memory stays constant however large the data is.
"""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.common.errand import INSIDE
from components.common.importing import importing
from components.common.models import context_length, load_model, load_tokenizer, model_folder, quiet
from components.common.progress import Progress
from components.common.rendering import encode, reply_header

if TYPE_CHECKING:
    import ray

Batch = dict[str, Any]
_WINDOW = 2048
_SMALLEST = 64
"""Examples that an actor takes at once: enough for batches of like length, few enough to keep every actor busy."""
_SHARE = 8192
"""Examples that are worth an actor of their own: to start one costs some seconds of importing."""


class Scorer:
    """An actor that holds the scorer's model.

    Args:
        job: See `measure`.
        limit: Tokens of an example that are kept.
        threads: CPU threads of this actor.
    """

    def __init__(self, job: dict[str, Any], limit: int, threads: int) -> None:
        from components.common.reproducible import set_reproducible
        from components.common.spec import ModelSpec

        quiet()
        folder, device = model_folder(job["scorer"]), "cuda" if job["gpus"] else "cpu"
        with importing():
            set_reproducible(threads)
            self._tokenizer = load_tokenizer(folder)
            self._model = load_model(folder, ModelSpec.model_validate(job["model_spec"]), device)
        self._limit = min(limit, context_length(folder))
        self._header = reply_header(self._tokenizer)
        self._scoring = job["scoring"]

    def __call__(self, batch: Batch) -> Batch:
        """Difficulty of a batch: columns `id`, `messages` in; `id`, `difficulty` and `seconds` of work out."""
        from components.common.likelihood import response_nll
        from components.scoring.measure import alone, difficulty_of, last_reply

        began = time.time()
        messages = [[(turn["role"], turn["content"]) for turn in turns] for turns in batch["messages"]]
        replies = [last_reply(item) for item in encode(self._tokenizer, messages, self._limit)]
        tokens = np.array([max(1, item.response_tokens) for item in replies], dtype=np.float64)
        budget = self._scoring["batch_tokens"]
        given = response_nll(self._model, replies, budget)
        bare = None
        if self._scoring["method"] == "ifd":
            bare = response_nll(self._model, [alone(item, self._header) for item in replies], budget)
        difficulty = difficulty_of(self._scoring["method"], given, bare, tokens)
        share = (time.time() - began) / len(given)
        return {"id": batch["id"], "difficulty": difficulty, "seconds": np.full(len(given), share)}


def _rows(files: list[str], total: int, blocks: int) -> ray.data.Dataset:
    """Ids and messages of the examples, in blocks.

    In a Ray cluster the files are on this machine alone: the blocks are put into Ray's store, which keeps on disk what
    does not fit into it.
    """
    import ray

    columns = ["id", "messages"]
    if INSIDE not in os.environ:
        return ray.data.read_parquet(files, columns=columns, override_num_blocks=blocks)
    size = max(1, math.ceil(total / blocks))
    batches = (batch for path in files for batch in pq.ParquetFile(path).iter_batches(size, columns=columns))
    return ray.data.from_arrow_refs([ray.put(pa.Table.from_batches([batch])) for batch in batches])


def score_with_model(job: dict[str, Any], limit: int) -> tuple[dict[str, float], float]:
    """Difficulty by example id, and the seconds that Ray and its actors took beside the work.

    Args:
        job: See `measure`.
        limit: Tokens of an example that are kept.
    """
    began = time.time()
    from components.common.launcher import connect_ray

    connect_ray()
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.enable_operator_progress_bars = False
    files = [str(path) for path in job["files"].values()]
    total = sum(pq.read_metadata(path).num_rows for path in files)
    actors = max(1, min(job["workers"], math.ceil(total / _SHARE)))
    rows = _rows(files, total, 2 * actors)
    scored = rows.map_batches(
        Scorer,
        fn_constructor_args=(job, limit, max(1, job["threads"] // actors)),
        batch_size=min(_WINDOW, max(_SMALLEST, math.ceil(total / (4 * actors)))),
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
        num_gpus=1 if job["gpus"] else 0,
    )
    progress = Progress("score", total, "examples")
    values: dict[str, float] = {}
    work = 0.0
    for batch in scored.iter_batches(batch_size=None):
        work += float(batch["seconds"].sum())
        values.update(zip((str(name) for name in batch["id"]), map(float, batch["difficulty"]), strict=True))
        progress.update(len(values))
    return values, max(0.0, time.time() - began - work / actors)
