"""The connection to MLflow: which store, quietly, and without waiting for a server that is away.

MLflow is imported inside the functions: it takes more than a second. What is tracked is decided elsewhere.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from components.common.errors import UserError, redact
from components.common.importing import importing
from components.common.progress import say

PROBE_SECONDS = 3.0

_QUIET = {
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # MLflow's own defaults, 120 s and 7 retries, would hold a training run for a quarter of an hour.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}


class TrackingWarning(UserWarning):
    """MLflow could not be reached or refused something; the run goes on."""


def warn(message: str) -> None:
    """Tell the user that tracking is behind; never an error."""
    warnings.warn(redact(message), TrackingWarning, stacklevel=3)
    say(warning=redact(message))  # a step's own warnings end in its log


def resolve(uri: str) -> str:
    """The URI as every process of the run can use it: SQLite files absolute, credentials in the environment.

    Credentials of an `http(s)` URI move to MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, which child
    processes inherit and records never hold.

    Raises:
        UserError: If the URI is malformed or of another scheme.
    """
    remedy = "use `sqlite:///mlflow.db` or `http(s)://HOST:PORT`"
    if uri.startswith("sqlite:///"):
        file, _, query = uri.removeprefix("sqlite:///").partition("?")
        if not file or file == ":memory:":
            raise UserError(f"tracking.uri: {uri!r} names no file", remedy)
        return f"sqlite:///{Path(file).absolute()}" + (f"?{query}" if query else "")
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as error:
        raise UserError(f"tracking.uri: {redact(uri)!r} is malformed", remedy) from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"tracking.uri: {redact(uri)!r} is no store that tracking can use", remedy)
    # What `redact` left of credentials, in the records or in a compiled pipeline, must not hide the environment's.
    if parts.username is not None and parts.username != "***":
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{port}" if port else "") + parts.path.rstrip("/")


def database_file(uri: str) -> Path | None:
    """The file of a resolved `sqlite:///` URI, None for a server."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:///") else None


def quiet() -> None:
    """Set MLflow's environment for this process and its children, where the user has not: no noise, no long waits."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())
    logging.getLogger("alembic").setLevel(logging.WARNING)


def reachable(uri: str) -> bool:
    """Whether something listens at a resolved URI; answers in about three seconds, also when names do not resolve."""
    if database_file(uri) is not None:
        return True
    parts = urlsplit(uri)
    host = parts.hostname or ""
    if parts.scheme in getproxies() and not proxy_bypass(host):
        return True  # only the proxy can tell
    answers: list[bool] = []

    def probe() -> None:
        address = (host, parts.port or (443 if parts.scheme == "https" else 80))
        try:
            socket.create_connection(address, timeout=PROBE_SECONDS).close()
        except OSError:
            return
        answers.append(True)

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS + 0.5)
    return bool(answers)


def connect(uri: str) -> Any:
    """An `MlflowClient` on a resolved URI; where an SQLite file does not exist it is made, which takes seconds once."""
    quiet()
    with importing():
        from mlflow import MlflowClient

    database = database_file(uri)
    if database is not None and not database.exists():
        _make_database(database)
    return MlflowClient(tracking_uri=uri)


def _make_database(file: Path) -> None:
    """Make MLflow's tables in a file beside and move it into place.

    A process killed in between leaves no half-made database, which MLflow would refuse for ever; and as nothing of
    worth can be lost, the some hundred migrations need not each wait for the disk.
    """
    from mlflow.store.db.utils import _initialize_tables
    from sqlalchemy import create_engine, event

    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    engine = create_engine(f"sqlite:///{partial}")
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
    try:
        _initialize_tables(engine)
        engine.dispose()
        with partial.open("rb+") as made:
            os.fsync(made.fileno())
        # A link, not a rename: it never replaces a database that another process made meanwhile.
        try:
            os.link(partial, file)
        except FileExistsError:
            return
        except OSError:  # a file system without links
            partial.replace(file)
    finally:
        engine.dispose()
        partial.unlink(missing_ok=True)
