"""A real Ray cluster of one machine and an S3 server, each a process of its own, and steps of a run that use both."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import io
import json
import os
import secrets
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.services import moto

LONGEST = 240.0
"""Seconds after which something that does not come is a failure; nothing is measured by it."""
SPEC: dict[str, Any] = {
    "name": "small",
    "seed": 5,
    "model": {"path": "lab"},
    "data": {"train": [{"path": "lab://instructions?count=96", "name": "lab"}], "held_out": {"fraction": 0.1}},
    "scoring": {"method": "length"},
    "splitting": {"tiers": 1, "cut": "quantiles"},
    "curriculum": {"sft": {"epochs": 1, "learning_rate": 1.0e-3, "batch_size": 16, "max_length": 256}},
    "controls": [],
    "evaluation": {"suites": ["loss"], "max_examples": 4, "resamples": 100},
    "tracking": {"enabled": False},
    "compute": {"threads": 1, "checkpoint_every": 5},
}
LONG = {"epochs": 12, "learning_rate": 1.0e-3, "batch_size": 16, "max_length": 256}
"""The settings of a phase of some 60 steps, to have time for faults."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def until(happens: Callable[[], Any], what: str, seconds: float = LONGEST) -> Any:
    """Wait until something happens; returns what it is."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := happens():
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what} did not come")


def end_family(process: subprocess.Popen[Any]) -> None:
    """End a process and all that it started, at once."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()
        psutil.wait_procs(family, timeout=10)


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """While inside, this thread and what it starts are on a network of their own, which has the loopback alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_network = 0x40000000  # CLONE_NEWNET
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(new_network):
            pytest.skip("a network of its own needs root and the right to make one")
        with socket.socket() as probe:  # bring `lo` up: SIOCSIFFLAGS with IFF_UP and IFF_RUNNING
            fcntl.ioctl(probe, 0x8914, struct.pack("16sh14s", b"lo", 0x41, b""))
        yield
    finally:
        libc.setns(before, new_network)
        os.close(before)


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """An S3 server as a process, with an empty bucket `bucket`; gives the variables of those who use it."""
    [port] = free_ports(1)
    with (folder / "s3.log").open("ab") as log:
        process = subprocess.Popen(moto.command(port), stdout=log, stderr=log)
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:

        def made() -> bool:
            assert process.poll() is None, (folder / "s3.log").read_text()[-2000:]
            with contextlib.suppress(OSError):
                return requests.put(f"{variables['AWS_ENDPOINT_URL']}/bucket", timeout=5).ok
            return False

        until(made, "the S3 server")
        yield variables
    finally:
        end_family(process)


def _has_begun(process: subprocess.Popen[bytes], log: Path) -> bool:
    """Whether a node is up, or has ended."""
    return process.poll() is not None or "Ray runtime started" in log.read_text()


@dataclass
class Head:
    """`ray start --head`, with token authentication, on loopback only; ended with all that it started.

    Attributes:
        variables: Of the environment of its processes, beside ours.
        token: What lets us in.
        address: Of its Jobs API.
        cpus: Of the head.
        nodes: Whether others will join, which they can on a network of their own alone (`own_network`).
    """

    variables: dict[str, str]
    cpus: int = 3
    nodes: bool = False
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    address: str = ""
    _process: subprocess.Popen[bytes] | None = None
    _nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _folder: str = ""
    _ports: list[int] = field(default_factory=lambda: free_ports(7))

    def start(self) -> None:
        """Start (again), on the same ports where nobody took them."""
        self._folder = tempfile.mkdtemp(prefix="ph-", dir="/tmp")  # Ray's sockets have long names
        self._process = self._started("head", self._head)

    def _started(self, name: str, begin: Callable[[Path], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        """A node that is up; begun again where a busy machine took longer than the 15 s that Ray gives its parts."""
        for attempt in range(4):
            log = Path(self._folder, f"{name}-{attempt}.log")
            process = begin(log)
            with contextlib.suppress(AssertionError):
                until(partial(_has_begun, process, log), name)
            if process.poll() is None and "Ray runtime started" in log.read_text():
                return process
            end_family(process)
            self._ports = self._ports if self._process else free_ports(7)
        raise AssertionError(log.read_text()[-3000:])

    def _head(self, log: Path) -> subprocess.Popen[bytes]:
        gcs, dashboard, agent, agent_rpc, client, metrics, env_agent = map(str, self._ports)
        self.address = f"http://127.0.0.1:{dashboard}"
        ports = {"port": gcs, "dashboard-port": dashboard, "dashboard-agent-listen-port": agent}
        ports |= {"dashboard-agent-grpc-port": agent_rpc, "ray-client-server-port": client}
        ports |= {"metrics-export-port": metrics, "runtime-env-agent-port": env_agent}
        more = {"dashboard-host": "127.0.0.1", "node-ip-address": "127.0.0.1", "num-cpus": str(self.cpus)}
        more |= {"object-store-memory": str(100 * 2**20), "temp-dir": self._folder, **ports}
        return self._ray(log, "--head", *(f"--{option}={value}" for option, value in more.items()))

    def _ray(self, log: Path, *options: str, before: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **self.variables, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        # 0 tells Ray that there is no other machine: else it would listen on every interface.
        environment |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": str(int(self.nodes))}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        command = [*before, str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
        with log.open("ab") as out:
            return subprocess.Popen([*command, *options], stdout=out, stderr=out, env=environment)

    def join(self, hidden: Path, cpus: int = 1) -> subprocess.Popen[bytes]:
        """Start another node, which has a disk of its own where others have the folder `hidden`."""
        hidden.mkdir(parents=True, exist_ok=True)
        alone = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs tmpfs "$0" && exec "$@"', str(hidden))

        def begin(log: Path) -> subprocess.Popen[bytes]:
            agent, agent_rpc, metrics, env_agent = map(str, free_ports(4))
            ports = {"dashboard-agent-listen-port": agent, "dashboard-agent-grpc-port": agent_rpc}
            ports |= {"metrics-export-port": metrics, "runtime-env-agent-port": env_agent}
            more = {"address": f"127.0.0.1:{self._ports[0]}", "node-ip-address": "127.0.0.1", "num-cpus": str(cpus)}
            more |= {"object-store-memory": str(100 * 2**20), **ports}
            return self._ray(log, *(f"--{option}={value}" for option, value in more.items()), before=alone)

        self._nodes.append(self._started(f"node-{len(self._nodes)}", begin))
        return self._nodes[-1]

    def inside(self) -> dict[str, str]:
        """What a driver finds in its environment that is in this cluster."""
        entry = {"RAY_ADDRESS": f"127.0.0.1:{self._ports[0]}", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        return {**entry, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": str(int(self.nodes))}

    def jobs(self) -> list[dict[str, Any]]:
        """The jobs of the Jobs API, as it tells them."""
        answer = requests.get(
            f"{self.address}/api/jobs/", headers={"Authorization": f"Bearer {self.token}"}, timeout=10
        )
        answer.raise_for_status()
        return [job for job in answer.json() if job["submission_id"]]

    def jobs_beside(self, known: set[str]) -> list[dict[str, Any]]:
        """The jobs that were not known before."""
        return [job for job in self.jobs() if job["submission_id"] not in known]

    def log(self, job: dict[str, Any]) -> str:
        """What a job has printed so far."""
        log = Path(self._folder, "session_latest", "logs", f"job-driver-{job['submission_id']}.log")
        return log.read_text() if log.exists() else ""

    def drivers(self) -> list[psutil.Process]:
        """The drivers of jobs under way."""
        assert self._process is not None
        children = psutil.Process(self._process.pid).children(recursive=True)
        found = []
        for one in children:
            with contextlib.suppress(psutil.Error):
                if one.cmdline()[1:3] == ["-m", "components.common.ray_driver"]:
                    found.append(one)
        return found

    def kill(self) -> None:
        """Go at once, with everything."""
        for node in self._nodes:
            end_family(node)
        self._nodes.clear()
        if self._process is not None:
            end_family(self._process)
            self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)


@contextlib.contextmanager
def nodes_of_their_own(folder: Path, count: int) -> Iterator[tuple[Head, Path, list[subprocess.Popen[bytes]]]]:
    """A head that does no work, the folder that every node has on a disk of its own, and so many nodes of a core."""
    with own_network(), s3_server(folder) as variables:
        cache = folder / "cache"
        head = Head({**variables, "PHASETUNE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}, cpus=0, nodes=True)
        try:
            head.start()
            yield head, cache, [head.join(cache) for _ in range(count)]
        finally:
            head.kill()


@dataclass(frozen=True)
class Work:
    """A run whose data is prepared and split, in a store of S3; its first phase is what is done elsewhere.

    Attributes:
        folder: A working directory.
        variables: Of the environment of its steps.
        spec: The run's spec.
    """

    folder: Path
    variables: dict[str, str]
    spec: dict[str, Any]

    def step(self, code: str, run: str = "run-1", **variables: str) -> subprocess.Popen[str]:
        """Run code with `context` (the run's) and `split` (its reference), in a process of its own."""
        info = {
            "run": run,
            "name": "small",
            "spec": self.spec,
            "spec_digest": "",
            "store": self.spec["store"],
            "output_dir": "",
            "started": "2026-01-01T00:00:00+00:00",
        }
        before = "import os\ncontext, split = os.environ['CONTEXT'], os.environ.get('SPLIT', '')\n"
        split = self.folder / "split"
        environment = {**os.environ, **self.variables, "CONTEXT": json.dumps(info), **variables}
        environment["SPLIT"] = split.read_text() if split.exists() else ""
        return subprocess.Popen(
            [sys.executable, "-c", before + code],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def prepare(self) -> None:
        """Do what comes before the phase."""
        code = (
            "from components.preparing import step as p; from components.scoring import step as s\n"
            "from components.splitting import step as c\n"
            "made = p.run(context)\nscored = s.run(context, made)\n"
            "open('split', 'w').write(c.run(context, scored, 5))"
        )
        ended(self.step(code), 0)

    def train(self, run: str = "run-1", **variables: str) -> subprocess.Popen[str]:
        """Start the step that trains the first phase; its last line is the phase's reference."""
        code = "from components.training.step import run\nprint(run(context, split, '', 'main', 1, 5))"
        return self.step(code, run, **variables)

    def with_compute(self, **compute: Any) -> Work:
        """The same, with another `compute`."""
        return Work(self.folder, self.variables, {**self.spec, "compute": {**self.spec["compute"], **compute}})

    def with_store(self, store: str) -> Work:
        """The same, with another store."""
        return Work(self.folder, self.variables, {**self.spec, "store": store})

    def difficulties(self) -> dict[str, float]:
        """The difficulty of every example of the scores, by id."""
        import pyarrow.parquet as pq

        [name] = [name for name in self.names("scores") if name.endswith("/scores.parquet")]
        rows = pq.read_table(io.BytesIO(self.read(name)), columns=["id", "difficulty"]).to_pylist()
        return {row["id"]: row["difficulty"] for row in rows}

    def names(self, below: str) -> list[str]:
        """The objects of the store below a name."""
        prefix = self.spec["store"].removeprefix("s3://bucket/")
        pages = self._client().get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=f"{prefix}/{below}")
        return [item["Key"].removeprefix(f"{prefix}/") for page in pages for item in page.get("Contents", [])]

    def read(self, name: str) -> bytes:
        """An object of the store."""
        prefix = self.spec["store"].removeprefix("s3://bucket/")
        return bytes(self._client().get_object(Bucket="bucket", Key=f"{prefix}/{name}")["Body"].read())

    def _client(self) -> Any:
        import boto3

        keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
        return boto3.client("s3", endpoint_url=self.variables["AWS_ENDPOINT_URL"], **keys)

    def weights(self) -> bytes:
        """The weights of the one phase that is made."""
        [name] = [name for name in self.names("phases") if name.endswith("/model/model.safetensors")]
        return self.read(name)

    def manifest(self) -> dict[str, Any]:
        """What the store says of that phase."""
        [name] = [name for name in self.names("phases") if name.endswith("/manifest.json")]
        return dict(json.loads(self.read(name)))

    def holders(self, kind: str = "") -> list[dict[str, Any]]:
        """Who holds leases, of a kind of result or of any."""
        leases = [json.loads(self.read(name)) for name in self.names(f"leases/{kind}")]
        return [lease["holder"] for lease in leases if lease["holder"] is not None]

    def newest(self) -> int:
        """The step of the newest checkpoint; 0 where there is none."""
        pointers = [name for name in self.names("checkpoints") if name.endswith("/pointer")]
        kept = [item for name in pointers for item in json.loads(self.read(name))["kept"]]
        return max((int(item["step"]) for item in kept), default=0)


def new_store() -> str:
    """A store of S3 that nobody else has."""
    return f"s3://bucket/{uuid.uuid4().hex}"


def prepared(head: Head, folder: Path, cache: Path | None = None, **changes: Any) -> Work:
    """A run of which the data is split, in a store of its own; what is heavy is done in a cluster.

    Args:
        head: Of the cluster.
        folder: A working directory.
        cache: Where copies of what lies in S3 are kept; in the folder where it is not told.
        changes: Of top-level keys of the spec.
    """
    variables = {**head.variables, "PHASETUNE_CACHE": str(cache or folder / "cache"), "RAY_AUTH_TOKEN": head.token}
    spec = {**SPEC, "store": new_store(), **changes}
    spec["compute"] = {**spec["compute"], "ray": head.address}
    work = Work(folder, {**variables, "PHASETUNE_HEARTBEAT": "4"}, spec)
    work.prepare()
    return work


def ended(process: subprocess.Popen[str], code: int, seconds: float = LONGEST) -> str:
    """What a step printed, which must end with this code."""
    out, _ = process.communicate(timeout=seconds)
    assert process.returncode == code, out
    return out
