"""What the trainers of all methods have in common, laid over TRL's: the promised order, one schedule, checkpoints."""

from __future__ import annotations

import json
import math
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import (
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    get_scheduler,
)

from components.training import state
from components.training.batches import StepBatches
from components.training.curve import Curve, Diverged
from components.training.keeping import Keeper, Selection
from components.training.state import Progressed
from components.training.stopping import Stopped, asked


class Conduct:
    """How a worker's training goes on, beside what it trains; made by the worker, used by the trainer.

    Args:
        batches: The worker's batches, from the first step that is not done.
        progressed: What is done.
        curve: The learning curve.
        keeper: Saves the state; None on workers other than the first.
        selection: Compares checkpoints; None on other workers and where the last one is taken.
        every: Steps between checkpoints.
        span: (steps before the phase on its schedule, steps of the whole schedule).
        warmup: Share of the schedule in which the learning rate rises.
        rank: This worker's number.
        scratch: The phase's scratch folder, which all workers see.
        resume: A folder with the optimizer's state to start from, or None.
        order_file: Where to note the rows that are really read, or None.
        sharded: Whether the model is spread over the workers, so that its state takes all of them.
        saves: Whether checkpoints are taken.
    """

    def __init__(
        self,
        batches: StepBatches,
        progressed: Progressed,
        curve: Curve,
        keeper: Keeper | None,
        selection: Selection | None,
        every: int,
        span: tuple[int, int],
        warmup: float,
        rank: int,
        scratch: Path,
        resume: Path | None,
        order_file: Path | None = None,
        sharded: bool = False,
        saves: bool = True,
    ) -> None:
        self.batches, self.progressed, self.curve = batches, progressed, curve
        self.keeper, self.selection = keeper, selection
        self.every, self.span, self.warmup, self.rank = every, span, warmup, rank
        self.scratch, self.resume, self.order_file = scratch, resume, order_file
        self.sharded, self.saves = sharded, saves
        self.began = time.monotonic()

    def after_step(self, step: int, model: Any, optimizer: Any, extra: dict[str, Any]) -> None:
        """Compare, save, stop, as is due after an optimizer step.

        Raises:
            Stopped: If the phase was asked to stop; its state is saved then.
        """
        progressed, steps = self.progressed, self.batches.steps
        if self.keeper is None and not self.sharded:
            return
        progressed.step = step
        if self.selection is not None and self.keeper is not None and self.selection.due(step, steps):
            self.selection.compare(model, progressed, self.keeper)
        # A sharded state of the last step could not be taken up again, as there would be nothing left to train.
        stop = self._asked(model) and not (self.sharded and step == steps)
        if self.saves and (stop or (step % self.every == 0 and step < steps)):
            self._save(model, optimizer, extra)
        if stop:
            if self.keeper is not None:
                self.keeper.wait()
            raise Stopped

    def _asked(self, model: Any) -> bool:
        """Whether to stop; workers that share a model must do so after the same step."""
        stop = asked(self.scratch)
        if self.sharded:
            flag = torch.tensor(float(stop), device=next(model.parameters()).device)
            torch.distributed.all_reduce(flag)
            return bool(flag > 0)
        return stop

    def _save(self, model: Any, optimizer: Any, extra: dict[str, Any]) -> None:
        def tensors() -> tuple[state.Tensors, state.Tensors]:
            if self.sharded:
                return whole
            return state.copied(state.trained(model)), state.copied(state.optimizer_tensors(optimizer))

        if self.sharded:
            whole = state.gathered(model, optimizer)
        if self.keeper is not None:
            progressed = self.progressed
            now = replace(
                progressed,
                points=list(self.curve.points),
                seconds=progressed.seconds + time.monotonic() - self.began,
                selected=list(progressed.selected),
                extra=extra,
            )
            self.keeper.save(now, tensors)


class _Steps(TrainerCallback):  # type: ignore[misc]  # transformers is not followed by mypy
    """Puts the trainer where the phase left off, and seeds every step."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._conduct: Conduct = trainer.conduct

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called when the optimizer is made and no step is done."""
        state.global_step = self._conduct.progressed.step
        self._trainer._globalstep_last_logged = state.global_step  # the first loss is of one step, not of all before

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called when a step's batches are read and nothing is computed."""
        seed_step(self._conduct, state.global_step + 1)


def seed_step(conduct: Conduct, step: int) -> None:
    """Seed the random generators of this worker for a step."""
    state.seed_step(conduct.progressed.seed, step, conduct.rank)


