"""Live metrics of a phase while it trains: sent from a thread, dropped where MLflow is away.

Nothing depends on them: the step's record holds every point, and `sync` sends what is missing.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Mapping
from typing import Any

from components.common.records import RunInfo
from components.common.tracking_connect import connect, reachable, warn
from components.common.tracking_runs import RunTree, learning_metrics, send

INTERVAL = 2.0  # seconds between batches
PATIENCE = 5.0  # seconds
CLOSING = 3.0  # seconds
MAX_WAITING = 100_000  # points


class PhaseStream:
    """Sends a phase's learning curve to MLflow while it trains.

    Args:
        info: The run; nothing is sent where its `mlflow` names no parent run.
        name: The phase's name.
        key: The phase's key.
        curriculum: `main` or the control's name.
        index: The phase's place in the curriculum, from 1.
        seed: The run's seed.
        patience: Seconds of training before the first batch. Connecting costs two seconds of a core, so a phase that
            ends before sends nothing here; `sync` does.
    """

    def __init__(
        self,
        info: RunInfo,
        name: str,
        key: str,
        curriculum: str,
        index: int,
        seed: int,
        patience: float = PATIENCE,
    ) -> None:
        self._info = info
        self._identity = (curriculum, index, seed, key, name)
        self._patience = patience
        self._on = bool(info.mlflow.get("uri") and info.mlflow.get("run_id"))
        self._pid = -1
        self._thread: threading.Thread | None = None

    def log(self, point: Mapping[str, Any]) -> None:
        """Queue a point; never blocks, never raises.

        Args:
            point: {"step", "time" (Unix seconds), "loss", ...}: every number in it is a metric but these two.
        """
        if not self._on:
            return
        # The thread and the queue belong to the process that logs: neither survives a fork.
        if self._pid != os.getpid():
            self._start()
        with contextlib.suppress(queue.Full):
            self._points.put_nowait(dict(point))

    def close(self) -> None:
        """Send what is queued, for at most three seconds."""
        if self._pid != os.getpid() or self._thread is None:
            return
        self._closing.set()
        self._thread.join(CLOSING)
        self._on = False

    def _start(self) -> None:
        self._pid = os.getpid()
        self._points: queue.Queue[dict[str, Any]] = queue.Queue(MAX_WAITING)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mlflow-stream", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # no thread to be had
            self._on, self._thread = False, None

    def _work(self) -> None:
        if self._closing.wait(self._patience) and self._patience:
            return
        try:
            if not reachable(self._info.mlflow["uri"]):
                raise ConnectionError("nothing listens there")
            self._send()
        except Exception as error:  # whatever MLflow, SQLAlchemy or the network raise: training goes on
            self._on = False
            warn(
                f"MLflow does not take live metrics ({type(error).__name__}: {error}); they are sent when the run ends"
            )

    def _send(self) -> None:
        client = connect(self._info.mlflow["uri"])
        tree = RunTree(client, self._info, client.get_run(self._info.mlflow["run_id"]))
        run = tree.phase(*self._identity, started=lambda: round(time.time() * 1000))
        if run.info.status != "RUNNING":
            client.update_run(run.info.run_id, status="RUNNING")
        logged = tree.logged(run)
        while True:
            ending = self._closing.is_set()
            points = self._waiting()
            if points:
                send(client, run.info.run_id, learning_metrics(points, logged), {}, {})
            if ending:
                return
            self._closing.wait(INTERVAL)

    def _waiting(self) -> list[dict[str, Any]]:
        points: list[dict[str, Any]] = []
        with contextlib.suppress(queue.Empty):
            while True:
                points.append(self._points.get_nowait())
        return points
