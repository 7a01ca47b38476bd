"""How a step leaves that waits for a job elsewhere: on a Ctrl-C, as its pod is evicted, or with the end of its run.

And what the next pod of the same step knows of the attempts before it: see `is_retried` and `lost_before`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

from components.common.errand import Errand
from components.common.errors import UserError
from components.common.kubernetes_api import connect
from components.common.launcher import StepFailed
from components.common.objects import Objects
from components.common.objects_json import json_object
from components.common.rayjob_claim import KFP_RUN, WORKFLOW, cancel_run, find_claim, is_ending
from components.common.records import RUNS

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


def note_lost(objects: Objects, errand: Errand, failed: int, said: str) -> None:
    """Keep in the store that an attempt was lost: it leaves no job behind that would tell the next pod.

    Args:
        objects: The store's.
        errand: What was asked.
        failed: How many attempts of the run have failed, with this one.
        said: What is known of its end.
    """
    values = {"failed": failed, "said": said, "ended": time.time()}
    with contextlib.suppress(UserError):  # the store is away: the next pod counts one less
        objects.write(_lost(errand), json.dumps(values).encode())


def lost_before(objects: Objects, errand: Errand) -> tuple[int, str]:
    """How many attempts of the run had failed when one was lost, and what was said of it; (0, "") long afterwards."""
    data = objects.read(_lost(errand))
    with contextlib.suppress(ValueError, KeyError, TypeError):  # what is damaged tells nothing
        values = {} if data is None else json_object(data)
        return (int(values["failed"]), str(values["said"])) if is_retried(float(values["ended"])) else (0, "")
    return 0, ""


def _lost(errand: Errand) -> str:
    return f"{RUNS}/{errand.run}/lost/{errand.kind}-{errand.key[:24]}.json"


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
    except StepFailed:  # likewise
        return True
    except UserError:  # it does not answer, or not to us
        return False


def release_unfinished() -> None:
    """Let go of the RayJobs that this pipeline's run left at work; never raises.

    To be called when no step of the run waits any more: what a step left as its pod was killed would keep its GPUs
    until its deadline. Those that have ended stay, to tell why, until the Workflow is deleted.
    """
    kfp = os.environ.get(KFP_RUN)
    if not kfp:
        return
    try:
        cluster = connect()
        cluster.patience = HURRY
        # Not by our own id of the run: a laptop that waits beside it goes on.
        for name in cancel_run(cluster, "", kfp, ended=False):
            print(f"deleted the RayJob {name}: no step of the run waits for it any more", flush=True)
    except Exception as error:  # whatever it is: the run has ended, and its report is worth more
        said = (str(error).splitlines() or [type(error).__name__])[0]
        print(f"RayJobs of this run may still work, and nobody waits for them: {said}", flush=True)


def _in_pipeline() -> bool:
    return bool(os.environ.get(WORKFLOW) or os.environ.get(KFP_RUN))
