"""Reinforcement learning with verifiable rewards: TRL's `GRPOTrainer`, in the promised order of prompts.

At each step every worker takes whole groups: its prompts, each with all its completions, which are drawn at once by
the rendering and the stop of evaluation, rewarded, and then trained on in as many passes as `micro_batch_size` asks
for. What is drawn depends on the seed, the step and the place in the step only, not on the number of workers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from trl.models import unwrap_model_for_generation

from components.common.adapters import read_stack
from components.common.digests import seed_for
from components.common.generation import rooms_of, sample_tokens
from components.common.models import context_length
from components.training.adapters import refuse_head_adapter
from components.training.batches import split_evenly
from components.training.ordered import Conduct, OrderedTrainer, trainer_arguments
from components.training.rollouts import (
    KEPT,
    RolloutTable,
    reward_functions,
    times_read,
    tokenize_prompts,
    uses_vllm,
)

ROLLOUTS = "rollouts.parquet"
_MEAN_OF_SEQUENCES = ("grpo", "dr_grpo", "bnpo")
"""Losses that TRL averages within a pass and then over the passes."""


class OrderedGRPOTrainer(OrderedTrainer, GRPOTrainer):  # type: ignore[misc]  # trl carries no types
    """`GRPOTrainer` in the promised order, on prompts that are tokens already.

    Args:
        context: Tokens that the model's positions allow.
        table: Keeps a few rollouts.
        generated: Tokens drawn so far.
        shared: Whether the workers share the model's weights, so that all of them must generate at once.
    """

    def __init__(
        self, *args: Any, context: int, table: RolloutTable, generated: int, shared: bool, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.eos_token_ids = [int(self._tokenizer.eos_token_id)]  # where evaluation stops
        self._context = context
        self._table = table
        self._generated = generated
        self._shared = shared
        self._rows_of_step = 0

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], None]:
        """The step's prompts of this worker, each as often as it has completions; every pass is handed all of them."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        step = [row for batch in batches for row in batch for _ in range(self.num_generations)]
        return [step] * len(batches), None

    def _prepare_inputs(self, generation_batch: list[dict[str, Any]]) -> dict[str, Any]:
        """One pass's part of the step's rollouts; the first pass makes them all."""
        passes = self.args.steps_per_generation
        if self._step % passes == 0:
            made = self._roll_out(generation_batch)
            self._rows_of_step = len(generation_batch)
            parts = split_evenly(range(self._rows_of_step), passes)
            self._buffered_inputs = [{name: _part(value, rows) for name, value in made.items()} for rows in parts]
        return self._buffered_inputs[self._step % passes]  # type: ignore[no-any-return]  # it is a list of dictionaries

    def _roll_out(self, prompts: list[dict[str, Any]]) -> dict[str, Any]:
        for log in (self._logs["prompt"], self._logs["completion"], self._logs["advantages"]):
            log.clear()
        self._logs["rewards"].clear()
        made: dict[str, Any] = self._generate_and_score_completions(prompts)
        metrics = self._metrics["train"]
        everyone = len(prompts) * self.accelerator.num_processes
        self._generated += round(metrics["completions/mean_length"][-1] * everyone)
        step = self.state.global_step + 1
        if self._table.due(step):
            self._table.add(self._told(step))
        return made

    def _told(self, step: int) -> list[dict[str, Any]]:
        logs = self._logs
        texts = self._tokenizer.batch_decode(list(logs["prompt"])[:KEPT])
        return [
            {
                "step": step,
                "prompt": texts[place],
                "completion": logs["completion"][place],
                **{name: values[place] for name, values in logs["rewards"].items()},
                "advantage": logs["advantages"][place],
            }
            for place in range(len(texts))
        ]

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return prompts, None, {}

    def _generate_single_turn(self, prompt_ids: list[list[int]], *more: Any, **others: Any) -> Any:
        """A completion of each prompt, up to and including the end token."""
        if self.use_vllm:
            return super()._generate_single_turn(prompt_ids, *more, **others)
        rows = len(prompt_ids)
        batches, step = self.conduct.batches, self.state.global_step + 1
        # Each row's own: what is drawn must not depend on which rows a worker has.
        rooms = rooms_of(prompt_ids, self.max_completion_length, self._context)
        told = torch.tensor(rooms, device=self.accelerator.device)
        everyones = self.accelerator.gather(told).tolist() if self._shared else ()
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
            self.accelerator.autocast(),
        ):
            model.eval()
            completions = sample_tokens(
                model,
                self._tokenizer,
                prompt_ids,
                rooms,
                self.temperature,
                seed_for(self.conduct.progressed.seed, f"rollouts of step {step}"),
                (batches.rank * rows, batches.workers * rows),
                everyones,
            )
            model.train()
        return completions, None

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """The pass's part of the step's loss, by its share of the completions where passes are averaged."""
        loss = super().compute_loss(model, inputs, return_outputs, **kwargs)
        if self.loss_type in _MEAN_OF_SEQUENCES:
            loss = loss * len(inputs["completion_ids"]) * self.args.steps_per_generation / self._rows_of_step
        return loss

    def growing(self) -> dict[str, Any]:
        """The rollouts that are kept, and the tokens drawn so far by all workers."""
        return {"rollouts": self._table.rows, "generated_tokens": self._generated}


