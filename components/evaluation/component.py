"""The KFP component: a checkpoint becomes metrics."""

from kfp import dsl

from components.common.image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def evaluate(
    context: str, split: str, phase: str, curriculum: str, index: int, seed: int, metrics: dsl.Output[dsl.Metrics]
) -> str:
    """Evaluate the base model or a phase on the held-out part; returns the reference of the evaluation."""
    from components.evaluation.step import run, values_of

    reference = run(context, split, phase, curriculum, index, seed)
    for name, value in values_of(context, curriculum, index, seed).items():
        metrics.log_metric(name, value)
    return reference
