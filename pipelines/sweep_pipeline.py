"""A sweep as a Kubeflow pipeline: one task, which waits for one RayJob.

Unrolled into a task for each phase it would be far too large for Kubeflow, and could not change its mind.

KFP reads the annotations of components and pipelines, so this module does not postpone their evaluation.
"""

from pathlib import Path
from typing import Any

from kfp import dsl

from components.common.image import IMAGE
from components.common.spec import Spec
from pipelines.sweep_spec import Sweep


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def sweep_curricula(context: str, sweep: str, page: dsl.Output[dsl.HTML], results: dsl.Output[dsl.Artifact]) -> str:
    """Run a sweep; returns the reference of its results."""
    import json
    import shutil

    from components.common.store import reading
    from pipelines.sweep_remote import run

    reference = run(context, sweep)
    folder = reading(json.loads(reference)["uri"])
    shutil.copyfile(folder / "sweep.json", results.path)
    if (folder / "sweep.html").is_file():
        shutil.copyfile(folder / "sweep.html", page.path)
    return reference


def sent_spec(sweep: Sweep) -> Spec:
    """What the pipeline's run is called and where its pod belongs; the sweep itself makes MLflow's parent."""
    base = sweep.resolved({})
    tracking = base.tracking.model_copy(update={"enabled": False})
    return base.model_copy(update={"name": sweep.spec.name, "tracking": tracking})


def compile_sweep(sweep: Sweep, out: Path) -> None:
    """Write the pipeline's IR for a cluster."""
    from kfp import compiler

    from pipelines.phased import cluster_info, kfp_name
    from pipelines.pods import image_of, place

    spec = sent_spec(sweep)
    image = image_of(spec)

    @dsl.pipeline(name=kfp_name(spec.name), description=f"phasetune sweep: {spec.name}")
    def sweeping() -> None:
        task: Any = sweep_curricula(context=cluster_info(spec).to_json(), sweep=sweep.to_json())
        task.set_display_name("sweep")
        task.set_caching_options(False)  # the store is the cache
        place(task, spec, image)

    compiler.Compiler().compile(sweeping, str(out))
