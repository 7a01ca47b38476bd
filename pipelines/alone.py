"""Every stage on its own, on files."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from rich.console import Console

from components.common.curriculum import MAIN, PhasePlan, Portion
from components.common.errors import SpecError, UserError
from components.common.examples import SCORED_SCHEMA, read_rows, write_rows
from components.common.launcher import launch
from components.common.progress import Progress
from components.common.records import RunInfo, RunRecords
from components.common.spec import DataSpec, Spec, SplittingSpec
from components.common.spec_file import check, resolve_model, source_path
from components.common.spec_phases import SETTINGS, Method
from pipelines.compute_check import check_compute
from pipelines.screen import working


@contextlib.contextmanager
def whole_folder(out: Path, makes: Sequence[str], last: str) -> Iterator[Path]:
    """Yields a folder beside `out`, and moves what it holds into `out` only when the block ends cleanly.

    What an earlier call left there goes first, so that nothing of it is taken for a part of this result.

    Args:
        out: The folder to fill.
        makes: Patterns of the names that the command makes.
        last: The file that is removed first and moved last: where it is, the rest is.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as partial:
        yield Path(partial)
        out.mkdir(exist_ok=True)
        (out / last).unlink(missing_ok=True)
        for old in [item for pattern in makes for item in out.glob(pattern)]:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        for item in sorted(Path(partial).iterdir(), key=lambda item: item.name == last):
            item.replace(out / item.name)


def _spec(**parts: Any) -> Spec:
    values = {"name": "alone", "data": {"train": [{"path": "unused"}]}, **parts}
    try:
        return Spec.model_validate(values)
    except ValidationError as error:
        raise SpecError(check("the command's options", values, error), "see `--help`") from None


def _data_spec(data: list[str], format: str, options: dict[str, Any]) -> DataSpec:
    here = Path.cwd()
    sources = [{"path": source_path(path, here), "format": format} for path in data]
    return _spec(data={"train": sources, **options}).data


def score_alone(
    data: list[str],
    format: str,
    options: dict[str, Any],
    scoring: dict[str, Any],
    model: str,
    seed: int,
    out: Path,
    console: Console,
) -> None:
    """`phasetune score`: writes scores.parquet, ledger.json, sources.json, rejected.jsonl and scorer.json."""
    from components.common.keys import scores_key
    from components.common.models import model_digest
    from components.preparing.prepare import prepare
    from components.preparing.sources import fingerprint
    from components.scoring.step import measure_job, rank_correlations

    parsed = _data_spec(data, format, options)
    base = {"path": resolve_model(model, Path.cwd())}
    spec = _spec(scoring=scoring, seed=seed, model=base, data=parsed.model_dump(mode="json"))
    digest = model_digest(spec.model.path)
    key = scores_key(spec, fingerprint(parsed, seed), digest, digest)
    if _scored(out, key):
        console.print(f"found {out / 'scores.parquet'}: same data, same scorer", highlight=False)
        return
    makes = ["scores.parquet", "held_out_scores.parquet", "ledger.json", "sources.json", "rejected.jsonl"]
    with whole_folder(out, makes, last="scorer.json") as folder:
        with working(console, "reading the data"):
            progress = Progress("prepare", 0, "rows")
            ledger = prepare(parsed, seed, folder, lambda _source, rows: progress.update(rows))
        files = {"scores": folder / "train.parquet"}
        if ledger.held_out:
            files["held_out_scores"] = folder / "held_out.parquet"
        with working(console, f"scoring {ledger.examples:,} examples with {spec.scoring.method}"):
            job = {**measure_job(spec, files, digest), "for_training": False, "out": str(folder)}
            launch("components.scoring.measure:measure", job=job)
        for name in ("train.parquet", "held_out.parquet", "held_out.keys"):
            (folder / name).unlink()
        said = {"key": key, **job["about"]}
        said.update(rank_correlations(folder / "scores.parquet"))
        said["files"] = sorted(item.name for item in folder.iterdir())
        (folder / "scorer.json").write_text(json.dumps(said, indent=1), encoding="utf-8")
    counts = ", ".join(f"{name} {value:,}" for name, value in ledger.to_dict().items())
    console.print(f"{counts}\nwrote {out / 'scores.parquet'}", highlight=False)


def _scored(out: Path, key: str) -> bool:
    """Whether a folder holds the whole result of a score with this key."""
    about = out / "scorer.json"
    if not about.is_file():
        return False
    said = json.loads(about.read_text(encoding="utf-8"))
    return said.get("key") == key and all((out / name).is_file() for name in said["files"])


