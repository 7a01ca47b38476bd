"""The driver of an errand in a Ray cluster: runs the step's function where its work belongs, and says how it ended.

It is the entry point of a RayJob and of a job of Ray's Jobs API, `python -m components.common.ray_driver`, and reads
the errand from the variable PHASETUNE_ERRAND. It runs on the head, which has no GPU: work of one process that needs
one is a task on a node that has. What it prints is the job's log: how far the work is, and as its last line what the
user can mend (`errand.failure_line`).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from components.common.errand import ERRAND, INSIDE, Errand, failure_line
from components.common.errors import UserError
from components.common.joining import joined
from components.common.launcher import STOPPING, connect_ray
from components.common.progress import EVENTS, PRINTED
from components.common.records import RunInfo
from components.common.session_call import resolve
from components.common.spec import Spec
from components.common.store_entries import Kind

_ONE_PROCESS: tuple[Kind, ...] = ("phases", "optimizers", "evaluations")
"""The kinds of results that one process may make with a GPU of its own."""
_STOPPED = 143
"""The exit code of what was asked to stop."""


def main() -> int:
    """Run the errand; returns the exit code: 0, 1 for a failure, 143 where it was asked to stop."""
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Ray's processes are started with it ignored
    os.environ |= {INSIDE: "1", EVENTS: PRINTED}
    try:
        errand = Errand.decoded(os.environ.pop(ERRAND, ""))
        print(f"{errand.step}: making {errand.kind}/{errand.key} for the run {errand.run}", flush=True)
        began = time.time()
        if _needs_gpu(errand):
            in_task(perform, errand)
        else:
            perform(errand)
        print(f"{errand.step}: done in {time.time() - began:.1f} s", flush=True)
        return 0
    except (SystemExit, KeyboardInterrupt):
        print("stopped", flush=True)
        return _STOPPED
    except BaseException as error:
        return _failed(error)


def perform(errand: Errand) -> None:
    """Call the errand's function here."""
    os.environ |= {INSIDE: "1", EVENTS: PRINTED}
    resolve(errand.target)(**errand.arguments)


def _failed(error: BaseException) -> int:
    line = failure_line(error)
    if not isinstance(error, UserError):
        traceback.print_exception(error)
        sys.stderr.flush()
    # Last, and on its own: whoever waits reads the log from its end.
    print(f"\n{line}" if line else f"failed: {type(error).__name__}: {error}", flush=True)
    return 1


def _leave(number: int, frame: object) -> None:
    raise SystemExit(_STOPPED)


def _needs_gpu(errand: Errand) -> bool:
    if errand.kind not in _ONE_PROCESS:  # what the others are about is not read here
        return False
    return needs_gpu(errand.kind, joined(RunInfo.from_json(errand.arguments["context"])).parsed())


def needs_gpu(kind: Kind, spec: Spec) -> bool:
    """Whether a result is made by one process that needs a GPU; several, and Ray Data's actors, get theirs from Ray."""
    if kind == "evaluations":
        return spec.compute.of("evaluation").gpus_per_worker > 0
    return kind in ("phases", "optimizers") and spec.compute.workers == 1 and spec.compute.gpus_per_worker > 0


def in_task(function: Callable[..., None], *arguments: Any) -> None:
    """Call a function in a task on a node with a GPU, and hand a wish to stop on to it.

    Raises:
        UserError: As the function raised it.
    """
    connect_ray()
    import ray

    # Never again by Ray itself: the next attempt begins with a look at what was there already.
    task = ray.remote(num_cpus=1, num_gpus=1, max_retries=0)(function)
    under_way = task.remote(*arguments)
    try:
        ray.get(under_way)
    except (SystemExit, KeyboardInterrupt):
        _deaf()
        ray.cancel(under_way, force=False)  # a KeyboardInterrupt there: a phase saves its state first
        ray.wait([under_way], timeout=STOPPING)
        raise
    except ray.exceptions.RayTaskError as error:
        raise _cause(error) from error


def _cause(error: Any) -> BaseException:
    """What the task raised, out of Ray's wrapping."""
    cause: BaseException = error.cause
    return cause if isinstance(cause, UserError) else error


def _deaf() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _end_quietly(code: int) -> None:
    """Leave the cluster, and end with a code whatever the libraries' threads are about."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        leaving = threading.Thread(target=ray.shutdown, daemon=True)
        leaving.start()
        leaving.join(10.0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _end_quietly(main())
