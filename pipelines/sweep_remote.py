"""A sweep on a cluster: all of it is one errand, whose driver hands phases to the nodes of its Ray cluster."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from components.common.digests import digest
from components.common.joining import begin
from components.common.records import RunInfo
from components.common.spec import Spec
from components.common.step import Step, errors_said
from pipelines.sweep_spec import Sweep

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

        written = run_sweep(loaded, folder, Console(file=sys.stdout, width=140), on_nodes(loaded))
        shutil.rmtree(folder / "ray-logs", ignore_errors=True)
        return {name: written[name] for name in ("trials", "phases_distinct", "phases_trained", "verdict")}

    entry, reused = step.find_or_make("sweeps", key, make, heavy=for_cluster(loaded))
    return step.finish(entry, reused, entry.info)


def on_nodes(sweep: Sweep) -> Any:
    """Does work in tasks of the Ray cluster that this process drives, on nodes with a GPU where one is needed.

    A phase of several workers gets them from Ray itself; its own process then needs no GPU, and sits anywhere.
    """
    from components.common.launcher import connect_ray

    connect_ray()
    compute = sweep.resolved({}).compute
    gpus = compute.gpus_per_worker if compute.most_workers == 1 else 0
    cores = 1 if compute.most_workers == 1 else 0

    def do(target: str, arguments: dict[str, Any]) -> None:
        import ray

        from components.common.launcher import StepFailed

        # Never again by Ray itself: the next attempt begins with a look at what is there.
        task = ray.remote(num_cpus=cores, num_gpus=gpus, max_retries=0)(call_there)
        try:
            ray.get(task.remote(target, arguments))
        except ray.exceptions.RayTaskError as error:
            raise error.cause if hasattr(error.cause, "remedy") else StepFailed(str(error.cause)) from error
        except ray.exceptions.RayError as error:  # the node, or its process, is gone
            raise StepFailed(f"{type(error).__name__}: {error}") from error

    return do


def call_there(target: str, arguments: dict[str, Any]) -> None:
    """Call a step's function on a node."""
    import os

    from components.common.errand import INSIDE
    from components.common.progress import EVENTS, PRINTED
    from components.common.session import resolve

    os.environ |= {INSIDE: "1", EVENTS: PRINTED}
    resolve(target)(**arguments)
