"""Places for stores, a way to their S3 server that can be disturbed, KubeRay's part, and MLflow's variables."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from components.common import rayjob_log, rayjob_wait
from components.common.spec import Spec
from components.common.store import Store
from tests import needed
from tests.kubernetes_api import kuberay as rayjobs
from tests.kubernetes_api import schemas
from tests.services.moto import point_at


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where copies of what lies in S3 are kept on this machine."""
    monkeypatch.setenv("PHASETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def s3_place(s3_server: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty prefix of the S3 server, which the environment points at."""
    point_at(monkeypatch, s3_server)
    return f"s3://bucket/{uuid.uuid4().hex}"


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place for a store, of either kind."""
    return str(tmp_path / "store") if request.param == "folder" else request.getfixturevalue("s3_place")


@pytest.fixture
def store(place: str) -> Store:
    """An empty store, of either kind."""
    return Store(place)


@pytest.fixture
def warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Reads what the user was warned of so far."""
    path = tmp_path / "events"
    monkeypatch.setenv("PHASETUNE_EVENTS", str(path))

    def said() -> list[str]:
        events = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
        return [event["warning"] for event in events if "warning" in event]

    return said


class Disturbance:
    """A way to a server that fails as it is told.

    Attributes:
        address: What to ask instead of the server.
        faults: How the next connections fail: `500` answers with that, `silent` with nothing, `cut` ends the answer
            in its middle, `lost` passes the request on and then cuts. Taken from the front; none left: all is well.
        seen: How many connections there were.
    """

    def __init__(self, server: str) -> None:
        host, _, port = server.removeprefix("http://").partition(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.faults: list[str] = []
        self.seen = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.seen += 1
            fault = self.faults.pop(0) if self.faults else ""
            threading.Thread(target=self._pass_on, args=(connection, fault), daemon=True).start()

    def _pass_on(self, client: socket.socket, fault: str) -> None:
        """One request for each connection: every one of them may fail by itself."""
        with client:
            client.settimeout(30)
            request = _request(client)
            if not request or fault == "cut-early":
                return
            if fault == "500":
                client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            if fault == "silent":
                threading.Event().wait(3)
                return
            head, _, body = request.partition(b"\r\n\r\n")
            lines = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"connection:", b"expect:"))]
            with socket.create_connection(self._server) as server:
                server.sendall(b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body)
                answer = b""
                while part := server.recv(1 << 16):
                    answer += part
            if fault == "lost":
                return
            client.sendall(answer[: len(answer) * 3 // 4] if fault == "cut" else answer)


def _request(client: socket.socket) -> bytes:
    """A whole request with its body."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = client.recv(1 << 16)
        if not part:
            return b""
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    fields = {}
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        fields[name.strip().lower()] = value.strip()
    if fields.get(b"expect", b"").lower() == b"100-continue":
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    while len(body) < int(fields.get(b"content-length", b"0")):
        part = client.recv(1 << 16)
        if not part:
            return b""
        body += part
    return head + b"\r\n\r\n" + body


@pytest.fixture
def disturbed(s3_server: str, s3_place: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disturbance]:
    """The way to the S3 server, which the environment points at; the pauses between attempts are short."""
    way = Disturbance(s3_server)
    point_at(monkeypatch, way.address)
    monkeypatch.setattr("components.common.objects_s3._FIRST_PAUSE", 0.005)
    yield way
    way.close()
    assert os.environ["AWS_ENDPOINT_URL"] == way.address


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk of a size (`64k`, `1m`) that is soon full."""
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        disk = tmp_path / "disk"
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a tiny disk needs root and the right to mount")
        mounted.append(disk)
        return disk

    yield mount
    for disk in mounted:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture
def kuberay(kubernetes_api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> rayjobs.KubeRay:
    """KubeRay's part, played by the test; RayJobs are checked where the schemas are there."""
    if needed.CRDS.is_dir():  # else test_rayjob_object.py says so
        kubernetes_api.check = schemas.faults
    monkeypatch.setattr(rayjob_wait, "_SHORTEST", 0.01)
    monkeypatch.setattr(rayjob_log, "_PAUSE", 0.05)
    return rayjobs.KubeRay(kubernetes_api, tmp_path / "store")


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    """A spec whose heavy steps run as RayJobs, with the store that `kuberay` publishes in."""
    return rayjobs.spec_of(tmp_path / "store")


@pytest.fixture
def stop_when() -> Iterator[Callable[[Callable[[], Any], int], None]]:
    """`stop_when(there, number)`: send this process a signal when something is there, unless the test has ended."""
    ended = threading.Event()

    def begin(there: Callable[[], Any], number: int) -> None:
        def wait() -> None:
            while not there():
                if ended.wait(0.01):
                    return
            os.kill(os.getpid(), number)

        threading.Thread(target=wait, daemon=True).start()

    yield begin
    ended.set()


@pytest.fixture(scope="module")
def mlflow_environment() -> Iterator[None]:
    """No variable of MLflow's is set, its server is asked without a proxy; what tests set is taken back."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1"
    yield
    os.environ.clear()
    os.environ.update(before)
