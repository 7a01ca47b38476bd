"""What runs talk to, made to fail: an S3 server behind a way that can be disturbed, and an MLflow server that goes."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil

_PIECE = 1 << 16
_SILENCE = 4.0
"""Seconds for which a silent server says nothing: longer than the client waits, so never waited for."""


@dataclass
class Disturbance:
    """How requests fail.

    Attributes:
        wanted: Whether a request (method and path) is disturbed.
        faults: What happens to the next ones: `500`, `silent` (no answer), `cut-early` (nothing is passed on), `cut`
            (the answer ends in its middle), `lost` (done, and the answer is lost), `hold` (half of the request's body
            is passed on, then nothing, until `released`). Taken from the front.
        met: The faults that happened, with method and path.
        holding: Set while a request is held.
        released: Lets a held request go, which breaks it.
    """

    wanted: Callable[[str, str], bool] = lambda method, path: True
    faults: list[str] = field(default_factory=list)
    met: list[tuple[str, str, str]] = field(default_factory=list)
    holding: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def next(self, method: str, path: str) -> str:
        """The fault of a request; empty where all is well."""
        with self._lock:
            if not self.faults or not self.wanted(method, path):
                return ""
            fault = self.faults.pop(0)
            self.met.append((fault, method, path))
            return fault


class _WayServer(ThreadingHTTPServer):
    """Stands before a server (`host:port`)."""

    daemon_threads, block_on_close, request_queue_size = True, False, 128

    def __init__(self, behind: str, disturbance: Disturbance) -> None:
        self.behind, self.disturbance = behind, disturbance
        super().__init__(("127.0.0.1", 0), _Way)

    def handle_error(self, request: Any, address: Any) -> None:
        """A client that is killed breaks its connections; that is what is tested."""


class _Way(BaseHTTPRequestHandler):
    """One request for each connection, so that every one may fail by itself."""

    server: _WayServer

    def handle_one_request(self) -> None:
        self.close_connection = True
        self.raw_requestline = self.rfile.readline(_PIECE)
        if self.raw_requestline and self.parse_request():
            with contextlib.suppress(OSError, http.client.HTTPException):
                self._pass_on(self.server.disturbance.next(self.command, self.path))

    def handle_expect_100(self) -> bool:
        return True  # said when it is known whether the request is passed on

    def _pass_on(self, fault: str) -> None:
        if fault == "silent":
            self.server.disturbance.released.wait(_SILENCE)
        if fault in ("silent", "cut-early"):
            return
        if fault == "500":
            self.wfile.write(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        if self.headers.get("Expect"):
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        size = int(self.headers.get("Content-Length") or 0)
        with contextlib.closing(http.client.HTTPConnection(self.server.behind, timeout=60)) as there:
            there.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    there.putheader(name, value)
            there.putheader("Connection", "close")
            there.endheaders()
            self._body(there, size // 2 if fault == "hold" else size)
            if fault == "hold":
                self.server.disturbance.holding.set()
                self.server.disturbance.released.wait(60)
                return
            answer = there.getresponse()
            body = answer.read()
        if fault == "lost":
            return
        self._answer(answer, body[: len(body) // 2] if fault == "cut" else body)

    def _body(self, there: http.client.HTTPConnection, size: int) -> None:
        while size:
            piece = self.rfile.read(min(size, _PIECE))
            if not piece:
                raise ConnectionError("the client is gone")
            there.send(piece)
            size -= len(piece)

    def _answer(self, answer: http.client.HTTPResponse, body: bytes) -> None:
        lines = [f"HTTP/1.1 {answer.status} {answer.reason}"]
        hop = ("connection", "transfer-encoding", "keep-alive")
        lines += [f"{name}: {value}" for name, value in answer.getheaders() if name.lower() not in hop]
        if answer.getheader("Content-Length") is None and answer.status not in (204, 304):
            lines.append(f"Content-Length: {len(body)}")
        self.wfile.write("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + body)


@contextlib.contextmanager
def way_to(server: str, disturbance: Disturbance) -> Iterator[str]:
    """An address that passes requests on to a server, as far as the disturbance lets it."""
    listener = _WayServer(server.removeprefix("http://"), disturbance)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.server_port}"
    finally:
        disturbance.released.set()
        listener.shutdown()
        listener.server_close()


class Bucket:
    """An S3 server with one bucket, and what a test looks for in it.

    Attributes:
        server: Its address.
        place: A store's place in it.
    """

    def __init__(self, server: str, prefix: str) -> None:
        import boto3

        self.server, self.place, self._prefix = server, f"s3://bucket/{prefix}", prefix
        keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
        self._client = boto3.client("s3", endpoint_url=server, **keys)

    def names(self, below: str = "") -> list[str]:
        """The objects below a name, without the store's prefix."""
        pages = self._client.get_paginator("list_objects_v2")
        found = pages.paginate(Bucket="bucket", Prefix=f"{self._prefix}/{below}")
        return [item["Key"].removeprefix(f"{self._prefix}/") for page in found for item in page.get("Contents", [])]

    def read(self, name: str) -> bytes:
        """An object.

        Raises:
            FileNotFoundError: If it is not there, maybe since it was listed: as of a file.
        """
        try:
            return bytes(self._client.get_object(Bucket="bucket", Key=f"{self._prefix}/{name}")["Body"].read())
        except self._client.exceptions.NoSuchKey:
            raise FileNotFoundError(name) from None

    def write(self, name: str, data: bytes) -> None:
        """Put an object there."""
        self._client.put_object(Bucket="bucket", Key=f"{self._prefix}/{name}", Body=data)


class Mlflow:
    """An MLflow server on a database that stays, whether the server is there or not."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Come (back), on the same port."""
        places = ["--backend-store-uri", f"sqlite:///{self._folder}/server.db"]
        places += ["--artifacts-destination", str(self._folder / "files")]
        command = [sys.executable, "-m", "mlflow", "server", *places, "--host", "127.0.0.1", "--port", str(self._port)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen([*command, "--workers", "1"], stdout=log, stderr=log)
        end = time.monotonic() + 120
        while time.monotonic() < end:
            assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=2):
                if self._healthy():
                    return
            time.sleep(0.1)
        raise AssertionError("the server does not answer")

    def _healthy(self) -> bool:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)) as there:
            there.request("GET", "/health")
            return there.getresponse().status == 200

    def kill(self) -> None:
        """Go away without a word."""
        if self._process is not None:
            family = [psutil.Process(self._process.pid), *psutil.Process(self._process.pid).children(recursive=True)]
            for one in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            self._process.wait()
            psutil.wait_procs(family, timeout=10)
            self._process = None
