"""What a machine cannot do is refused, each time with one remedy; what it can is not."""

from __future__ import annotations

import importlib.util

import pytest

from components.common.errors import UserError
from components.common.models import model_folder
from components.common.spec import Spec
from pipelines import compute_check
from pipelines.compute_check import Machine, check_compute, check_seen, check_targets, machine_of

CPU = Machine(cores=2, memory=8 << 30)
GPUS = Machine(cores=16, memory=128 << 30, gpus=(80 << 30,) * 4)
ON_GPU = {"gpus_per_worker": 1}


def spec(compute=None, adapter=None, phases=None, **more):
    values = {"name": "x", "data": {"train": [{"path": "lab://instructions"}]}, "controls": [], **more}
    values["compute"] = compute or {}
    if adapter is not None:
        values["model"] = {"adapter": adapter}
    if phases is not None:
        values["curriculum"] = {"phases": phases}
    return Spec.model_validate(values)


def refused(asked, machine=CPU):
    with pytest.raises(UserError) as caught:
        check_compute(asked, machine)
    return caught.value.message, caught.value.remedy


@pytest.fixture
def installed(monkeypatch):
    """Makes packages look installed, or not."""

    def look(*names):
        gpu_only = {"deepspeed", "liger_kernel", "bitsandbytes", "vllm"}
        real = importlib.util.find_spec

        def find(name, *rest):
            return (real("json") if name in names else None) if name in gpu_only else real(name, *rest)

        monkeypatch.setattr(importlib.util, "find_spec", find)

    look()
    return look


@pytest.mark.parametrize(
    ("compute", "machine", "message", "remedy"),
    [
        ({**ON_GPU}, CPU, "asks for 1 GPU(s), and this machine has 0", "`compute.gpus_per_worker: 0`"),
        ({**ON_GPU, "workers": 8}, GPUS, "asks for 8 GPU(s), and this machine has 4", "`compute.workers` to 4"),
        ({**ON_GPU, "workers": [5, 8]}, GPUS, "asks for at least 5 GPU(s)", "`compute.workers` to 4"),
        ({"workers": 3}, CPU, "compute.workers is 3, and this machine has 2 cores", "lower `compute.workers`"),
        ({"workers": 2, "strategy": "fsdp"}, CPU, "would train with ddp and not say so", "`compute.strategy: ddp`"),
        ({"workers": 2, "strategy": "deepspeed_zero3"}, CPU, "on a CPU", "`compute.strategy: ddp`"),
        ({**ON_GPU, "strategy": "fsdp"}, GPUS, "there may be but one", "`compute.strategy: ddp`"),
        ({**ON_GPU, "strategy": "fsdp", "workers": [1, 4]}, GPUS, "there may be but one", "`compute.workers` to 2"),
        (
            {**ON_GPU, "strategy": "deepspeed_zero3", "workers": 2},
            GPUS,
            "needs the package deepspeed, which is not installed",
            "set `compute.strategy: fsdp`, or install it: `pip install -e '.[gpu]'`",
        ),
        ({"liger": True}, CPU, "`compute.liger: true` works on a GPU only", "set `compute.liger: false`"),
        ({**ON_GPU, "liger": True}, GPUS, "needs the package liger-kernel", "set `compute.liger: false`"),
    ],
    ids=str,
)
def test_a_machine_refuses_what_it_cannot_do(installed, compute, machine, message, remedy):
    said = refused(spec(compute), machine)
    assert message in said[0]
    assert remedy in said[1]


def test_four_bit_weights_need_a_gpu_and_their_package_and_are_not_sharded(installed):
    nf4 = {"quantize": "nf4"}
    assert refused(spec(adapter=nf4))[0].startswith("`adapter.quantize: nf4` works on a GPU only")
    assert "needs the package bitsandbytes" in refused(spec(ON_GPU, nf4), GPUS)[0]
    installed("bitsandbytes")
    check_compute(spec(ON_GPU, nf4), GPUS)
    sharded = spec({**ON_GPU, "workers": 2, "strategy": "fsdp"}, nf4)
    assert "fsdp cannot shard them" in refused(sharded, GPUS)[0]


def test_vllm_needs_a_gpu_and_its_package(installed):
    phases = [{"method": "grpo", "tiers": [1], "generator": "vllm"}]
    assert refused(spec(phases=phases)) == (
        "`generator: vllm` of the phase grpo works on a GPU only, and compute asks for none",
        "set `generator: auto`, or give each worker a GPU with `compute.gpus_per_worker: 1`",
    )
    assert "needs the package vllm" in refused(spec(ON_GPU, phases=phases), GPUS)[0]
    installed("vllm")
    check_compute(spec(ON_GPU, phases=phases), GPUS)


