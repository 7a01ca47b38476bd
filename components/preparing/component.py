"""The KFP component: sources become examples."""

from kfp import dsl

from components.common.image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def prepare(context: str) -> str:
    """Read, clean and divide the data; returns the reference of the examples."""
    from components.preparing.step import run

    return run(context)


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def prepare_phase(context: str, prepared: str, curriculum: str, index: int, seed: int) -> str:
    """Prepare the data that a phase has of its own; returns the reference of the examples."""
    from components.preparing.step import run_phase

    return run_phase(context, prepared, curriculum, index, seed)