def split_alone(
    scores: Path, splitting: dict[str, Any], thresholds: str, seed: int, out: Path, console: Console
) -> None:
    """`phasetune split`: writes tier-1.parquet, ... and split_report.json."""
    from components.splitting.split import split

    try:
        splitting["thresholds"] = [float(item) for item in thresholds.split(",") if item.strip()]
    except ValueError:
        raise SpecError(f"--thresholds {thresholds!r} are not numbers", "e.g. --thresholds 1.5,3.5") from None
    spec: SplittingSpec = _spec(splitting=splitting, curriculum={"order": "ascending"}).splitting
    _refuse_absent(scores, "scores", "`phasetune score` writes it")
    held_out = scores.parent / "held_out_scores.parquet"
    with (
        whole_folder(out, ["tier-*.parquet", "held_out.parquet"], last="split_report.json") as folder,
        working(console, "splitting"),
    ):
        report = split(scores, held_out if held_out.exists() else None, spec, seed, folder)
    for tier in report["tiers"]:
        low, high = tier["difficulty"]["min"], tier["difficulty"]["max"]
        line = f"tier {tier['tier']}: {tier['examples']:,} examples, {tier['tokens']:,} tokens"
        console.print(f"{line}, difficulty {low:.3g} to {high:.3g}", highlight=False)
    console.print(f"wrote {out}", highlight=False)


def train_alone(
    tiers: list[Path],
    model: str,
    overrides: list[str],
    compute: dict[str, Any],
    seed: int,
    out: Path,
    console: Console,
    method: str = "sft",
) -> None:
    """`phasetune train`: one phase; writes model/, phase.json, and what the method shows (rollouts, pairs)."""
    from components.common.models import base_folder
    from components.training.step import fit_job

    kind = _method(method)
    base = {"path": resolve_model(model, Path.cwd())}
    chosen = {kind: dict(_pair(item) for item in overrides)}
    spec = _spec(curriculum=chosen, compute=compute, seed=seed, model=base)
    check_compute(spec)
    for path in tiers:
        _refuse_absent(path, "tier file", "`phasetune split` writes it")
    settings = spec.curriculum.shared(kind)
    if settings.select != "last":
        raise SpecError("a phase alone has no held-out part to select a checkpoint on", "leave `select` out")
    if settings.carry != "none":
        raise SpecError("a phase alone has no phase before it to carry an optimizer over from", "leave `carry` out")
    numbers = tuple(range(1, len(tiers) + 1))
    plan = PhasePlan(MAIN, 1, "phase", kind, (Portion(numbers, settings.epochs),), "tiers", settings)
    files = {number: path.absolute() for number, path in zip(numbers, tiers, strict=True)}
    makes = ["model", "rollouts.parquet", "pairs.parquet"]
    with whole_folder(out, makes, last="phase.json") as folder, working(console, "training"):
        job = {**fit_job(spec, plan, files, seed, base_folder(spec.model.path)), "out": str(folder)}
        result, _ = launch("components.training.fit:fit", job=job)
        about = {"seed": seed, "model": spec.model.path, "method": kind, "settings": settings.model_dump(mode="json")}
        (folder / "phase.json").write_text(json.dumps({**about, **result}, indent=1), encoding="utf-8")
    last = result["learning"][-1]["loss"]
    console.print(f"{result['steps']} steps, {result['tokens']:,} tokens, last loss {last:.3f}", highlight=False)
    console.print(f"wrote {out / 'model'}", highlight=False)


def _method(name: str) -> Method:
    for known in SETTINGS:
        if known == name:
            return known
    raise SpecError(f"--method {name!r} is not known", f"known are {', '.join(SETTINGS)}")


