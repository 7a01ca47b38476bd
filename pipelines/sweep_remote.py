"""A sweep on a cluster: all of it is one errand, whose driver hands phases to the nodes of its Ray cluster."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.common.digests import digest
from components.common.errand import INSIDE
from components.common.errors import UserError
from components.common.joining import begin
from components.common.launcher import StepFailed, connect_ray
from components.common.progress import EVENTS, PRINTED
from components.common.ray_driver import needs_gpu
from components.common.records import RunInfo
from components.common.session_call import resolve
from components.common.spec import Spec
from components.common.step import Step, errors_said
from pipelines.sweep_chains import Task
from pipelines.sweep_slots import Where
from pipelines.sweep_spec import Sweep
from pipelines.terminal import Terminal

STEP = "sweep"


def for_cluster(sweep: Sweep) -> Spec:
    """The base spec as the sweep's RayJob reads it: with workers for all slots at once."""
    base = sweep.resolved({})
    workers = (sweep.spec.slots or 1) * base.compute.most_workers
    return base.model_copy(update={"compute": base.compute.model_copy(update={"workers": workers})})


@errors_said
def run(context: str, sweep: str) -> str:
    """Run a sweep as a step of a pipeline; returns the reference of a `sweeps` entry.

    Its key names the run: another run of the same sweep may see other data, and finds what did not change in the store.

    Args:
        context: The run.
        sweep: The sweep, as `Sweep.to_json` gives it.
    """
    step = Step(begin(RunInfo.from_json(context)).to_json(), STEP)
    loaded = Sweep.from_json(sweep)
    key = digest({"run": step.info.run, "sweep": sweep})

    def make(folder: Path) -> dict[str, Any]:
        from pipelines.sweep import run_sweep

        written = run_sweep(loaded, folder, Terminal(sys.stdout, 140), on_nodes())
        shutil.rmtree(folder / "ray-logs", ignore_errors=True)
        return {name: written[name] for name in ("trials", "phases_distinct", "phases_trained", "verdict")}

    entry, reused = step.find_or_make("sweeps", key, make, heavy=for_cluster(loaded))
    return step.finish(entry, reused, entry.info)


def on_nodes() -> Where:
    """Work is done in tasks of the Ray cluster that this process drives, on nodes with a GPU where one is needed.

    A phase of several workers gets them from Ray itself; its own process then needs nothing, and sits anywhere.
    """
    connect_ray()  # here, as later Tune's thread and the slots' would all do it at once
    import ray

    under_way: set[Any] = set()

    def do(task: Task, arguments: dict[str, Any]) -> None:
        spec = RunInfo.from_json(arguments["context"]).parsed()
        alone = task.kind not in ("phases", "optimizers") or spec.compute.most_workers == 1
        gpu = needs_gpu(task.kind, spec)
        # As many cores as it has threads: two pieces on a node do not take each other's. More than any node has would
        # be waited for without end.
        cores = 1 if gpu else min(spec.compute.threads or 1, max(_cores_of_nodes(), default=1))
        needs = {"num_cpus": cores * alone, "num_gpus": int(gpu)}
        # Never again by Ray itself: the next attempt begins with a look at what is there.
        remote = ray.remote(max_retries=0, **needs)(call_there).remote(task.target, arguments)
        under_way.add(remote)
        try:
            ray.get(remote)
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, UserError) else StepFailed(str(error.cause)) from error
        except ray.exceptions.RayError as error:  # the node, or its process, is gone
            raise StepFailed(f"{type(error).__name__}: {error}") from error
        finally:
            under_way.discard(remote)

    def stop() -> None:
        for remote in list(under_way):
            ray.cancel(remote, force=False)  # a KeyboardInterrupt there

    return Where(do, stop, lambda slots: shared(_cores_of_nodes(), slots))


def _cores_of_nodes() -> list[int]:
    """The cores of every node that has some; the head of a RayJob has none for work."""
    import ray

    found = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return [cores for cores in found if cores]


def shared(nodes: Sequence[int], slots: int) -> int:
    """Cores that so many slots have together, where no piece of work is spread over two nodes.

    Args:
        nodes: The cores of each node; none while a cluster that grows by itself has no node yet.
        slots: Pieces of work at a time.
    """
    if not nodes:
        return slots
    on_one = -(-slots // len(nodes))  # the slots that the fullest node has
    return slots * max(1, min(nodes) // on_one)


def call_there(target: str, arguments: dict[str, Any]) -> None:
    """Call a step's function on a node."""
    os.environ |= {INSIDE: "1", EVENTS: PRINTED}
    resolve(target)(**arguments)
