"""How a step leaves that waits for a job elsewhere: on a Ctrl-C, as its pod is evicted, or with the end of its run."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

from components.common.errors import UserError
from components.common.kubernetes_api import connect
from components.common.rayjob_claim import KFP_RUN, WORKFLOW, find_claim, is_ending

HURRY = 10.0
"""Seconds that one thing may take on the way out: a pod that is asked to end has 30."""
_RETRIED = 900.0
"""Seconds within which Kubeflow retries a step; see `pipelines/pods.py`."""


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Leave in order on SIGTERM, with the exit code 143."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(*_: object) -> NoReturn:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def is_retried(ended: float | None) -> bool:
    """Whether an attempt ended so lately that it is Kubeflow who tries again.

    Long afterwards it is the user who does, and has mended something: the attempt does not count.

    Args:
        ended: Unix time of its end; None where that is not known.
    """
    return ended is None or time.time() - ended < _RETRIED


def nobody_comes_again(stop: BaseException, run: str) -> bool:
    """Whether a wish to stop ends the run, so that nobody will wait for its job any more.

    A pod that is evicted is started again. Where Kubernetes does not say which it is, it counts as evicted: what is
    left then, `phasetune cancel` stops.

    Args:
        stop: What was raised: a KeyboardInterrupt is the user's.
        run: The run's id.
    """
    return isinstance(stop, KeyboardInterrupt) or not _in_pipeline() or run_is_ending(run)


def run_is_ending(run: str) -> bool:
    """Whether this process is a pod of a pipeline's run that is being ended; False on a laptop."""
    if not _in_pipeline():
        return False
    try:
        cluster = connect()
        cluster.patience = HURRY
        claim = find_claim(cluster, run)
        return not claim.uid or is_ending(cluster, claim)  # without a uid: the Workflow is gone
    except UserError:  # it does not answer, or not to us
        return False


def _in_pipeline() -> bool:
    return bool(os.environ.get(WORKFLOW) or os.environ.get(KFP_RUN))
