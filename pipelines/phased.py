"""The pipeline: spec -> KFP graph, and its execution on this machine.

The graph is built from the spec, so a task stands for each step: prepare, score, a split for each seed, for each phase
of each curriculum a training and an evaluation, and for each set of sources that phases have of their own one more
prepare. Only real dependencies are edges. Compiled for a cluster, every task has its pod (`pods.py`), and the report is
written when the others have ended, however they did.

KFP reads the annotations of the pipeline function, so this module does not postpone their evaluation.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.common.curriculum import expand
from components.common.errors import redact
from components.common.phase_data import Place, preparing_places
from components.common.records import BASE, RunInfo
from components.common.spec import Spec
from components.common.spec_file import spec_digest
from pipelines.pods import image_of, place
from pipelines.submission_check import check_places

if TYPE_CHECKING:
    from kfp.dsl.base_component import BaseComponent


def build(spec: Spec, context: str, image: str | None = None) -> "BaseComponent":
    """The KFP pipeline of a spec.

    Args:
        spec: The run's spec.
        context: `RunInfo.to_json()`, what every task is told about its run. It stands in every task as a constant,
            as KFP fills in placeholders there (`cluster_info`), and not in a pipeline's parameters.
        image: Of the pods, where the pipeline is for a cluster; None for this machine, where a failed step ends the
            run and `phasetune report` writes what there is.
    """
    from kfp import dsl

    from components.reporting.component import report

    placed: list[Any] = []

    def named(task: Any, name: str) -> Any:
        task.set_display_name(name)
        task.set_caching_options(False)  # the store is the cache: it sees what KFP cannot
        if image is not None:
            place(task, spec, image, like=placed[0] if placed else None)
            placed.append(task)
        return task

    @dsl.pipeline(name=kfp_name(spec.name), description=f"phasetune: {spec.name}")
    def phased() -> None:
        if image is None:
            leaves = _steps(spec, context, named)
            named(report(context=context), "report").after(*leaves)
        else:
            with dsl.ExitHandler(named(report(context=context), "report"), name="steps"):
                _steps(spec, context, named)

    pipeline: BaseComponent = phased
    return pipeline


def _steps(spec: Spec, context: str, named: Callable[[Any, str], Any]) -> list[Any]:
    """The tasks of every step but the report; returns those that no other waits for."""
    from components.evaluation.component import evaluate
    from components.preparing.component import prepare, prepare_phase
    from components.scoring.component import score
    from components.splitting.component import split
    from components.training.component import train

    prepared = named(prepare(context=context), "prepare")
    scored = named(score(context=context, prepared=prepared.output), "score")
    leaves, places = [], preparing_places(spec)
    own: dict[Place, Any] = {}
    for seed in spec.all_seeds:
        tiers = named(split(context=context, scores=scored.output, seed=seed), f"split seed {seed}")
        if seed == spec.all_seeds[0]:
            base = evaluate(context=context, split=tiers.output, phase="", curriculum=BASE, index=0, seed=seed)
            leaves.append(named(base, "evaluate base"))
        for curriculum in expand(spec, seed):
            parent = ""
            for plan in curriculum.phases:
                where = {"curriculum": curriculum.name, "index": plan.index, "seed": seed}
                label = f"{curriculum.name} {plan.index} {plan.name} seed {seed}"
                data = places.get((curriculum.name, plan.index, seed))
                if data is not None and data not in own:
                    made = prepare_phase(context=context, prepared=prepared.output, **where)
                    own[data] = named(made, f"prepare {label}").output
                mine = "" if data is None else own[data]
                phase = train(context=context, split=tiers.output, parent=parent, data=mine, **where)
                parent = named(phase, f"train {label}").outputs["Output"]
                measured = evaluate(context=context, split=tiers.output, phase=parent, **where)
                leaves.append(named(measured, f"evaluate {label}"))
    return leaves


def kfp_name(name: str) -> str:
    """The pipeline's name in Kubeflow."""
    return ("phasetune-" + "".join(letter if letter.isalnum() else "-" for letter in name.lower())).rstrip("-")


def cluster_info(spec: Spec) -> RunInfo:
    """What a run of the compiled pipeline is: nothing of this machine, and an id that KFP fills in for each run.

    Every task holds it, so the spec's defaults are left out: the image that runs a task is of the version that
    compiled it.
    """
    from kfp import dsl

    values = spec.model_dump(mode="json", exclude_defaults=True)
    # The pods know no PHASETUNE_IMAGE of whoever compiled, and their RayJobs are of the same image.
    values.setdefault("compute", {}).setdefault("kubernetes", {})["image"] = image_of(spec)
    if "uri" in values.get("tracking", {}):
        values["tracking"]["uri"] = redact(spec.tracking.uri)
    return RunInfo(
        run=f"{spec.name}-{dsl.PIPELINE_JOB_ID_PLACEHOLDER}",
        name=spec.name,
        spec=values,
        spec_digest=spec_digest(spec),
        store=spec.store,
        output_dir="",
        started="",
    )


def compile_pipeline(spec: Spec, out: Path, allow_local: bool) -> None:
    """Write the pipeline's IR for a cluster.

    Raises:
        SpecError: If the spec names places that only this machine has, unless `allow_local`.
    """
    check_places(spec, allow_local)
    from kfp import compiler

    compiler.Compiler().compile(build(spec, cluster_info(spec).to_json(), image_of(spec)), str(out))


def run_locally(spec: Spec, context: str, root: Path) -> None:
    """Run the pipeline's tasks on this machine, each in a process of its own.

    Args:
        spec: The run's spec.
        context: `RunInfo.to_json()`.
        root: KFP's folder for the tasks' outputs.

    Raises:
        RuntimeError: If a task failed; its process has said why.
    """
    from kfp import local

    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(root), raise_on_error=True)
    build(spec, context)()
