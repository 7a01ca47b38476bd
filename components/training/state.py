"""What a phase needs to go on where it was: a folder of safetensors and JSON, never a pickle.

`weights.safetensors` holds the weights that are trained, `optimizer.safetensors` the optimizer's tensors by parameter
number, `best.safetensors` the best weights so far where the phase selects, and `state.json` the rest. The state of
the random generators is a number: every step seeds them anew from the phase's seed, its own number and the worker's
(`seed_step`), so that a step draws the same however the training came to it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from components.common.digests import seed_for

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

WEIGHTS, OPTIMIZER, BEST, STATE = "weights.safetensors", "optimizer.safetensors", "best.safetensors", "state.json"
Tensors = dict[str, "torch.Tensor"]


@dataclass(slots=True)
class Progressed:
    """What is known of a phase after some steps, but for its tensors.

    Attributes:
        step: Optimizer steps done; also the data position, as step s reads the s-th slice of the sequence.
        seed: The phase's training seed, from which every step's random numbers come.
        points: The learning curve so far.
        seconds: Spent in the training loop so far, over all attempts.
        lr_factor: What rollbacks have multiplied the learning rate with.
        rollbacks: How often the phase went back.
        best: {"value", "step"} of the best checkpoint so far, where the phase selects.
        selected: {"step", "value"} of every checkpoint that was compared.
        extra: What the method's trainer adds (counts that go on growing).
    """

    step: int = 0
    seed: int = 0
    points: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    lr_factor: float = 1.0
    rollbacks: int = 0
    best: dict[str, float] | None = None
    selected: list[dict[str, float]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)


def trained(model: PreTrainedModel) -> Tensors:
    """The weights that are trained, by name; tied ones once."""
    seen: set[int] = set()
    found: Tensors = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in seen:
            seen.add(id(parameter))
            found[name] = parameter.detach()
    return found


def copied(tensors: Tensors) -> Tensors:
    """Copies in the CPU's memory, which later steps do not touch."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    """The optimizer's tensors as `<parameter number>.<name>`."""
    import torch

    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": value
        for number, values in state.items()
        for name, value in values.items()
        if isinstance(value, torch.Tensor)
    }


def gathered(model: Any, optimizer: Any) -> tuple[Tensors, Tensors]:
    """The trained weights and the optimizer's tensors of a model that is sharded over the workers.

    Every worker calls it; the first gets the tensors whole in the CPU's memory, the others nothing. Optimizer tensors
    are named `<weight>.<name>`.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    # Torch's types allow far more than is asked for here.
    weights, state = cast(Any, get_state_dict(model, _inner(optimizer), options=options))
    names = trained(model)  # tied weights once
    found = {
        f"{weight}.{name}": value
        for weight, values in state.get("state", {}).items()
        if weight in names
        for name, value in values.items()
    }
    return {name: weights[name] for name in names if name in weights}, found


def load_gathered(model: Any, optimizer: Any, file: Path) -> None:
    """Put back an optimizer's tensors that `gathered` gave; every worker calls it."""
    from safetensors.torch import load_file
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    inner, options = _inner(optimizer), StateDictOptions(full_state_dict=True)
    state: dict[str, dict[str, Any]] = {}
    for name, tensor in load_file(file).items():
        weight, _, what = name.rpartition(".")
        state.setdefault(weight, {})[what] = tensor
    whole: Any = {"state": state, "param_groups": get_optimizer_state_dict(model, inner)["param_groups"]}
    set_optimizer_state_dict(model, inner, whole, options=options)


def _inner(optimizer: Any) -> Any:
    """The optimizer under accelerate's wrapping."""
    return getattr(optimizer, "optimizer", optimizer)


def write(folder: Path, progressed: Progressed, weights: Tensors, optimizer: Tensors, best: Tensors | None) -> None:
    """Write a state into an empty folder."""
    from safetensors.torch import save_file

    save_file(weights, folder / WEIGHTS)
    save_file(optimizer, folder / OPTIMIZER)
    if best is not None:
        save_file(best, folder / BEST)
    (folder / STATE).write_text(json.dumps(asdict(progressed)), encoding="utf-8")


def read(folder: Path) -> Progressed:
    """What is known of the phase, from a folder that `write` made."""
    return Progressed(**json.loads((folder / STATE).read_text(encoding="utf-8")))


def load_weights(model: PreTrainedModel, file: Path) -> None:
    """Put trained weights back.

    Raises:
        ValueError: If they are not the weights of this model.
    """
    import torch
    from safetensors.torch import load_file

    stored, own = load_file(file), trained(model)
    if set(stored) != set(own):
        raise ValueError(f"{file} holds other weights than the model trains: {sorted(set(stored) ^ set(own))[:3]}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(stored[name])


def load_optimizer(optimizer: torch.optim.Optimizer, file: Path) -> None:
    """Put an optimizer's tensors back; its groups and hyperparameters stay as they are."""
    from safetensors.torch import load_file

    state: dict[int, dict[str, Any]] = {}
    for name, tensor in load_file(file).items():
        number, _, what = name.partition(".")
        state.setdefault(int(number), {})[what] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed every random generator for one step of one worker."""
    from transformers import set_seed

    set_seed(seed_for(seed, f"step {step}, worker {rank}"))