def test_rewards_and_verifiers_that_are_not_there_are_refused():
    grpo = [{"method": "grpo", "tiers": [1], "rewards": ["exact", "no_such.module:score"]}]
    assert refused(spec(phases=grpo))[0] == "the reward no_such.module:score: the module no_such is not found"
    dpo = [{"method": "dpo", "tiers": [1], "generate": {"verifier": "exactly"}}]
    assert "reward 'exactly' is not known" in refused(spec(phases=dpo))[0]


@pytest.mark.parametrize(
    "compute",
    [{}, {"workers": 2}, {"workers": [1, 64]}, {"gradient_checkpointing": True}],
    ids=str,
)
def test_what_a_cpu_can_do_is_let_through(compute):
    check_compute(spec(compute, model={"dtype": "bfloat16"}), CPU)


def test_what_gpus_can_do_is_let_through(installed):
    installed("deepspeed", "liger_kernel")
    for strategy in ("ddp", "fsdp", "deepspeed_zero3"):
        check_compute(spec({**ON_GPU, "workers": [2, 8], "strategy": strategy, "liger": True}), GPUS)


def test_target_modules_must_be_layers_of_the_model():
    lab = model_folder("lab")
    check_targets(spec(adapter={"target_modules": ["q_proj", "self_attn.v_proj"]}), lab)
    with pytest.raises(UserError) as caught:
        check_targets(spec(adapter={"target_modules": ["q_proj", "query"]}), lab)
    assert caught.value.message.startswith("`adapter.target_modules` names 'query'")
    assert "q_proj" in caught.value.remedy and "lm_head" not in caught.value.remedy
    with pytest.raises(UserError, match="'proj'"):
        check_targets(spec(adapter={"target_modules": ["proj"]}), lab)


def test_gpus_are_counted_as_this_process_may_use_them(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 81559\necho 81559\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert compute_check.this_machine().gpus == (81559 << 20,) * 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert compute_check.this_machine().gpus == (81559 << 20,)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert compute_check.this_machine().gpus == ()
    tool.write_text("#!/bin/sh\necho no devices were found\nexit 9\n")
    monkeypatch.setattr(compute_check, "_GPUS", tmp_path / "none")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert compute_check.this_machine().gpus == ()


RAYJOB = {"ray": "rayjob", "kubernetes": {"worker": {"memory": "100Gi"}, "head": {"memory": "1.5Gi"}}}
GIB = 1 << 30


def test_work_that_goes_elsewhere_is_not_measured_by_this_machine(monkeypatch, installed):
    monkeypatch.setattr(compute_check, "this_machine", lambda: pytest.fail("this machine was looked at"))
    large = {**ON_GPU, "workers": 64, "strategy": "deepspeed_zero3", "liger": True}
    for compute in ({**RAYJOB, **large}, {"ray": "http://head:8265", **large}):
        check_compute(spec(compute))  # the packages are those of the image
    assert machine_of(spec({**RAYJOB, **ON_GPU, "workers": 2})) == Machine(2, 200 * GIB, (0, 0), "a RayJob")
    assert machine_of(spec(RAYJOB)).memory == 3 * GIB // 2  # the head does the work
    assert machine_of(spec({"ray": "http://head:8265"})).memory is None


def test_what_no_machine_can_do_is_refused_elsewhere_too():
    asked = spec({**RAYJOB, "strategy": "fsdp", "workers": 2})
    assert "compute asks for none" in refused(asked, None)[0]


def test_a_submitted_pipeline_works_in_its_pods_where_nothing_else_is_said():
    small = {"kubernetes": {"pipeline": {"cpu": "500m", "memory": "2Gi"}}}
    assert machine_of(spec(small), submitted=True) == Machine(1, 2 * GIB, (), "a pod of the pipeline")
    asked = spec({**small, "workers": 8})
    with pytest.raises(UserError, match=r"compute\.workers is 8, and a pod of the pipeline has 1 cores"):
        check_compute(asked, machine_of(asked, submitted=True))


@pytest.mark.parametrize(
    "compute", [RAYJOB, {"scoring": {"ray": "rayjob"}}, {"evaluation": {"ray": "rayjob"}}], ids=str
)
def test_rayjobs_need_a_store_and_a_server_that_they_can_see(compute):
    with pytest.raises(UserError, match="RayJobs cannot see the store runs/store"):
        check_seen(spec(compute))
    with pytest.raises(UserError, match="RayJobs cannot see the tracking store sqlite"):
        check_seen(spec(compute, store="s3://bucket/store"))
    check_seen(spec(compute, store="s3://bucket/store", tracking={"uri": "http://mlflow:5000"}))
    check_seen(spec(compute, store="s3://bucket/store", tracking={"enabled": False}))
    check_seen(spec())
