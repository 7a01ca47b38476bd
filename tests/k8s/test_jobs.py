"""The programs of the two jobs that set a development cluster up, against servers that answer as the real ones do."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.k8s import rules
from tests.product_scripts import module_at

COMPONENTS = Path(__file__).parents[2] / "k8s" / "components"


def generator() -> ModuleType:
    """The program that makes the secrets."""
    return module_at(COMPONENTS / "secrets" / "generate.py")


class Secrets(ThreadingHTTPServer):
    """A Kubernetes API server that knows secrets only, and refuses what RBAC would refuse."""

    daemon_threads = True

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], dict[str, str]] = {}
        self.readable = {("phasetune", "phasetune-s3"), ("phasetune", "phasetune-tracking")}
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Secrets

    def answer(self, code: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        place = (self.path.split("/")[4], body["metadata"]["name"])
        if place in self.server.held:
            self.answer(409, {"kind": "Status", "code": 409, "reason": "AlreadyExists"})
        else:
            self.server.held[place] = body["data"]
            self.answer(201, body)

    def do_GET(self) -> None:
        parts = self.path.split("/")
        place = (parts[4], parts[6])
        if place not in self.server.readable:
            self.answer(403, {"kind": "Status", "code": 403, "reason": "Forbidden"})
        else:
            self.answer(200, {"kind": "Secret", "metadata": {"name": place[1]}, "data": self.server.held[place]})

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def cluster():
    server = Secrets()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def api(cluster):
    from kubernetes import client

    configuration = client.Configuration(host=f"http://127.0.0.1:{cluster.server_address[1]}")
    with client.ApiClient(configuration) as connection:
        yield client.CoreV1Api(connection)


def plain(held: dict[str, str]) -> dict[str, str]:
    return {key: base64.b64decode(value).decode() for key, value in held.items()}


def test_secrets_are_made_once(cluster, api):
    generate = generator()
    generate.make(api, ["kubeflow"])
    made = {name: set(held) for (space, name), held in cluster.held.items() if space == "phasetune"}
    assert made == rules.SECRETS  # the keys that pods refer to
    for name in ("phasetune-s3", "phasetune-tracking"):
        assert cluster.held["kubeflow", name] == cluster.held["phasetune", name]
    assert {name for space, name in cluster.held if space == "kubeflow"} == {"phasetune-s3", "phasetune-tracking"}
    passwords = [plain(held).get("password") for held in cluster.held.values()]
    assert min(len(password) for password in passwords if password) >= 24
    before = json.dumps(sorted(cluster.held.items()))
    generate.make(api, ["kubeflow"])
    assert json.dumps(sorted(cluster.held.items())) == before


def test_a_lost_copy_gets_the_same_values(cluster, api):
    generate = generator()
    generate.make(api, ["kubeflow"])
    del cluster.held["kubeflow", "phasetune-tracking"]
    generate.make(api, ["kubeflow"])
    assert cluster.held["kubeflow", "phasetune-tracking"] == cluster.held["phasetune", "phasetune-tracking"]


def test_values_differ_each_time():
    generate = generator()
    first, second = generate.values(), generate.values()
    assert all(first[name] != second[name] for name in first)


def run_bucket(address: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    account = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    return subprocess.run(
        [sys.executable, COMPONENTS / "s3" / "bucket.py"],
        env={**environment, **account, "AWS_ENDPOINT_URL": address, "BUCKET": "phasetune-new"},
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip


def test_the_bucket_is_made_and_the_server_tested(s3):
    for _ in range(2):  # the second time the bucket is there
        ended = run_bucket(s3.address, dict(os.environ))
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout == "of 16 simultaneous writes, 1 made a new object and 1 replaced it\n"
    assert s3.client().list_objects_v2(Bucket="phasetune-new").get("KeyCount") == 0  # nothing of it stays


def test_a_server_without_conditional_writes_is_refused(tmp_path):
    """A server that ignores the conditions."""

    class Careless(Handler):
        def reply(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_PUT = do_HEAD = do_DELETE = reply

    server = ThreadingHTTPServer(("127.0.0.1", 0), Careless)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        ended = run_bucket(f"http://127.0.0.1:{server.server_address[1]}", dict(os.environ))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert ended.returncode == 1
    assert "does not honour conditional writes" in ended.stderr
