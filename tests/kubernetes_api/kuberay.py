"""KubeRay's part, played by hand: what a test makes happen to RayJobs, and the errand that they are made for."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from components.common.errand import Done, Errand
from components.common.rayjob import run_as_rayjob
from components.common.spec import Spec
from components.common.store import Store

KEY = "0123456789abcdef0123456789abcdef"
FIRST, SECOND = "phases-0123456789abcdef01234567-1", "phases-0123456789abcdef01234567-2"
"""RayJobs of the first attempts at an errand with that key."""
_PODS = itertools.count(1)


def spec_of(store: Path | str, **compute: Any) -> Spec:
    """A spec whose heavy steps run as RayJobs."""
    about = {"image": "registry/phasetune:1", **compute.pop("kubernetes", {})}
    return Spec.model_validate(
        {
            "name": "small",
            "data": {"train": [{"path": "lab://instructions?count=10", "name": "lab"}]},
            "store": str(store),
            "compute": {"ray": "rayjob", "kubernetes": about, **compute},
        }
    )


def errand_of(run: str = "run-1", key: str = KEY) -> Errand:
    """An errand of a run, of a phase."""
    return Errand("train.main.1.s17", run, "phases", key, "components.training.step:run", {"context": "{}"})


def claims(job: dict[str, Any]) -> list[str]:
    """The marks of those who wait for a RayJob."""
    return [name for name in job["metadata"]["annotations"] if name.startswith("waits.phasetune/")]


def pipeline(monkeypatch: pytest.MonkeyPatch, server: Any, run: str) -> dict[str, Any]:
    """This process is a pod of a pipeline's run."""
    workflow = server.put("workflows", f"wf-{run}", labels={"pipeline/runid": run}, spec={})
    monkeypatch.setenv("KFP_RUN_ID", run)
    monkeypatch.setenv("PHASETUNE_WORKFLOW", f"wf-{run}")
    return workflow


def until(there: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Wait for something to be there, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = there()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("it did not come")


class KubeRay:
    """What happens to the RayJobs of a server, step by step.

    Args:
        server: The API server.
        store: The store that the drivers would publish in.
    """

    def __init__(self, server: Any, store: Path | str) -> None:
        self.server, self.store = server, Store(store)

    def send(self, spec: Spec, errand: Errand | None = None) -> Future[Done]:
        """Wait for an errand in a thread, as a step does in its pod."""
        answer: Future[Done] = Future()

        def wait() -> None:
            try:
                answer.set_result(run_as_rayjob(errand or errand_of(), spec))
            except BaseException as error:
                answer.set_exception(error)

        threading.Thread(target=wait, daemon=True).start()
        return answer

    def made(self, name: str) -> str:
        """Wait for a RayJob to be there; returns its name."""
        until(lambda: name in self.server.names("rayjobs"))
        return name

    def admit(self, name: str) -> None:
        """Let it go, as Kueue does."""
        self.server.change("rayjobs", name, {"spec": {"suspend": False}})

    def start(self, name: str, *lines: str) -> str:
        """Its machines are there and its driver runs; returns its submitter's pod."""
        number = next(_PODS)
        cluster, pod = f"{name}-c{number}", f"{name}-s{number}"
        self.admit(name)
        self.server.status(name, "Initializing")
        head = {"ray.io/cluster": cluster, "ray.io/node-type": "head"}
        self.server.put("pods", f"{cluster}-head", labels=head, status={"phase": "Running"})
        labels = {"phasetune/job": name, "app.kubernetes.io/component": "ray-submitter"}
        self.server.put("pods", pod, labels=labels, status={"phase": "Running"})
        self.server.print(pod, *lines)
        self.server.status(name, "Running", "RUNNING", rayClusterName=cluster)
        return pod

    def publish(self, kind: str = "phases", key: str = KEY) -> None:
        """The driver's result is in the store."""
        with self.store.make(kind, key, {}) as folder:
            (folder / "weights").write_text("w")

    def succeed(self, name: str) -> None:
        """Its driver has published and ended well."""
        self.publish()
        self._end_logs(name)
        self.server.status(name, "Complete", "SUCCEEDED")

    def fail(self, name: str, message: str = "exit code 1", reason: str = "AppFailed") -> None:
        """Its driver has failed."""
        self._end_logs(name)
        self.server.status(name, "Failed", "FAILED", message=message, reason=reason)

    def _end_logs(self, name: str) -> None:
        for pod in self.server.names("pods"):
            if pod.startswith(f"{name}-s"):
                self.server.end_log(pod)
