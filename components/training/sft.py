"""Supervised fine-tuning: TRL's `SFTTrainer`, in the promised order, packed where the model keeps examples apart."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from components.common.errors import UserError
from components.training.batches import group_by_length
from components.training.ordered import Conduct, OrderedTrainer, trainer_arguments
from components.training.packing import PackedCollator, keeps_apart
from components.training.tokens import tokenize


class OrderedSFTTrainer(OrderedTrainer, SFTTrainer):  # type: ignore[misc]  # trl carries no types
    """`SFTTrainer` in the promised order."""


def prepare(job: dict[str, Any], tokenizer: Any, order: list[str], limit: int, out: Path) -> dict[str, Any]:
    """Write the phase's examples as tokens and say in which order they are read.

    Args:
        job: Of the phase, see `fit`.
        tokenizer: The model's.
        order: Example ids in the promised order.
        limit: Tokens of an example that are kept.
        out: The Arrow file to write.

    Returns:
        `rows` (row numbers in the promised order), `ids` (by row number), `filler`, `lengths` (tokens by row number),
        and `counts`.
    """
    data = tokenize(tokenizer, {int(tier): Path(path) for tier, path in job["tiers"].items()}, order, limit, out)
    return {
        "rows": data.rows,
        "ids": data.ids,
        "filler": data.filler,
        "lengths": data.lengths,
        "counts": {
            "examples": data.examples,
            "tokens": data.tokens,
            "response_tokens": data.response_tokens,
            "truncated": data.truncated,
        },
    }


def arrange(job: dict[str, Any], model: Any) -> None:
    """Settle how the examples are put into batches: fills in `batching`, and `rows` and `tokens_at` to match.

    Args:
        job: Of the phase, with `data` as `prepare` returned it.
        model: The model that is trained.

    Raises:
        UserError: If packing is asked for and the model mixes packed examples.
    """
    data, settings = job["data"], job["plan"]["settings"]
    lengths, size = data["lengths"], settings["batch_size"]
    data["batching"] = _batching(settings["batching"], model)
    if data["batching"] == "grouped":
        data["rows"] = group_by_length(data["rows"], lengths, size, job["training_seed"])
    steps = (data["rows"][start : start + size] for start in range(0, len(data["rows"]), size))
    data["tokens_at"] = list(itertools.accumulate(sum(lengths[row] for row in step) for step in steps))


def _batching(asked: str, model: Any) -> str:
    if asked in ("grouped", "padded"):
        return asked
    if keeps_apart(model):
        return "packed"
    if asked == "auto":
        return "grouped"
    raise UserError(
        "this model mixes the examples that are packed into one row: packed, they score otherwise than alone",
        "set `batching: grouped` or `padded` (or `auto`)",
    )


def make_trainer(job: dict[str, Any], conduct: Conduct, model: Any, tokenizer: Any) -> OrderedSFTTrainer:
    """The trainer of one worker."""
    packed = job["data"]["batching"] == "packed"
    pad = int(tokenizer.pad_token_id)
    return OrderedSFTTrainer(
        model=model,
        args=SFTConfig(
            **trainer_arguments(job, conduct.batches, conduct.scratch / "trainer"),
            max_length=None,  # cut already, and counted
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=Dataset.from_file(job["data"]["file"]),
        processing_class=tokenizer,
        data_collator=PackedCollator(pad) if packed else None,
        conduct=conduct,
    )
