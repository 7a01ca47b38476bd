"""The KFP component: examples get a difficulty."""

from kfp import dsl

from components.common.image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def score(context: str, prepared: str) -> str:
    """Score the examples; returns the reference of the scores."""
    from components.scoring.step import run

    return run(context, prepared)
