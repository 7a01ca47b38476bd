"""The KFP component: scored examples become tiers."""

from kfp import dsl

from components.common.image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def split(context: str, scores: str, seed: int) -> str:
    """Cut the scored examples into tiers; returns the reference of the split."""
    from components.splitting.step import run

    return run(context, scores, seed)
