"""The KFP component: one phase becomes a checkpoint."""

from kfp import dsl

from components.common.image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def train(
    context: str,
    split: str,
    parent: str,
    data: str,
    curriculum: str,
    index: int,
    seed: int,
    checkpoint: dsl.Output[dsl.Model],
) -> str:
    """Train one phase from its parent, on tiers or on data of its own; returns the reference of the phase.

    The artifact `checkpoint` is for lineage: it names the weights' place, and nothing is copied.
    """
    import json

    from components.training.step import run

    reference = run(context, split, parent, curriculum, index, seed, data)
    place = json.loads(reference)
    checkpoint.metadata.update({"key": place["key"], "weights": place["uri"] + "/model", "curriculum": curriculum})
    return reference
