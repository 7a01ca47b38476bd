"""The `phasetune` command: what each subcommand is asked, and how its errors end."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from components.common.errors import SpecError, UserError
from pipelines import cluster_cli, store_cli, sweep_cli
from pipelines.terminal import Terminal

app = typer.Typer(
    name="phasetune",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(store_cli.app, name="store")
# Bound to the terminal as it is now: while a run goes on, standard output is a log file.
console = Terminal(sys.stdout, 100)
complaints = Terminal(sys.stderr)

SpecPath = Annotated[Path, typer.Argument(help="The spec, a YAML file.", metavar="SPEC")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="KEY.PATH=VALUE; the value is YAML.", metavar="KEY=VALUE")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="The folder to write; made if need be.")]
Model = Annotated[str, typer.Option(help="`lab`, a folder, or a Hugging Face id.")]
Seed = Annotated[int, typer.Option(help="Everything random is derived from it.")]


@app.callback(
    help="Fine-tune a language model on instructions in phases, and learn with evidence whether the phases helped."
)
def _common(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    """Options of every command; `main` takes them out of the arguments wherever they stand."""


def _spec(path: Path, overrides: list[str] | None) -> Any:
    from components.common.spec_file import load_spec

    return load_spec(path, overrides or [])


@app.command()
def run(
    spec: SpecPath,
    overrides: Overrides = None,
    output_dir: Annotated[Path | None, typer.Option(help="Where the report goes; runs/NAME where absent.")] = None,
) -> None:
    """Score, split, train in phases with controls, evaluate and report."""
    from components.reporting.table import results_table
    from pipelines.running import run_spec

    parsed = _spec(spec, overrides)
    folder = output_dir or Path("runs") / parsed.name
    summary = run_spec(parsed, folder, console)
    console.print()
    console.print(results_table(summary), soft_wrap=False)
    console.print(f"\n{summary['verdict']}\n", highlight=False)
    console.print(f"report   {folder / 'report.html'}", highlight=False)
    console.print(f"summary  {folder / 'summary.json'}", highlight=False)
    uri = summary["mlflow"]["uri"]
    if uri:
        console.print(f"MLflow   {uri if uri.startswith('http') else f'{_own_name()} ui {folder}'}", highlight=False)


def _own_name() -> str:
    """How the user can call this command again: by name where it is on the PATH, else by its path."""
    called = Path(sys.argv[0])
    if shutil.which("phasetune") is not None:
        return "phasetune"
    return str(called.relative_to(Path.cwd()) if called.is_relative_to(Path.cwd()) else called)


@app.command()
def plan(
    spec: SpecPath,
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option(help="Of a sweep: how many GPUs it may use.")] = None,
) -> None:
    """Print the resolved spec, every phase and control with its key, and what the store already holds."""
    from pipelines.plan_page import show_plan

    if sweep_cli.is_sweep(spec):
        sweep_cli.plan_sweep(spec, overrides or [], gpus)
        return
    show_plan(_spec(spec, overrides), console)


@app.command()
def validate(spec: SpecPath, overrides: Overrides = None) -> None:
    """Check a spec, and that its data and model are there."""
    from pipelines.planning import check_inputs

    parsed = _spec(spec, overrides)
    check_inputs(parsed)
    console.print(f"{spec} is valid: {parsed.name}", highlight=False)


@app.command()
def score(
    data: Annotated[list[str], typer.Argument(help="Files, folders, URIs or dataset ids.")],
    out: Out,
    method: Annotated[str, typer.Option(help="length, loss, ifd or column.")] = "ifd",
    model: Model = "lab",
    format: Annotated[str, typer.Option(help="The rows' format.")] = "auto",
    column: Annotated[str, typer.Option(help="The field that `column` reads.")] = "difficulty",
    held_out: Annotated[float, typer.Option(help="Share of the examples held out.")] = 0.0,
    max_rejected: Annotated[float, typer.Option(help="Stop above this share of malformed rows.")] = 0.05,
    seed: Seed = 17,
) -> None:
    """Read data and give every example a difficulty."""
    from pipelines.alone import score_alone

    scoring = {"method": method, "column": column}
    options = {"held_out": {"fraction": held_out}, "max_rejected": max_rejected}
    score_alone(data, format, options, scoring, model, seed, out, console)


@app.command()
def split(
    scores: Annotated[Path, typer.Argument(help="A scores.parquet.")],
    out: Out,
    tiers: Annotated[int, typer.Option(help="Number of tiers.")] = 3,
    cut: Annotated[str, typer.Option(help="quantiles, tokens or thresholds.")] = "quantiles",
    thresholds: Annotated[str, typer.Option(help="The cuts for `thresholds`, e.g. 1.5,3.5.")] = "",
    seed: Seed = 17,
) -> None:
    """Cut scored examples into tiers."""
    from pipelines.alone import split_alone

    split_alone(scores, {"tiers": tiers, "cut": cut}, thresholds, seed, out, console)


@app.command()
def train(
    tiers: Annotated[list[Path], typer.Argument(help="Tier files; together they are one phase.")],
    out: Out,
    model: Model = "lab",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the method, e.g. epochs=2.", metavar="KEY=VALUE")
    ] = None,
    method: Annotated[str, typer.Option(help="sft, dpo (rows with a rejected reply) or grpo.")] = "sft",
    workers: Annotated[int, typer.Option(help="Training workers.")] = 1,
    gpus_per_worker: Annotated[int, typer.Option(help="0 or 1.")] = 0,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads of all workers together; every core if absent.")
    ] = None,
    seed: Seed = 17,
) -> None:
    """Train one phase on tier files."""
    from pipelines.alone import train_alone

    compute = {"workers": workers, "gpus_per_worker": gpus_per_worker, "threads": threads}
    train_alone(tiers, model, overrides or [], compute, seed, out, console, method)


@app.command()
def evaluate(
    data: Annotated[list[str], typer.Argument(help="A split's held_out.parquet, or data in any format.")],
    out: Out,
    model: Model = "lab",
    max_new_tokens: Annotated[int, typer.Option(help="Longest generated answer, tokens.")] = 256,
    seed: Seed = 17,
    base: Annotated[
        str | None, typer.Option(help="Where MODEL holds adapters: the base model that they were trained on.")
    ] = None,
) -> None:
    """Measure a model: loss and verified accuracy, per tier, with intervals."""
    from pipelines.alone import evaluate_alone

    evaluate_alone(data, model, {"max_new_tokens": max_new_tokens}, seed, out, console, base)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="A run's output folder, e.g. runs/quickstart.")],
) -> None:
    """Write a run's report again from its records, also of a run that did not finish."""
    from pipelines.alone import report_alone

    report_alone(folder, console)


