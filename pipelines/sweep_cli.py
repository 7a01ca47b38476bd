"""`phasetune sweep`, and what `plan` does with a sweep."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from components.common.errors import UserError
from pipelines.terminal import Terminal

if TYPE_CHECKING:
    from components.common.spec import Spec

console = Terminal(sys.stdout, 140)

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="KEY.PATH=VALUE of the sweep or of its base spec.", metavar="KEY=VALUE"),
]


def sweep(
    file: Annotated[Path, typer.Argument(help="The sweep, a YAML file.", metavar="SWEEP")],
    overrides: Overrides = None,
    output_dir: Annotated[Path | None, typer.Option(help="Where the results go; runs/NAME where absent.")] = None,
) -> None:
    """Try many curricula; what they have in common is trained once."""
    from pipelines.sweep import run_sweep
    from pipelines.sweep_spec import load_sweep

    loaded = load_sweep(file, overrides or [])
    folder = output_dir or Path("runs") / loaded.spec.name
    run_sweep(loaded, folder, console)
    console.print(f"results  {folder / 'sweep.json'}", highlight=False)


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Output folders of runs and sweeps; of a sweep its best, or FOLDER:TRIAL.", metavar="RUN..."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("compare.html"),
) -> None:
    """Put finished runs and sweeps side by side, with the difference between every two."""
    from pipelines.compare import compare as compared
    from pipelines.compare import read_contenders
    from pipelines.compare_page import show, write_compared

    found = compared(read_contenders(runs))
    show(found, console)
    write_compared(found, out)
    console.print(f"\npage     {out}", highlight=False)


def is_sweep(path: Path) -> bool:
    """Whether a YAML file is a sweep rather than a spec: it varies a base."""
    from components.common.spec_file import read_yaml

    values = read_yaml(path)
    return "base" in values and "space" in values


def plan_sweep(path: Path, overrides: list[str], gpus: int | None) -> None:
    """Print a sweep's plan."""
    from pipelines.sweep import slots_of
    from pipelines.sweep_plan import show_sweep_plan
    from pipelines.sweep_spec import load_sweep

    loaded = load_sweep(path, overrides)
    base = loaded.resolved({})
    slots = slots_of(base, loaded.spec.slots) if gpus is None else max(1, gpus // base.compute.most_workers)
    show_sweep_plan(loaded, slots, console)


def for_cluster(path: Path, overrides: list[str]) -> tuple[Spec, list[Spec], Callable[[Path], None]]:
    """A sweep for a cluster: what its pipeline is called, the specs that must be fit for it, and its compiler."""
    from pipelines.sweep_check import distinct
    from pipelines.sweep_pipeline import compile_sweep, sent_spec
    from pipelines.sweep_remote import for_cluster as with_workers
    from pipelines.sweep_space import trials_of
    from pipelines.sweep_spec import load_sweep

    loaded = load_sweep(path, overrides)
    if loaded.resolved({}).compute.ray == "local":
        raise UserError(
            "a sweep on a cluster is one job of Ray, and `compute.ray` of its base spec is `local`",
            "set it to `rayjob`, or to the address of a Ray cluster's Jobs API",
        )
    trials = [] if loaded.spec.search.method == "optuna" else [loaded.resolved(one) for one in trials_of(loaded)]
    return sent_spec(loaded), [with_workers(loaded), *distinct(trials)], lambda out: compile_sweep(loaded, out)
