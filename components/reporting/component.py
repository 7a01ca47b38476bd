"""The KFP component: a run's records become its report."""

from kfp import dsl

from components.common.image import IMAGE


@dsl.component(base_image=IMAGE, packages_to_install=[], install_kfp_package=False)
def report(context: str, page: dsl.Output[dsl.HTML]) -> str:
    """Write report.html and summary.json; returns the place of the summary."""
    import shutil

    from components.reporting.step import run

    summary = run(context)
    shutil.copyfile(summary.replace("summary.json", "report.html"), page.path)
    return summary
