"""The supervised trainer: TRL's `SFTTrainer`, fed in the promised order, and what it says while it trains."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig, SFTTrainer

from components.common.errors import UserError
from components.training.batches import StepBatches

Point = dict[str, float]


class OrderedSFTTrainer(SFTTrainer):  # type: ignore[misc]  # trl carries no types
    """`SFTTrainer` whose batches come from a `StepBatches` rather than from a sampler of its own.

    Every worker is dealt its own micro-batches, so the loader must not be sharded a second time: it is handed to the
    trainer as it is.
    """

    def __init__(self, *args: Any, batches: StepBatches, order_file: Path | None = None, **kwargs: Any) -> None:
        self._batches = batches
        self._order_file = order_file
        super().__init__(*args, **kwargs)
        self.remove_callback(PrinterCallback)  # every point goes to `Curve`; a print each is noise

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The promised batches; with an `order_file`, every row that is really read is noted in it."""
        rows = self.train_dataset if self._order_file is None else _Noting(self.train_dataset, self._order_file)
        return DataLoader(rows, batch_sampler=self._batches, collate_fn=self.data_collator)


class _Noting(Dataset[Any]):
    """A dataset that writes down which rows are read, batch by batch."""

    def __init__(self, rows: Any, file: Path) -> None:
        self._rows = rows
        self._file = file

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, indices: list[int]) -> list[Any]:
        with self._file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(indices) + "\n")
        return [self._rows[index] for index in indices]


class Curve(TrainerCallback):  # type: ignore[misc]  # transformers is not followed by mypy
    """Keeps the learning curve and passes every point on; stops at a loss that is not a number.

    Attributes:
        points: {"step", "loss" (nats per response token), "learning_rate", "grad_norm", "tokens", "time" (Unix)}.
    """

    def __init__(self, on_point: Callable[[Point], None]) -> None:
        self.points: list[Point] = []
        self._on_point = on_point

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Called after every optimizer step."""
        if logs is None or "loss" not in logs:
            return
        point = {
            "step": float(state.global_step),
            "loss": float(logs["loss"]),
            "learning_rate": float(logs["learning_rate"]),
            "grad_norm": float(logs.get("grad_norm", 0.0)),
            "tokens": float(logs.get("num_tokens", 0.0)),
            "time": time.time(),
        }
        if not math.isfinite(point["loss"]):
            raise UserError(
                f"the training loss is {point['loss']} at step {state.global_step} "
                f"(learning rate {point['learning_rate']:.3g})",
                "lower `curriculum.sft.learning_rate` or check the data of this phase",
            )
        self.points.append(point)
        self._on_point(point)


def trainer_config(job: dict[str, Any], batches: StepBatches, out: Path) -> SFTConfig:
    """TRL's configuration of a phase.

    The schedule is in steps, so that it does not depend on how the steps are dealt to workers.
    """
    settings = job["plan"]["settings"]
    return SFTConfig(
        output_dir=str(out),
        num_train_epochs=1,  # the sequence holds all epochs
        per_device_train_batch_size=math.ceil(settings["batch_size"] / (job["workers"] * batches.passes)),
        gradient_accumulation_steps=batches.passes,
        learning_rate=settings["learning_rate"],
        weight_decay=settings["weight_decay"],
        warmup_steps=math.ceil(batches.steps * settings["warmup_ratio"]),
        lr_scheduler_type=settings["schedule"],
        adam_beta1=settings["adam_betas"][0],
        adam_beta2=settings["adam_betas"][1],
        max_grad_norm=settings["max_grad_norm"],
        bf16=job["model_spec"]["dtype"] == "bfloat16",
        gradient_checkpointing=False,
        max_length=None,  # cut already, and counted
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        seed=job["training_seed"],
        data_seed=job["training_seed"],
        use_cpu=not job["gpus_per_worker"],
        ddp_backend="gloo" if job["workers"] > 1 and not job["gpus_per_worker"] else None,
        ddp_find_unused_parameters=False,
        logging_steps=1,
        logging_first_step=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