@app.command("compile")
def compile_(
    spec: SpecPath,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path("pipeline.yaml"),
    overrides: Overrides = None,
    allow_local: Annotated[bool, typer.Option(help="Allow paths that only this machine has.")] = False,
) -> None:
    """Compile the pipeline for a cluster."""
    from pipelines.phased import compile_pipeline

    compile_pipeline(_spec(spec, overrides), out, allow_local)
    console.print(f"wrote {out}", highlight=False)


app.command()(sweep_cli.sweep)
app.command()(sweep_cli.compare)
for command in (cluster_cli.submit, cluster_cli.schedule, cluster_cli.status, cluster_cli.cancel):
    app.command()(command)


@app.command()
def ui(
    folder: Annotated[Path, typer.Argument(help="A run's output folder.")] = Path("runs/quickstart"),
    port: Annotated[int, typer.Option(help="The port to listen on, on this machine only.")] = 5000,
) -> None:
    """Open MLflow on the store of a run."""
    from pipelines.alone import serve_ui

    serve_ui(folder, port, console)


@app.command()
def lab(
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    count: Annotated[int, typer.Option(help="Number of instructions.")] = 3000,
    seed: Seed = 17,
) -> None:
    """Write the lab's instructions and facts to a folder."""
    from components.lab.generator import write_lab

    out.mkdir(parents=True, exist_ok=True)
    for path in write_lab(out, count, seed):
        console.print(f"wrote {path}", highlight=False)


def _fail(error: BaseException, debug: bool) -> int:
    from pipelines.running import exit_code, user_message

    known = user_message(error)
    if debug:
        complaints.print_exception()
    if known is None:
        first = (str(error).splitlines() or [""])[0]
        known = UserError(f"{type(error).__name__}: {first}", "run again with --debug and report what it shows")
    return _complain(known, 2 if isinstance(error, SpecError) else exit_code(error))


def _complain(error: UserError, code: int) -> int:
    complaints.print("error: ", style="bold red", end="")
    complaints.print(error.message, highlight=False)
    if error.remedy:
        complaints.print("remedy: ", style="bold", end="")
        complaints.print(error.remedy, highlight=False)
    return code


def main() -> None:
    """The command's entry: no traceback without `--debug`, which may stand anywhere."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported; see components.common.launcher
    debug = "--debug" in sys.argv
    arguments = [item for item in sys.argv[1:] if item != "--debug"]
    try:
        code = app(args=arguments, standalone_mode=False)
        if code == 130:  # typer takes a Ctrl-C and hands back its code
            sys.exit(_fail(KeyboardInterrupt(), debug))
        if code:  # a command's own, as of `store verify`
            sys.exit(code)
    except typer.Exit as leave:
        sys.exit(leave.exit_code)
    except BaseException as error:
        usage = getattr(error, "format_message", None)
        if usage is not None:
            sys.exit(_complain(UserError(usage(), "see `phasetune --help`"), 2))
        if isinstance(error, SystemExit):
            raise
        sys.exit(_fail(error, debug))
