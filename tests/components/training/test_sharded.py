"""The state of a model that is spread over workers: gathered whole, put back, and nothing of it is lost."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file, save_file

from components.training import state

WORKERS = 2


def model_of() -> torch.nn.Module:
    """Its first and last weights are tied, as the embeddings of small language models are."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8), torch.nn.Linear(8, 16))
    model[3].weight = model[0].weight
    return model


def sharded() -> tuple[Any, torch.optim.Optimizer]:
    from torch.distributed.fsdp import fully_shard

    model = model_of()
    fully_shard(model[2])
    fully_shard(model)
    return model, torch.optim.AdamW(model.parameters(), lr=0.05)


def steps(model: Any, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    for number in numbers:
        torch.manual_seed(number)
        optimizer.zero_grad()
        (model(torch.randn(6, 8)) ** 2).mean().backward()
        optimizer.step()


def worker(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=WORKERS)
    out = Path(folder)
    straight, optimizer = sharded()
    steps(straight, optimizer, range(3))
    weights, tensors = state.gathered(straight, optimizer)
    if rank == 0:
        save_file(weights, out / "weights")
        save_file(tensors, out / "optimizer")
    torch.distributed.barrier()
    steps(straight, optimizer, range(3, 6))
    final, _ = state.gathered(straight, optimizer)

    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    again, second = sharded()
    stored = load_file(out / "weights")
    stored["3.weight"] = stored["0.weight"]
    set_model_state_dict(again, stored, options=StateDictOptions(full_state_dict=True))
    state.load_gathered(again, second, out / "optimizer")
    steps(again, second, range(3, 6))
    resumed, _ = state.gathered(again, second)
    if rank == 0:
        save_file(final, out / "final")
        save_file(resumed, out / "resumed")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sharded")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(worker, args=(port, str(out)), nprocs=WORKERS)
    return out


def test_the_first_worker_gets_everything_whole(folder):
    weights, optimizer = load_file(folder / "weights"), load_file(folder / "optimizer")
    whole = state.trained(model_of())
    assert {name: tensor.shape for name, tensor in weights.items()} == {n: t.shape for n, t in whole.items()}
    assert {f"{name}.{what}" for name in whole for what in ("exp_avg", "exp_avg_sq", "step")} == set(optimizer)


def test_training_goes_on_as_if_it_had_not_stopped(folder):
    final, resumed = load_file(folder / "final"), load_file(folder / "resumed")
    assert all(torch.equal(final[name], resumed[name]) for name in final)
    assert not torch.equal(final["0.weight"], load_file(folder / "weights")["0.weight"])
