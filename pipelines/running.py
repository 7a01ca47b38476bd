"""Run a spec on this machine: KFP's local runner, one session for the heavy work, one report at the end."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from components.common.curriculum import expand
from components.common.errors import UserError, mendable, redact
from components.common.importing import importing
from components.common.launcher import SESSION_MODULE, STOPPING, session
from components.common.machine import machine, versions
from components.common.phase_data import preparing_places
from components.common.progress import EVENTS
from components.common.records import RunInfo, RunRecords
from components.common.spec import Spec
from components.common.spec_file import spec_digest
from components.common.store import Store
from components.common.tracking import end_parent, open_parent
from pipelines.planning import check_inputs
from pipelines.screen import Screen, tracking_warnings

RUN_FILE = "run.json"
LOG_FILE = "run.log"


def run_spec(spec: Spec, output_dir: Path, console: Console) -> dict[str, Any]:
    """Run a spec, from its data to its report.

    Args:
        spec: The spec.
        output_dir: Gets report.html, summary.json, plots, run.json and run.log.
        console: Where the user watches.

    Returns:
        The summary, as in summary.json.

    Raises:
        UserError: If a step fails for a reason that the user can mend.
    """
    check_inputs(spec)  # what cannot work is said before any work, not after
    output_dir.mkdir(parents=True, exist_ok=True)
    for old in ("report.html", "summary.json"):
        (output_dir / old).unlink(missing_ok=True)  # a failed run must not leave the last one's report as its own
    Store(spec.store).clear_staging()
    info = new_run(spec, output_dir)
    if spec.tracking.enabled:
        info.mlflow = _open_tracking(spec, info, console)
    records = RunRecords(info.store, info.run)
    records.open(info)
    (output_dir / RUN_FILE).write_text(info.to_json(), encoding="utf-8")
    console.print(f"{spec.name}: run {info.run}, log {output_dir / LOG_FILE}", highlight=False)
    status = "FAILED"
    try:
        _execute(spec, info, output_dir, console)
        status = "FINISHED"
    except (KeyboardInterrupt, Terminated):
        status = "KILLED"
        raise
    finally:
        if status != "FINISHED" and info.mlflow["run_id"]:
            end_parent(info, "KILLED" if status == "KILLED" else "FAILED")
    summary: dict[str, Any] = json.loads((output_dir / "summary.json").read_text(encoding="utf-8"))
    return summary


def new_run(spec: Spec, output_dir: Path) -> RunInfo:
    """What a new run of a spec is; its id is unique."""
    now = datetime.now(UTC)
    values = spec.model_dump(mode="json")
    values["tracking"]["uri"] = redact(spec.tracking.uri)
    return RunInfo(
        run=f"{spec.name}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
        name=spec.name,
        spec=values,
        spec_digest=spec_digest(spec),
        store=spec.store,
        output_dir=str(output_dir.absolute()),
        started=now.isoformat(timespec="seconds"),
        versions=versions(),
        machine=machine(),
    )


def count_steps(spec: Spec) -> int:
    """Steps of a run that leave a record, but for the report."""
    curricula = sum(len(one.phases) for seed in spec.all_seeds for one in expand(spec, seed))
    return 2 + len(spec.all_seeds) + 1 + 2 * curricula + len(set(preparing_places(spec).values()))


def _open_tracking(spec: Spec, info: RunInfo, console: Console) -> dict[str, str]:
    with tracking_warnings(console):
        return open_parent(spec.tracking, info)


def _execute(spec: Spec, info: RunInfo, output_dir: Path, console: Console) -> None:
    with importing():
        from pipelines.phased import run_locally

    log = output_dir / LOG_FILE
    scratch, events = output_dir / f".kfp-{info.run}", output_dir / f".events-{info.run}.jsonl"
    screen = Screen(console, events, count_steps(spec))
    os.environ[EVENTS] = str(events.absolute())  # workers of Ray are in folders of their own
    stopped: list[BaseException] = []
    try:
        with session(output_dir / "ray-logs"), screen.following(), _into(log), _stoppable(stopped):
            run_locally(spec, info.to_json(), scratch)
    except Exception as error:
        # The step that a stop ended may be what KFP reports, rather than the stop.
        if stopped:
            raise stopped[0] from None
        if isinstance(error, RuntimeError):
            raise _explained(screen, error, log) from error
        raise
    finally:
        os.environ.pop(EVENTS, None)
        events.unlink(missing_ok=True)
        shutil.rmtree(scratch, ignore_errors=True)


def _explained(screen: Screen, error: RuntimeError, log: Path) -> Exception:
    if screen.failure is not None:
        return screen.failure
    what = screen.crash or str(error).splitlines()[0]
    return UserError(f"a step failed: {what}", f"the whole story is in {log}; finished steps are kept in the store")


@contextlib.contextmanager
def _into(log: Path) -> Iterator[None]:
    """Send what KFP and the steps print to a file."""
    with log.open("a", encoding="utf-8", buffering=1) as file:
        file.write(f"--- {datetime.now(UTC).isoformat(timespec='seconds')}\n")
        handler = logging.StreamHandler(file)
        root = logging.getLogger()
        before, streams = root.handlers[:], (sys.stdout, sys.stderr)
        root.handlers = [handler]
        sys.stdout = sys.stderr = file
        try:
            yield
        finally:
            sys.stdout, sys.stderr = streams
            root.handlers = before


class Terminated(BaseException):
    """SIGTERM: leave in order, with exit code 143."""


@contextlib.contextmanager
def _stoppable(stopped: list[BaseException]) -> Iterator[None]:
    """Leave in order on SIGINT and SIGTERM; what was asked is noted, as the exception may be lost on its way."""

    def leave(number: int, *_: object) -> NoReturn:
        reason = KeyboardInterrupt() if number == signal.SIGINT else Terminated()
        stopped.append(reason)
        if len(stopped) == 1:  # whoever asks a second time does not want to wait
            _stop_steps()
        raise reason

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop_steps() -> None:
    """Tell the step under way to stop, as by a Ctrl-C, and wait for it: a phase saves its state first.

    KFP would wait for the step's end, which may be hours away. The session is left alone: it ends after the steps.
    """
    import psutil

    steps: list[psutil.Process] = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if SESSION_MODULE not in child.cmdline():
                steps += [child, *child.children(recursive=True)]
    for process in steps:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGINT)
    psutil.wait_procs(steps, timeout=STOPPING + 2)


def exit_code(error: BaseException) -> int:
    """The code that the command ends with."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 143 if isinstance(error, Terminated) else 1


def user_message(error: BaseException) -> UserError | None:
    """What to tell the user about an error, or None where it is our own mistake."""
    if isinstance(error, KeyboardInterrupt | Terminated):
        return UserError("stopped", "finished phases are in the store: the same command goes on from there")
    return mendable(error)
