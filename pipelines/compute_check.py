"""Whether the machines can do what a spec asks of them; said before any work, each with one remedy.

Where the work goes to a cluster, nothing of this machine counts: its pods are as the spec orders them, and the packages
are those of its image.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from components.common.curriculum import PhasePlan, expand
from components.common.errors import UserError
from components.common.rayjob_pods import amount
from components.common.spec import Spec
from components.common.spec_phases import GrpoSettings
from pipelines.pods import bytes_of

_GPUS = Path("/proc/driver/nvidia/gpus")
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is to train on.

    Attributes:
        cores: CPU cores.
        memory: Bytes of memory, or less where the container may have less; None where they cannot be told.
        gpus: Bytes of each GPU; 0 where they cannot be told.
        what: What it is, in words.
    """

    cores: int
    memory: int | None
    gpus: tuple[int, ...] = ()
    what: str = "this machine"


def this_machine() -> Machine:
    """What this machine has."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in _LIMITS:
        if limit.is_file() and (text := limit.read_text(encoding="ascii").strip()).isdigit():
            memory = min(memory, int(text))
    return Machine(os.cpu_count() or 1, memory, _gpus())


def machine_of(spec: Spec, submitted: bool = False) -> Machine:
    """What there is to train on: this machine, or what the spec orders on a cluster.

    Args:
        spec: The spec.
        submitted: Whether the pipeline runs on a cluster, and what is not sent elsewhere therefore in its pods.
    """
    compute, pods = spec.compute, spec.compute.kubernetes
    if compute.ray == "local":
        if not submitted:
            return this_machine()
        return Machine(
            max(1, round(amount(pods.pipeline.cpu))), bytes_of(pods.pipeline.memory), what="a pod of the pipeline"
        )
    least = compute.least_workers
    gpus = (0,) * (least * compute.gpus_per_worker)
    if compute.ray != "rayjob":
        return Machine(least, None, gpus, f"the Ray cluster at {compute.ray}")
    memory = least * bytes_of(pods.worker.memory) if least > 1 else bytes_of(pods.head.memory)
    return Machine(least, memory, gpus, "a RayJob")


def _gpus() -> tuple[int, ...]:
    """Bytes of every GPU that this process may use."""
    found: list[int] = []
    if shutil.which("nvidia-smi") is not None:
        asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]  # in MiB
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
        lines = answer.stdout.split("\n") if answer.returncode == 0 else []
        found = [int(line) << 20 if line.strip().isdigit() else 0 for line in lines if line.strip()]
    if not found and _GPUS.is_dir():
        found = [0] * len(list(_GPUS.iterdir()))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        found = found[: len([name for name in visible.split(",") if name.strip() not in ("", "-1")])]
    return tuple(found)


def check_compute(spec: Spec, machine: Machine | None = None) -> None:
    """See that what the spec asks for is there and can work: Ray would wait for a missing GPU for ever.

    Args:
        spec: The spec.
        machine: What there is; as `machine_of` where absent.

    Raises:
        UserError: Naming what is missing, with one remedy.
    """
    _check_workers(spec, machine or machine_of(spec))
    _check_strategy(spec)
    _check_packages(spec)
    for seed in spec.all_seeds[:1]:
        for curriculum in expand(spec, seed):
            for plan in curriculum.phases:
                _check_phase(spec, plan)


def check_seen(spec: Spec) -> None:
    """See that RayJobs can reach what the steps that wait for them name: they share no disk with this machine.

    Raises:
        UserError: Naming the store or the tracking server.
    """
    if "rayjob" not in spec.compute.places:
        return
    if not spec.store.startswith("s3://"):
        raise UserError(
            f"RayJobs cannot see the store {spec.store} of this machine",
            "set `store: s3://bucket/prefix`; `submit --allow-local` takes a folder that is in every pod",
        )
    if spec.tracking.enabled and not spec.tracking.uri.startswith("http"):
        raise UserError(
            f"RayJobs cannot see the tracking store {spec.tracking.uri} of this machine",
            "set `tracking.uri: http(s)://HOST`, or `tracking.enabled: false`",
        )


def _check_workers(spec: Spec, machine: Machine) -> None:
    compute, least = spec.compute, spec.compute.least_workers
    wanted = least * compute.gpus_per_worker
    at_least = "at least " if compute.most_workers > least else ""
    if wanted > len(machine.gpus):
        raise UserError(
            f"compute asks for {at_least}{wanted} GPU(s), and {machine.what} has {len(machine.gpus)}",
            "train on the CPU with `compute.gpus_per_worker: 0`"
            if not machine.gpus
            else f"lower `compute.workers` to {len(machine.gpus)}",
        )
    if least > max(machine.cores, 2):
        raise UserError(
            f"compute.workers is {compute.workers}, and {machine.what} has {machine.cores} cores",
            "lower `compute.workers`",
        )


def _check_strategy(spec: Spec) -> None:
    compute, adapter = spec.compute, spec.model.adapter
    if compute.strategy == "ddp":
        return
    if not compute.gpus_per_worker:
        raise UserError(
            f"`compute.strategy: {compute.strategy}` shards a model over GPUs, and compute asks for none: on a CPU the "
            "trainer would train with ddp and not say so",
            "set `compute.strategy: ddp`, or give each worker a GPU with `compute.gpus_per_worker: 1`",
        )
    if compute.least_workers < 2:
        raise UserError(
            f"`compute.strategy: {compute.strategy}` shards a model between workers, and there may be but one",
            "set `compute.strategy: ddp`, or `compute.workers` to 2 or more",
        )
    if adapter is not None and adapter.quantize != "none":
        raise UserError(
            f"`adapter.quantize: {adapter.quantize}` keeps the base weights whole in each worker: "
            f"{compute.strategy} cannot shard them",
            "set `compute.strategy: ddp`",
        )


@dataclass(frozen=True, slots=True)
class Package:
    """A package that a setting needs and that not every machine with phasetune has.

    Attributes:
        name: As pip calls it.
        setting: What needs it, as the spec says it.
        otherwise: What to set instead.
    """

    name: str
    setting: str
    otherwise: str


def packages_of(spec: Spec) -> list[Package]:
    """The packages that single settings need; each of them works on a GPU only."""
    compute, adapter, found = spec.compute, spec.model.adapter, []
    if compute.strategy == "deepspeed_zero3":
        found.append(Package("deepspeed", "`compute.strategy: deepspeed_zero3`", "set `compute.strategy: fsdp`"))
    if compute.liger:
        found.append(Package("liger-kernel", "`compute.liger: true`", "set `compute.liger: false`"))
    if adapter is not None and adapter.quantize == "nf4":
        found.append(Package("bitsandbytes", "`adapter.quantize: nf4`", "set `model.adapter.quantize: none`"))
    for plan in expand(spec, spec.all_seeds[0])[0].phases:
        if isinstance(plan.settings, GrpoSettings) and plan.settings.generator == "vllm":
            found.append(Package("vllm", f"`generator: vllm` of the phase {plan.name}", "set `generator: auto`"))
            break
    return found


def _check_packages(spec: Spec) -> None:
    for package in packages_of(spec):
        _need_gpu(spec, package.setting, package.otherwise)
        if spec.compute.ray == "local" and importlib.util.find_spec(package.name.replace("-", "_")) is None:
            how = "pip install vllm" if package.name == "vllm" else "pip install -e '.[gpu]'"
            raise UserError(
                f"{package.setting} needs the package {package.name}, which is not installed",
                f"{package.otherwise}, or install it: `{how}`",
            )


def _check_phase(spec: Spec, plan: PhasePlan) -> None:
    from components.common.rewards import check_reward

    if isinstance(plan.settings, GrpoSettings):
        for name in plan.settings.rewards:
            check_reward(name)
    if plan.generate is not None and plan.generate.verifier is not None:
        check_reward(plan.generate.verifier)


def _need_gpu(spec: Spec, what: str, otherwise: str) -> None:
    if not spec.compute.gpus_per_worker:
        raise UserError(
            f"{what} works on a GPU only, and compute asks for none",
            f"{otherwise}, or give each worker a GPU with `compute.gpus_per_worker: 1`",
        )


def check_targets(spec: Spec, folder: Path) -> None:
    """See that the adapter's target modules are layers of the model.

    Args:
        spec: The spec.
        folder: Of the base model; its safetensors are asked for names only.

    Raises:
        UserError: Naming the first that is none, and those that there are.
    """
    from components.common.model_shape import model_shape, target_linears

    adapter, shape = spec.model.adapter, model_shape(folder)
    if adapter is None or shape is None:
        return
    for name in adapter.target_modules:
        if not target_linears(shape, [name]):
            there = ", ".join(dict.fromkeys(linear.name for linear in shape.linears))
            raise UserError(
                f"`adapter.target_modules` names {name!r}, and no linear layer of the model is called that",
                f"take some of {there}, or none for all of them",
            )