def _part(value: Any, rows: list[int]) -> Any:
    """The rows of one pass, of what has rows."""
    return value[rows[0] : rows[-1] + 1] if isinstance(value, torch.Tensor) and value.ndim else value


def prepare(job: dict[str, Any], tokenizer: Any, order: list[str], limit: int, out: Path) -> dict[str, Any]:
    """Write the phase's prompts as tokens and say in which order they are read.

    Args:
        job: Of the phase, see `fit`.
        tokenizer: The model's.
        order: Example ids in the promised order.
        limit: Tokens of a prompt with its completion.
        out: The Arrow file to write.

    Returns:
        `rows` (row numbers in the promised order), `ids` (by row number), `filler` (none: every step is full), and
        `counts`: `tokens` are those of the prompts, once for each completion; completions are counted as they are
        drawn, in the phase's `extra`.

    Raises:
        UserError: If the generator that is asked for is not there.
    """
    settings = job["plan"]["settings"]
    uses_vllm(job)
    files = {int(tier): Path(path) for tier, path in job["tiers"].items()}
    data = tokenize_prompts(tokenizer, files, order, limit, settings["rewards"], out)
    place = {name: row for row, name in enumerate(data.ids)}
    rows = [place[name] for name in order]
    return {
        "rows": rows,
        "ids": data.ids,
        "filler": None,
        "counts": {
            "examples": len(data.ids),
            "tokens": settings["samples"] * times_read(rows, data.lengths),
            "response_tokens": 0,
            "truncated": 0,
        },
    }


def arrange(job: dict[str, Any], model: Any) -> None:
    """See that the model can be trained; prompts are read as they come, so there is nothing to arrange.

    Args:
        job: Of the phase.
        model: The model that is trained.

    Raises:
        UserError: If it has an adapter that cannot be trained.
    """
    refuse_head_adapter(model)


def make_trainer(job: dict[str, Any], conduct: Conduct, model: Any, tokenizer: Any) -> OrderedGRPOTrainer:
    """The trainer of one worker."""
    settings, before = job["plan"]["settings"], conduct.progressed.extra
    arguments = trainer_arguments(job, conduct.batches, conduct.scratch / "trainer")
    arguments["per_device_train_batch_size"] *= settings["samples"]  # TRL counts completions
    functions = reward_functions(settings["rewards"])
    adapted = hasattr(model, "peft_config")
    if not adapted:
        model.config._name_or_path = job["model"]  # from here TRL loads the reference
    context = min(settings["max_length"], context_length(Path(job["model"])))
    first = conduct.rank == 0
    trainer = OrderedGRPOTrainer(
        model=model,
        reward_funcs=functions,
        args=GRPOConfig(
            **arguments,
            num_generations=settings["samples"],
            max_completion_length=settings["max_new_tokens"],
            temperature=settings["temperature"],
            beta=settings["beta"],
            epsilon=settings["epsilon"],
            loss_type=settings["loss"],
            reward_weights=[1 / len(functions)] * len(functions),
            num_iterations=1,
            shuffle_dataset=False,
            use_vllm=uses_vllm(job),
            generation_kwargs={"stop_token_ids": [int(tokenizer.eos_token_id)]} if uses_vllm(job) else None,
        ),
        train_dataset=Dataset.from_file(job["data"]["file"]),
        processing_class=tokenizer,
        conduct=conduct,
        context=context,
        table=RolloutTable(
            conduct.batches.steps, before.get("rollouts", []), Path(job["out"]) / ROLLOUTS if first else None
        ),
        generated=int(before.get("generated_tokens", 0)),
        shared=job["compute"]["strategy"] != "ddp",
    )
    if adapted and settings["beta"]:
        _refer_to_start(model, Path(job["model"]), settings["adapter"])
    return trainer


def _refer_to_start(model: Any, parent: Path, how: str) -> None:
    """Make the reference of an adapter what the phase started from: TRL copies the adapter as it is, also resumed."""
    active = read_stack(parent).active
    if how != "continue" or active is None:
        model.delete_adapter("ref")  # a new adapter starts as nothing, so TRL switches it off instead
        return
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(parent / active / "adapter_model.safetensors"), adapter_name="ref")
    for name, module in model.named_modules():
        if name.endswith(".lora_dropout.ref") and isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # a reference draws nothing
    model.set_adapter("default")
