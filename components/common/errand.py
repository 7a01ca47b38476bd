"""A step's heavy work as an errand: what is asked of a driver in a Ray cluster, and how it tells why it failed.

The step that sends the errand waits for the result to be in the store; the driver runs the same function of the same
step, holds the lease and publishes. Nothing but JSON passes between the two, and no secret: those are in the pods.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any, Self

from components.common import errors
from components.common.errors import UserError, mendable
from components.common.spec import Spec
from components.common.store_entries import Kind

INSIDE = "PHASETUNE_INSIDE_RAY"
"""Set where an errand is run: there the work is done rather than sent on."""
ERRAND = "PHASETUNE_ERRAND"
"""The variable that holds the errand of a driver."""
CALL: ContextVar[tuple[str, dict[str, Any]]] = ContextVar("CALL")
"""The step's function that is being run, `package.module:name`, and its arguments."""
_FAILED = "phasetune-failed: "
_LARGEST = 4 << 20


@dataclass(frozen=True, slots=True)
class Errand:
    """What a driver is asked to do.

    Attributes:
        step: The step's name (`records.step_name`).
        run: The run that asks.
        kind: Of the result.
        key: Of the result.
        target: The step's function.
        arguments: Its arguments, strings and numbers.
    """

    step: str
    run: str
    kind: Kind
    key: str
    target: str
    arguments: dict[str, Any]

    def encoded(self) -> str:
        """Letters, digits, `-`, `_` and `=` only, so that no shell, template or YAML reads anything into it."""
        return base64.urlsafe_b64encode(zlib.compress(json.dumps(asdict(self)).encode(), 9)).decode()

    @classmethod
    def decoded(cls, text: str) -> Self:
        """The inverse.

        Raises:
            ValueError: If the text is no errand.
        """
        reader = zlib.decompressobj()
        try:
            data = reader.decompress(base64.urlsafe_b64decode(text.encode()), _LARGEST)
            return cls(**json.loads(data))
        except (zlib.error, TypeError, RecursionError) as error:
            raise ValueError(f"this is no errand: {error}") from error


@dataclass(frozen=True, slots=True)
class Done:
    """How an errand ended well.

    Attributes:
        ours: Whether the job was started by the run that asks, not by another one that wants the same result.
        waited: Seconds that passed before its driver began: in the queue, and for machines to start.
    """

    ours: bool
    waited: float


def errand_name(errand: Errand, attempt: int) -> str:
    """The name of the job that makes a result: the same for everyone who wants it.

    At most 47 characters, as KubeRay allows a RayJob: `phases-<24 of the key>-1`.
    """
    return f"{errand.kind}-{errand.key[:24]}-{attempt}".lower()


def run_errand(errand: Errand, spec: Spec) -> Done:
    """Have an errand run where the spec says, and wait for its end.

    Args:
        errand: What is asked.
        spec: The spec as the errand's stage reads it; `compute.ray` says where.

    Raises:
        UserError: What the driver said, or what must be mended before it can run.
        StepFailed: If it failed otherwise, after as many attempts as the spec allows.
    """
    if spec.compute.ray == "rayjob":
        from components.common.rayjob import run_as_rayjob

        return run_as_rayjob(errand, spec)
    from components.common.jobs_api import run_on_cluster

    return run_on_cluster(errand, spec)


def goes_elsewhere(spec: Spec) -> bool:
    """Whether heavy work is sent away by this process."""
    return spec.compute.ray != "local" and INSIDE not in os.environ


def failure_line(error: BaseException) -> str:
    """One line that tells the step that waits what the user can mend; empty where it is nothing of the kind."""
    known = mendable(error)
    if known is None:
        return ""
    return _FAILED + json.dumps({"kind": type(known).__name__, "message": known.message, "remedy": known.remedy})


def failure_in(text: str) -> UserError | None:
    """What a driver said in its log that the user can mend; None where it said nothing of the kind."""
    for line in reversed(text.splitlines()):
        _, found, told = line.partition(_FAILED)
        if not found:
            continue
        try:
            about, _ = json.JSONDecoder().raw_decode(told)
            kind = getattr(errors, str(about["kind"]), UserError)
            if isinstance(kind, type) and issubclass(kind, UserError):
                return kind(str(about["message"]), str(about["remedy"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return None