class OrderedTrainer:
    """Laid over a trainer of TRL: `class OrderedSFTTrainer(OrderedTrainer, SFTTrainer)`.

    Every worker is dealt its own micro-batches, so the loader must not be sharded a second time: it is handed to the
    trainer as it is.
    """

    def __init__(self, *args: Any, conduct: Conduct, **kwargs: Any) -> None:
        self.conduct = conduct
        super().__init__(*args, **kwargs)
        it: Any = self
        it.remove_callback(PrinterCallback)  # every point goes to `Curve`; a print each is noise
        it.add_callback(conduct.curve)
        it.add_callback(_Steps(self))

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The promised batches; with an `order_file`, every row that is really read is noted in it."""
        it: Any = self
        rows = it.train_dataset
        if self.conduct.order_file is not None:
            rows = _Noting(rows, self.conduct.order_file)
        # A generator of its own: beginning to read must not draw from the one that the model draws from.
        return DataLoader(
            rows, batch_sampler=self.conduct.batches, collate_fn=it.data_collator, generator=torch.Generator()
        )

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule over its whole span, at the place where the phase is; lowered where it rolled back."""
        it: Any = self
        conduct, args = self.conduct, it.args
        before, whole = conduct.span
        own = optimizer or it.optimizer
        for group in own.param_groups:
            group["lr"] = args.learning_rate * conduct.progressed.lr_factor
            group.pop("initial_lr", None)
        name = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
        it.lr_scheduler = get_scheduler(
            "constant_with_warmup" if name == "constant" and conduct.warmup else name,
            optimizer=own,
            # The first step of a warm-up has a rate of 0: a schedule of one step has none.
            num_warmup_steps=min(math.ceil(whole * conduct.warmup), whole - 1),
            num_training_steps=whole,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a schedule moves before its optimizer: it is being put into place
            for _ in range(before + conduct.progressed.step):
                it.lr_scheduler.step()
        it._created_lr_scheduler = True
        if conduct.resume is not None and conduct.sharded:
            state.load_gathered(it.model, own, conduct.resume / state.OPTIMIZER)
        elif conduct.resume is not None:
            state.load_optimizer(own, conduct.resume / state.OPTIMIZER)
        return it.lr_scheduler

    def _clip_grad_norm(self, model: Any) -> Any:
        """Clips, and stops before a gradient that is not a number gets into the weights.

        Raises:
            Diverged: If the loss or the gradient is not a number.
        """
        it: Any = self
        norm = super()._clip_grad_norm(model)  # type: ignore[misc]  # of the trainer that this is laid over
        step = it.state.global_step + 1
        if not math.isfinite(float(norm)):
            loss = float(it._tr_loss)
            what = (
                f"the training loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {float(norm)}"
            )
            rate = float(it.lr_scheduler.get_last_lr()[0])
            raise Diverged(step, rate, what, self.conduct.batches.slice(step))
        return norm

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """After a step's point is on the curve: compare, save, stop, as is due."""
        it: Any = self
        super()._maybe_log_save_evaluate(*args, **kwargs)  # type: ignore[misc]  # of the trainer below
        step = it.state.global_step
        if step > self.conduct.progressed.step:
            self.conduct.after_step(step, it.accelerator.unwrap_model(it.model), it.optimizer, self.growing())

    def growing(self) -> dict[str, Any]:
        """What the method's trainer counts over the whole phase, to be kept in a checkpoint."""
        return {}


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


def trainer_arguments(job: dict[str, Any], batches: StepBatches, out: Path) -> dict[str, Any]:
    """The arguments of `TrainingArguments` that all methods share."""
    settings, compute = job["plan"]["settings"], job["compute"]
    workers = batches.workers
    sharded: dict[str, Any] = {}
    if compute["strategy"] == "fsdp":
        sharded = {"fsdp": "full_shard auto_wrap", "fsdp_config": {"fsdp_version": 2}}
    elif compute["strategy"] == "deepspeed_zero3":
        sharded = {"deepspeed": _zero3()}
    return {
        **sharded,
        "output_dir": str(out),
        "num_train_epochs": 1,  # the sequence holds all epochs
        "max_steps": batches.steps,
        "per_device_train_batch_size": math.ceil(settings["batch_size"] / (workers * batches.passes)),
        "gradient_accumulation_steps": batches.passes,
        "learning_rate": settings["learning_rate"],
        "weight_decay": settings["weight_decay"],
        "lr_scheduler_type": settings["schedule"],
        "adam_beta1": settings["adam_betas"][0],
        "adam_beta2": settings["adam_betas"][1],
        "max_grad_norm": settings["max_grad_norm"],
        "bf16": job["model_spec"]["dtype"] == "bfloat16",
        "gradient_checkpointing": compute["gradient_checkpointing"],
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if compute["gradient_checkpointing"] else None,
        "use_liger_kernel": compute["liger"],
        "remove_unused_columns": False,
        "seed": job["training_seed"],
        "data_seed": job["training_seed"],
        "use_cpu": not job["gpus_per_worker"],
        "ddp_backend": "gloo" if workers > 1 and not job["gpus_per_worker"] else None,
        "ddp_find_unused_parameters": False,
        "logging_steps": 1,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # it would show the mean of the losses before instead
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
    }


def _zero3() -> dict[str, Any]:
    return {
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "bf16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
    }
