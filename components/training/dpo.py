"""Preference training: TRL's `DPOTrainer`, in the promised order, against the phase's own start.

TRL averages the pairs of each forward pass and then the passes and the workers. Where these hold different numbers of
pairs, a pair would weigh more in a small one than in a large one. So every pass is filled up to one size with rows
that have no reply, and what they dilute is scaled back: an optimizer step is the mean over its pairs.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from components.common.checkpoints import DATA, CheckpointPlace, latest, save
from components.common.curriculum import OWN
from components.common.progress import Progress
from components.training.adapters import refuse_head_adapter
from components.training.ordered import Conduct, OrderedTrainer, trainer_arguments
from components.training.pair_making import make_pairs
from components.training.preferences import start_model, tokenize_pairs

PAIRS = "pairs.parquet"
_TOKENS, _PREPARED = "data.arrow", "prepared.json"
_BETA = {"sigmoid_norm": 5.0}
_MEANS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
)
"""What TRL logs as a mean over rows, of which a filler's is zero."""


class OrderedDPOTrainer(OrderedTrainer, DPOTrainer):  # type: ignore[misc]  # trl carries no types
    """`DPOTrainer` in the promised order, on tokenized pairs with the reference's log-probabilities beside them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "ref" in getattr(self.model, "peft_config", {}):
            # A copy of the adapter as it is now, which after a resume is not what the phase started from.
            self.model.delete_adapter("ref")

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset  # it is tokens already

    def _precompute_ref_logps(self, dataset: Any, *args: Any) -> Any:
        return dataset  # `prepare` has done that

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """The step's mean over its pairs, as this pass's part of it (nats)."""
        loss = super().compute_loss(model, inputs, return_outputs, **kwargs)
        rows = len(inputs["input_ids"]) // 2
        fillers = rows - int(inputs["completion_mask"][:rows].any(1).sum())
        batches = self.conduct.batches
        pairs = len(batches.slice(self.state.global_step + 1))
        scale = rows * batches.passes * batches.workers / pairs
        for name in _MEANS:
            self._metrics["train"][name][-1] *= scale
        return (loss - self._of_nothing * fillers / rows) * scale

    @property
    def _of_nothing(self) -> float:
        """The loss of a filler, whose scores are zero: a constant."""
        if self.loss_types == ["ipo"]:
            return float((1 / (2 * self.beta)) ** 2)
        return math.log(2)


class _Filled:
    """Makes one pass of pairs, filled up to a number of rows."""

    def __init__(self, collator: Any, filler: dict[str, Any], rows: int) -> None:
        self._collator, self._filler, self._rows = collator, filler, rows

    def __call__(self, examples: list[dict[str, Any]]) -> Any:
        return self._collator([*examples, *[self._filler] * (self._rows - len(examples))])


def prepare(job: dict[str, Any], tokenizer: Any, order: list[str], limit: int, out: Path) -> dict[str, Any]:
    """Write the phase's pairs as tokens, made from its own model where it generates, with the reference beside them.

    They are kept beside the phase's checkpoints until it is published, and taken from there when it is resumed.

    Args:
        job: Of the phase, see `fit`.
        tokenizer: The model's.
        order: Example ids in the promised order.
        limit: Tokens of a prompt with a reply that are kept.
        out: The Arrow file to write.

    Returns:
        `rows` (row numbers in the promised order; those without a pair left out), `ids` (by row number), `filler`,
        `lengths` (tokens of both sides by row number), `counts`, and in `extra` what generating gave (`generated`).
    """
    place = None if job["checkpoints"] is None else replace(CheckpointPlace(**job["checkpoints"]), part=DATA)
    found = None if place is None else latest(place, out.with_name("found"))
    if found is None:
        folder = out.with_name("made")
        folder.mkdir()
        made = _make(job, tokenizer, order, limit, folder)
        (folder / _PREPARED).write_text(json.dumps(made), encoding="utf-8")
        if place is not None:  # a resumed phase sees what its first steps saw, and does not work it out again
            save(place, 0, folder, keep=1)
    else:
        folder = found[1]
    for name, target in ((_TOKENS, out), (PAIRS, Path(job["out"]) / PAIRS)):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target)
    prepared: dict[str, Any] = json.loads((folder / _PREPARED).read_text(encoding="utf-8"))
    return prepared


def _make(job: dict[str, Any], tokenizer: Any, order: list[str], limit: int, folder: Path) -> dict[str, Any]:
    """Make what `prepare` returns, and its files in a folder."""
    files, wanted = {int(tier): Path(path) for tier, path in job["tiers"].items()}, set(order)
    extra: dict[str, Any] = {}
    batch_tokens = job["evaluation"]["batch_tokens"]
    with start_model(job) as model:
        if job["plan"]["generate"] is not None:
            pairs = folder / PAIRS
            extra["generated"] = make_pairs(job, tokenizer, model, files, wanted, limit, pairs)
            files = {OWN: pairs}
        told = Progress(f"{job['label']}: reference", len(wanted), "pairs").update
        data = tokenize_pairs(tokenizer, model, files, wanted, limit, batch_tokens, folder / _TOKENS, told)
    place = {name: row for row, name in enumerate(data.ids)}
    rows = [place[name] for name in order if name in place]
    return {
        "rows": rows,
        "ids": data.ids,
        "filler": data.filler,
        "lengths": data.lengths,
        "counts": {
            "examples": len(data.ids),
            "tokens": sum(data.lengths[row] for row in rows),
            "response_tokens": sum(data.response_tokens[row] for row in rows),
            "truncated": data.truncated,
        },
        "extra": extra,
    }


def arrange(job: dict[str, Any], model: Any) -> None:
    """Settle how many tokens are seen up to each step: fills in `tokens_at`.

    Args:
        job: Of the phase, with `data` as `prepare` returned it.
        model: The model that is trained.

    Raises:
        UserError: If it has an adapter that cannot be trained.
    """
    refuse_head_adapter(model)
    data, size = job["data"], job["plan"]["settings"]["batch_size"]
    steps = (data["rows"][start : start + size] for start in range(0, len(data["rows"]), size))
    data["batching"] = "padded"
    data["tokens_at"] = list(itertools.accumulate(sum(data["lengths"][row] for row in step) for step in steps))


def make_trainer(job: dict[str, Any], conduct: Conduct, model: Any, tokenizer: Any) -> OrderedDPOTrainer:
    """The trainer of one worker."""
    settings = job["plan"]["settings"]
    arguments = trainer_arguments(job, conduct.batches, conduct.scratch / "trainer")
    _switch_off_dropout(model)
    data = Dataset.from_file(job["data"]["file"])
    collator = DataCollatorForPreference(pad_token_id=int(tokenizer.pad_token_id))
    return OrderedDPOTrainer(
        model=model,
        args=DPOConfig(
            **arguments,
            loss_type=[settings["loss"]],
            beta=settings["beta"] or _BETA.get(settings["loss"], 0.1),
            max_length=None,  # cut already, and counted
            precompute_ref_log_probs=True,
            disable_dropout=False,  # TRL would switch off the adapter's too
        ),
        train_dataset=data,
        processing_class=tokenizer,
        data_collator=_Filled(collator, data[job["data"]["filler"]], arguments["per_device_train_batch_size"]),
        conduct=conduct,
    )


def _switch_off_dropout(model: Any) -> None:
    """Switch off the model's own dropout, as TRL does; an adapter keeps what the spec gives it."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and ".lora_dropout." not in name:
            module.p = 0.0
