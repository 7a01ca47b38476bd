"""KubeRay's part, played for the drivers: each RayJob's runs for real, as a process of this machine.

It has the environment that the RayJob gives its pods. Where a driver needs a Ray cluster, it is one of `ray_head`.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.integration import ray_head as rays

SECRETS = {("s3", "id"): "x", ("s3", "key"): "x"}


class KubeRay:
    """Runs the drivers of a server's RayJobs.

    Attributes:
        drivers: Those that were started, in order.
        variables: What their pods find of the Ray cluster that they are in; nothing where none is needed.
        ends: The signal that takes a driver away with its RayJob: KubeRay asks it to end, a lost node does not.
    """

    def __init__(self, server: Any, folder: Path) -> None:
        self.variables: dict[str, str] = {}
        self.ends = signal.SIGTERM
        self.drivers: list[subprocess.Popen[str]] = []
        self._server, self._folder = server, folder
        self._at_work: dict[str, subprocess.Popen[str]] = {}
        server.on_create, server.on_delete = self._start, self._stop

    def _environment(self, job: dict[str, Any]) -> dict[str, str]:
        """What the driver finds in its pod: the container's variables, and those of Ray's runtime environment."""
        [container] = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
        found = {}
        for one in container["env"]:
            reference = one.get("valueFrom", {}).get("secretKeyRef")
            found[one["name"]] = one["value"] if reference is None else SECRETS[reference["name"], reference["key"]]
        here = {"HOME": str(self._folder), "TMPDIR": str(self._folder), "PHASETUNE_CACHE": str(self._folder / "pod")}
        kept = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}
        quiet = {name: value for name, value in os.environ.items() if name.startswith(("HF_", "PHASETUNE_TEST"))}
        return {**quiet, **found, **here, **kept, **yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]}

    def _start(self, job: dict[str, Any]) -> None:
        name = job["metadata"]["name"]
        command = shlex.split(job["spec"]["entrypoint"])
        assert command[0] == "python"
        driver = subprocess.Popen(
            [sys.executable, *command[1:]],
            cwd=Path(__file__).parents[2],
            env={**self._environment(job), **self.variables, "PHASETUNE_HEARTBEAT": "4"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.drivers.append(driver)
        self._at_work[name] = driver
        pod = f"{name}-submitter"
        labels = job["spec"]["submitterPodTemplate"]["metadata"]["labels"]
        head = {"ray.io/cluster": name, "ray.io/node-type": "head"}
        self._server.put("pods", f"{name}-head", labels=head, status={"phase": "Running"})
        self._server.put("pods", pod, labels=labels, status={"phase": "Running"})
        self._server.status(name, "Running", "RUNNING", rayClusterName=name)
        for line in driver.stdout:
            self._server.print(pod, line.rstrip("\n"))
        code = driver.wait()
        self._server.end_log(pod)
        if name in self._server.names("rayjobs"):
            ended = ("Complete", "SUCCEEDED") if code == 0 else ("Failed", "FAILED")
            self._server.status(name, *ended, message=f"the driver ended with code {code}")

    def _stop(self, job: dict[str, Any]) -> None:
        """KubeRay stops the driver before it takes its machines away."""
        driver = self._at_work.get(job["metadata"]["name"])
        if driver is not None and driver.poll() is None:
            driver.send_signal(self.ends)

    def close(self) -> None:
        for driver in self.drivers:
            driver.kill()
            driver.wait()


def as_rayjobs(spec: dict[str, Any], s3: dict[str, str]) -> dict[str, Any]:
    """A spec with its heavy steps as RayJobs, whose pods find the S3 server."""
    plain = {name: s3[name] for name in ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")}
    about = {"image": "registry/phasetune:1", "environment": plain}
    secrets = {
        "aws_access_key_id": {"secret": "s3", "key": "id"},
        "aws_secret_access_key": {"secret": "s3", "key": "key"},
    }
    compute = {**spec["compute"], "ray": "rayjob", "kubernetes": about}
    return {**spec, "secrets": secrets, "compute": compute}


def work_in(folder: Path, s3: dict[str, str], sft: dict[str, Any]) -> Any:
    """A run of which the data is split, in a store of its own."""
    spec = as_rayjobs({**rays.SPEC, "store": rays.new_store()}, s3)
    spec["curriculum"] = {**spec["curriculum"], "sft": sft}
    folder.mkdir(exist_ok=True)
    work = rays.Work(folder, {**s3, "PHASETUNE_CACHE": str(folder / "cache"), "PHASETUNE_HEARTBEAT": "4"}, spec)
    work.prepare()
    return work
