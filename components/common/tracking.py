"""Tracking in MLflow: the parent run, its end, and the command that shows it.

The records on disk are the truth (`records.py`); MLflow is a copy. `PhaseStream` copies a phase while it trains,
`sync` makes the copy complete, now or later. A server that is away never stops a run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from components.common.errors import UserError, redact
from components.common.records import RunInfo
from components.common.spec import TrackingSpec
from components.common.tracking_connect import TrackingWarning, connect, database_file, quiet, reachable, resolve, warn
from components.common.tracking_runs import ATTACHED, artifact_folder, find_parent, find_runs, open_run
from components.common.tracking_send import sync
from components.common.tracking_stream import PhaseStream

__all__ = [
    "PhaseStream",
    "TrackingWarning",
    "end_parent",
    "open_parent",
    "open_tracked",
    "quiet",
    "sync",
    "ui_command",
]
T = TypeVar("T")
# What the user can mend before the run begins; any other failure of a server is taken for its absence.
_REFUSALS = (
    "BAD_REQUEST",
    "ENDPOINT_NOT_FOUND",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "PERMISSION_DENIED",
    "RESOURCE_DOES_NOT_EXIST",
    "UNAUTHENTICATED",
)


def open_parent(tracking: TrackingSpec, info: RunInfo, artifact_root: Path | None = None) -> dict[str, str]:
    """Make or find the run's parent in MLflow, with its tags and the curriculum's parameters.

    Where the environment has MLFLOW_RUN_ID, that run becomes the parent, on MLFLOW_TRACKING_URI where that is set too;
    its status then stays with whoever made it. Kubeflow gives both to every task, with a run of the task's own: the
    parent is then the run above that one.

    Args:
        tracking: Where MLflow is.
        info: The run; its `mlflow` is not read.
        artifact_root: Where a new experiment of an SQLite store keeps artifacts; `mlartifacts` beside the database
            where None.

    Returns:
        {"uri", "run_id"} for `RunInfo.mlflow`: the URI absolute and without credentials; an empty run id, after a
        warning, where the server is away (within ten seconds); both empty where tracking is off.

    Raises:
        UserError: If the URI is malformed, or MLflow is there and refuses.
    """
    if not tracking.enabled:
        return {"uri": "", "run_id": ""}
    later = "the run goes on, and its report sends everything once MLflow is back"
    uri, run = open_tracked(tracking, later, lambda client, uri: open_run(client, info, uri, artifact_root))
    return {"uri": uri, "run_id": "" if run is None else run.info.run_id}


def open_tracked(tracking: TrackingSpec, later: str, make: Callable[[Any, str], T]) -> tuple[str, T | None]:
    """Open something in MLflow; where the server is away, warn (within ten seconds) and go on without.

    Args:
        tracking: Where MLflow is.
        later: What the warning says about what happens instead.
        make: Opens it, by an `MlflowClient` and the store's resolved URI.

    Returns:
        The URI, absolute and without credentials, and what was opened; None where the server is away.

    Raises:
        UserError: If the URI is malformed, or MLflow is there and refuses.
    """
    attached = os.environ.get("MLFLOW_RUN_ID") and os.environ.get("MLFLOW_TRACKING_URI")
    uri = resolve(attached or tracking.uri)
    away = f"MLflow does not answer at {uri}: {later}"
    if not reachable(uri):
        warn(away)
        return uri, None
    database = database_file(uri)
    try:
        return uri, make(connect(uri), uri)
    except UserError:
        raise
    except Exception as error:  # MLflow, SQLAlchemy, requests and the file system each have their own
        if database is not None or getattr(error, "error_code", "") in _REFUSALS:
            raise UserError(_refusal(error, uri), _remedy(error, uri)) from error
        warn(f"{away} ({type(error).__name__})")
        return uri, None


def _refusal(error: Exception, uri: str) -> str:
    if getattr(error, "error_code", "") == "UNAUTHENTICATED":
        name = os.environ.get("MLFLOW_TRACKING_USERNAME")
        return f"MLflow at {uri} " + (f"does not take the password of {name!r}" if name else "asks for a password")
    return f"MLflow refuses the run at {uri}: {redact(str(error))}"


def _remedy(error: Exception, uri: str) -> str:
    code = getattr(error, "error_code", "")
    if code == "UNAUTHENTICATED":
        return "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    if code == "PERMISSION_DENIED":
        return "ask MLflow's administrator for the right to edit the experiment, or name another: tracking.experiment"
    if code == "RESOURCE_DOES_NOT_EXIST" and os.environ.get("MLFLOW_RUN_ID"):
        return "MLFLOW_RUN_ID names a run that is not there: unset it, or set MLFLOW_TRACKING_URI to its store"
    if "out-of-date database schema" in str(error):
        return f"copy the database, then run `mlflow db upgrade {uri}`"
    return "check tracking.uri, or switch tracking off with `--set tracking.enabled=false`"


def end_parent(info: RunInfo, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
    """End the parent run, and with FAILED or KILLED the children that still run; never raises.

    A parent that MLFLOW_RUN_ID named keeps its status: its owner sets it. One that was made late, as MLflow was away
    when the run began, is found by its tags.
    """
    uri = info.mlflow.get("uri", "")
    if not uri:
        return
    if not reachable(uri):
        warn(f"MLflow does not answer at {uri}: the run's end is not recorded there")
        return
    try:
        client = connect(uri)
        parent = _parent(client, info)
        if parent is None:
            return
        run_id = parent.info.run_id
        left = [] if status == "FINISHED" else find_runs(client, parent.info.experiment_id, info.run)
        for run in left:
            if run.info.run_id != run_id and run.info.status == "RUNNING":
                client.set_terminated(run.info.run_id, status)
        if ATTACHED not in parent.data.tags and parent.info.status != status:
            client.set_terminated(run_id, status)
    except Exception as error:  # the run has ended; a copy that does not say so harms nothing
        warn(f"MLflow at {uri} does not take the run's end ({type(error).__name__}: {error})")


def _parent(client: Any, info: RunInfo) -> Any | None:
    if info.mlflow.get("run_id"):
        return client.get_run(info.mlflow["run_id"])
    experiment = client.get_experiment_by_name(info.parsed().tracking.experiment)
    return None if experiment is None else find_parent(client, experiment.experiment_id, info.run)


def ui_command(tracking: TrackingSpec) -> list[str]:
    """The command that serves MLflow's pages for an SQLite store on 127.0.0.1; the caller adds `--port`.

    Raises:
        UserError: If the store is a server, which has its own pages, or the database does not exist.
    """
    uri = resolve(tracking.uri)
    database = database_file(uri)
    if database is None:
        raise UserError(f"MLflow runs as a server already, at {uri}", f"open {uri} in a browser")
    if not database.exists():
        raise UserError(f"there is no MLflow database at {database}", "run `phasetune run SPEC` first")
    quiet()
    store = ["--backend-store-uri", uri, "--default-artifact-root", str(artifact_folder(database))]
    return [sys.executable, "-m", "mlflow", "ui", *store, "--host", "127.0.0.1", "--workers", "1"]