def _pair(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise SpecError(f"--set {text!r} is not KEY=VALUE", "e.g. --set epochs=2")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        raise SpecError(f"--set {text!r}: the value is not YAML", "quote it") from None


def evaluate_alone(
    data: list[str],
    model: str,
    evaluation: dict[str, Any],
    seed: int,
    out: Path,
    console: Console,
    base: str | None = None,
) -> None:
    """`phasetune evaluate`: writes metrics.json and examples.parquet."""
    from components.common.models import base_path
    from components.evaluation.step import measure_job

    path = resolve_model(model, Path.cwd())
    below = base_path(path, None if base is None else resolve_model(base, Path.cwd()))
    spec = _spec(evaluation=evaluation, seed=seed, model={"path": below})
    makes = ["examples.parquet", "rejected.jsonl"]
    with whole_folder(out, makes, last="metrics.json") as folder, working(console, "evaluating"):
        held_out = _tiered(data, seed, folder)
        job = {**measure_job(spec, path, held_out, "evaluate"), "out": str(folder)}
        result, _ = launch("components.evaluation.measure:measure", job=job)
        made = ("tiered.parquet", "train.parquet", "held_out.parquet", "held_out.keys", "ledger.json", "sources.json")
        for leftover in made:
            (folder / leftover).unlink(missing_ok=True)
        (folder / "metrics.json").write_text(json.dumps(result, indent=1, sort_keys=True), encoding="utf-8")
    metrics = result["metrics"]
    for name in (name for name in metrics if not name.endswith((".low", ".high"))):
        interval = f"[{metrics.get(name + '.low', float('nan')):.4f}, {metrics.get(name + '.high', float('nan')):.4f}]"
        console.print(f"{name:<40} {metrics[name]:.4f} {interval}", highlight=False)
    console.print(f"wrote {out / 'metrics.json'}", highlight=False)


def _tiered(data: list[str], seed: int, folder: Path) -> Path:
    """One file of examples with tiers, from a split's held_out.parquet, tier files, or data in any format."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = Path(data[0])
    if len(data) == 1 and first.suffix == ".parquet" and first.exists() and "tier" in pq.read_schema(first).names:
        return first.absolute()
    from components.preparing.prepare import prepare

    prepare(_data_spec(data, "auto", {"held_out": {"fraction": 0.0}}), seed, folder)
    schema = SCORED_SCHEMA.append(pa.field("tier", pa.int32()))
    tiered = folder / "tiered.parquet"
    write_rows(tiered, ({**row, "tier": 1} for row in read_rows(folder / "train.parquet")), schema)
    return tiered


def _refuse_absent(path: Path, what: str, remedy: str) -> None:
    if not path.is_file():
        raise UserError(f"there is no {what} at {path}", remedy)


def _run_info(folder: Path) -> RunInfo:
    from pipelines.running import RUN_FILE

    path = folder / RUN_FILE
    _refuse_absent(path, "run", "give the output folder of a run, e.g. runs/quickstart")
    return RunInfo.from_json(path.read_text(encoding="utf-8"))


def report_alone(folder: Path, console: Console) -> None:
    """`phasetune report`: writes the report of a run again, and sends MLflow what it lacks."""
    from components.reporting.report import write_report
    from components.reporting.step import send
    from pipelines.screen import tracking_warnings

    info = _run_info(folder)
    records = RunRecords(info.store, info.run)
    summary = write_report(records, folder)
    with tracking_warnings(console):
        send(info, records, summary, folder)
    console.print(f"{summary['verdict']}\nwrote {folder / 'report.html'}", highlight=False)


def serve_ui(folder: Path, port: int, console: Console) -> None:
    """`phasetune ui`: MLflow's pages on a run's store, on this machine only."""
    from components.common.spec import TrackingSpec
    from components.common.tracking import ui_command

    uri = _run_info(folder).mlflow.get("uri")
    if not uri:
        raise UserError(f"the run in {folder} was not tracked", "run it with `--set tracking.enabled=true`")
    command = ui_command(TrackingSpec(uri=uri))
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise UserError(
                f"port {port} is in use", f"choose another: `phasetune ui {folder} --port {port + 1}`"
            ) from None
    console.print(f"MLflow on http://127.0.0.1:{port} (Ctrl-C ends it)", highlight=False)
    code = serve([*command, "--port", str(port)])
    if code not in (0, -2, 130):
        raise UserError(f"MLflow ended with code {code}", "its own messages are above")


def serve(command: list[str]) -> int:
    """Run a server until it ends, or we are asked to; it and its processes end with us, however we do.

    Returns:
        The server's exit code.
    """
    from components.common.leaving import HURRY, stoppable
    from components.common.session_call import die_with_parent

    with stoppable(), subprocess.Popen(command, preexec_fn=lambda: die_with_parent(signal.SIGTERM)) as server:
        try:
            return server.wait()
        except BaseException:  # a Ctrl-C, which the server got as well, or a SIGTERM, which it did not
            server.terminate()
            try:
                server.wait(HURRY)
            except subprocess.TimeoutExpired:
                server.kill()
            raise
