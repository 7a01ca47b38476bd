"""`phasetune submit`, `schedule`, `status` and `cancel`: a spec on a cluster with Kubeflow."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from components.common.errors import UserError
from pipelines.terminal import Terminal

if TYPE_CHECKING:
    from components.common.spec import Spec
    from pipelines.following import Known
    from pipelines.kubeflow import Kubeflow

console = Terminal(sys.stdout, 140)

Host = Annotated[
    str | None,
    typer.Option(
        help="Kubeflow's API; KF_PIPELINES_ENDPOINT where absent. KF_PIPELINES_UI_ENDPOINT: its page, if elsewhere.",
        metavar="URL",
    ),
]
Namespace = Annotated[str | None, typer.Option(help="Yours, where Kubeflow has several users; also that of the pods.")]
TokenFile = Annotated[Path | None, typer.Option(help="Holds a token; KFP_TOKEN or KFP_COOKIE where absent.")]
CaFile = Annotated[Path | None, typer.Option(help="Certificates that vouch for Kubeflow.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="KEY.PATH=VALUE; the value is YAML.", metavar="KEY=VALUE")
]
Experiment = Annotated[
    str | None, typer.Option(help="Kubeflow's experiment; the spec's tracking.experiment if absent.")
]
AllowLocal = Annotated[bool, typer.Option(help="Allow paths that only this machine has.")]
AllowLatest = Annotated[bool, typer.Option(help="Allow an image without a tag, or with `latest`.")]
SkipInputs = Annotated[bool, typer.Option(help="Do not look for data and models: only the cluster can reach them.")]
Cron = Annotated[
    str | None,
    typer.Option(
        help='When: six fields, seconds first, as "0 0 2 * * *"; in UTC, unless Kubeflow has another time zone.'
    ),
]
Run = Annotated[str, typer.Argument(help="The id or the address that `submit` printed.", metavar="RUN")]

_PATIENCE = 10.0
"""Seconds for which `status` asks Kubernetes and the store, which a laptop may not reach."""


def _connect(host: str | None, namespace: str | None, token_file: Path | None, ca_file: Path | None) -> Kubeflow:
    from pipelines.kubeflow import connect

    return connect(host, namespace, token_file, ca_file)


def _ready(
    spec: Path, overrides: list[str] | None, allow_local: bool, allow_latest: bool, skip: bool
) -> tuple[Spec, Callable[[Path], None] | None]:
    """The spec, seen to be fit for a cluster before Kubeflow is asked anything; of a sweep, and how it is compiled."""
    from components.common.spec_file import load_spec
    from pipelines.submission_check import check_submission
    from pipelines.sweep_cli import for_cluster, is_sweep

    if is_sweep(spec):
        sweep, checked, compiled = for_cluster(spec, overrides or [])
        _tell([note for one in checked for note in check_submission(one, allow_local, allow_latest, not skip)])
        return sweep, compiled
    parsed = load_spec(spec, overrides or [])
    _tell(check_submission(parsed, allow_local, allow_latest, not skip))
    return parsed, None


def _tell(notes: list[str]) -> None:
    """Say what was not checked, each thing once."""
    for note in dict.fromkeys(notes):
        console.print(note, highlight=False)


def submit(
    spec: Annotated[Path, typer.Argument(help="The spec, a YAML file.", metavar="SPEC")],
    host: Host = None,
    overrides: Overrides = None,
    namespace: Namespace = None,
    experiment: Experiment = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run; exit code 1 if it fails.")] = False,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    allow_local: AllowLocal = False,
    allow_latest: AllowLatest = False,
    skip_inputs: SkipInputs = False,
) -> None:
    """Run a spec or a sweep on a cluster: compile it, upload it, start a run."""
    from pipelines.submitting import start, upload

    parsed, compiled = _ready(spec, overrides, allow_local, allow_latest, skip_inputs)
    kubeflow = _connect(host, namespace, token_file, ca_file)
    version = upload(kubeflow, parsed, allow_local, compiled)
    run = start(kubeflow, parsed, version, experiment or parsed.tracking.experiment)
    console.print(f"version  {version.name}{'' if version.new else ' (uploaded before)'}", highlight=False)
    console.print(f"run      {run}", highlight=False)
    console.print(kubeflow.url(run), highlight=False)
    if wait:
        _follow(kubeflow, run)


def _follow(kubeflow: Kubeflow, run: str) -> None:
    """Follow a run to its end. A Ctrl-C stops the following, not the run; nor does a token that has run out."""
    from pipelines.following import follow
    from pipelines.kubeflow import Absent

    try:
        known = follow(kubeflow, run, lambda line: console.print(line, highlight=False))
    except KeyboardInterrupt:
        console.print(f"\nthe run goes on: {kubeflow.url(run)}", highlight=False)
        raise typer.Exit(130) from None
    except Absent:
        raise
    except UserError as error:
        raise UserError(
            f"the run {run} is followed no further, and goes on: {error.message}",
            f"{error.remedy}; then `phasetune status {run}` shows it, and its page: {kubeflow.url(run)}",
        ) from error
    if known.state != "SUCCEEDED":
        raise UserError(
            f"the run {run} has ended: {known.state.lower()}{f' ({known.error})' if known.error else ''}",
            f"see {kubeflow.url(run)}, or `phasetune status {run}`; finished steps are kept in the store",
        )


def schedule(
    spec: Annotated[str, typer.Argument(help="The spec, a YAML file; or `ls`, which lists.", metavar="SPEC|ls")] = "",
    cron: Cron = None,
    name: Annotated[str | None, typer.Option(help="The schedule's name; one of each.")] = None,
    host: Host = None,
    overrides: Overrides = None,
    window: Annotated[str | None, typer.Option(help="FROM/TO: fire only between; either may be left out.")] = None,
    catch_up: Annotated[bool, typer.Option("--catch-up", help="Make up for runs missed in a pause.")] = False,
    pause: Annotated[
        bool, typer.Option("--pause", help="Pause the schedule NAME; with a spec: make it, paused.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Let the schedule NAME go on; with a spec: as that says.")
    ] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the schedule NAME; its runs go on.")] = False,
    namespace: Namespace = None,
    experiment: Experiment = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    allow_local: AllowLocal = False,
    allow_latest: AllowLatest = False,
    skip_inputs: SkipInputs = False,
) -> None:
    """Run a spec or a sweep again and again; each run sees the data as they are then."""
    from pipelines import scheduling
    from pipelines.submitting import upload

    if spec == "ls":
        _list_schedules(_connect(host, namespace, token_file, ca_file))
        return
    if name is None or not name.strip():
        raise UserError("which schedule is meant is not said", "give it a name: --name nightly")
    if pause + resume + delete > 1:
        raise UserError("--pause, --resume and --delete exclude each other", "give one of them")
    runs = None if not pause and not resume else resume
    described = bool(spec) or cron is not None
    if delete and described:
        raise UserError("--delete takes no spec and no time", f"phasetune schedule --delete --name {name}")
    if delete:
        gone = scheduling.delete(_connect(host, namespace, token_file, ca_file), name)
        console.print(f"{name}: {'deleted' if gone else 'there is no such schedule'}", highlight=False)
        return
    if runs is not None and not described:
        scheduling.set_running(_connect(host, namespace, token_file, ca_file), name, runs)
        console.print(f"{name}: {'started' if runs else 'paused'}", highlight=False)
        return
    if not spec or cron is None:
        raise UserError(
            "a schedule needs a spec and a time", 'phasetune schedule SPEC --cron "0 0 2 * * *" --name NAME'
        )
    timing = scheduling.timing(cron, window, catch_up)
    parsed, compiled = _ready(Path(spec), overrides, allow_local, allow_latest, skip_inputs)
    kubeflow = _connect(host, namespace, token_file, ca_file)
    version = upload(kubeflow, parsed, allow_local, compiled)
    where = experiment or parsed.tracking.experiment
    done, fires = scheduling.apply(kubeflow, name, parsed, version, timing, where, runs)
    state = ("" if fires else " (paused)") if runs is None else ", started" if runs else ", paused"
    console.print(f"{name}: {done}{state}, version {version.name}", highlight=False)


def _list_schedules(kubeflow: Kubeflow) -> None:
    from pipelines.scheduling import schedules

    table = Table("name", "cron", "window", "state", "version", box=None, pad_edge=False)
    for one in sorted(schedules(kubeflow), key=lambda one: one.name):
        version, timing, *_ = one.content
        edges = (timing.begins, timing.ends)
        window = "/".join("" if edge is None else edge.isoformat() for edge in edges) if any(edges) else "-"
        table.add_row(one.name, timing.cron, window, "started" if one.started else "paused", version)
    console.print(table)


def status(
    run: Run, host: Host = None, namespace: Namespace = None, token_file: TokenFile = None, ca_file: CaFile = None
) -> None:
    """Show a run: each step in Kubeflow and in the store, and the RayJobs that it waits for."""
    from pipelines.following import Runs, run_id

    kubeflow = _connect(host, namespace, token_file, ca_file)
    known = Runs(kubeflow).known(run_id(run))
    console.print(f"{known.name}: {known.state.lower()}{f' ({known.error})' if known.error else ''}", highlight=False)
    console.print(kubeflow.url(known.id), highlight=False)
    if not known.ours:
        console.print("it is no run of phasetune: what its steps do, its own page shows", highlight=False)
        return
    if known.info is not None:
        console.print(f"store {known.info.store}, run {known.info.run}\n", highlight=False)
    _show_steps(known)
    _show_rayjobs(known, namespace)


def _show_steps(known: Known) -> None:
    from pipelines.following import records_of

    try:
        records = records_of(known, _PATIENCE)
    except Exception as error:  # boto3 has a dozen of its own for a store that is out of reach
        records = {}
        said = error.message if isinstance(error, UserError) else (str(error).splitlines() or [""])[0]
        console.print(f"the store cannot be read from here: {said}\n", highlight=False)
    table = Table("step", "Kubeflow", "result", "seconds", "key", box=None, pad_edge=False)
    for label, state in known.steps.items():
        record = records.get(label)
        told = ("-", "-", "-")
        if record is not None:
            told = ("reused" if record.reused else "made", f"{record.seconds:.1f}", record.key[:12])
        table.add_row(label, state.lower(), *told)
    console.print(table)


def _show_rayjobs(known: Known, namespace: str | None) -> None:
    from pipelines.following import rayjobs_of

    if not known.rayjobs:
        return
    try:
        jobs = rayjobs_of(known, namespace, _PATIENCE)
    except UserError as error:
        console.print(f"\nRayJobs: {error.message} ({error.remedy})", highlight=False)
        return
    for name, state in jobs:
        console.print(f"\nRayJob {name}: {state}", highlight=False)


def cancel(
    run: Run, host: Host = None, namespace: Namespace = None, token_file: TokenFile = None, ca_file: CaFile = None
) -> None:
    """End a run, and the RayJobs and jobs that no other run waits for; finished steps stay in the store."""
    from pipelines.cancelling import cancel_wholly
    from pipelines.following import run_id

    kubeflow = _connect(host, namespace, token_file, ca_file)
    cancel_wholly(kubeflow, run_id(run), namespace, lambda line: console.print(line, highlight=False))
