"""MLflow's pod as it is rendered: its two containers' commands really run, on a PostgreSQL and an S3 server."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.k8s import manifests
from tests.services import servers

SECRETS = {
    "phasetune-mlflow-auth": {"username": "admin", "password": "an admin's p%ss/w@rd:", "flask-secret-key": "static"},
    "phasetune-tracking": {"username": "phasetune", "password": "for runs, twelve"},
}


class Pod:
    """The rendered pod, with what this machine has in place of the cluster's."""

    def __init__(self, objects: list[Any], postgres: Any, s3: Any, port: int) -> None:
        self.objects, self.port = objects, port
        self.settings = {
            **postgres.settings,
            "region": "us-east-1",
            "mlflow_artifacts_uri": f"s3://{servers.BUCKET}/mlflow",
            "mlflow_allowed_hosts": f"127.0.0.1:{port}",
        }
        self.secrets = {
            **SECRETS,
            "phasetune-postgres": {"username": postgres.user, "password": postgres.password},
            "phasetune-s3": servers.KEYS,
        }
        deployment = next(
            item for item in objects if item["kind"] == "Deployment" and item["metadata"]["name"] == "mlflow"
        )
        spec = deployment["spec"]["template"]["spec"]
        self.containers = {item["name"]: item for item in [*spec["initContainers"], *spec["containers"]]}
        name = next(volume["configMap"]["name"] for volume in spec["volumes"] if "configMap" in volume)
        self.files = next(item["data"] for item in objects if item["metadata"]["name"] == name)
        self.endpoint = s3.address

    def environment(self, name: str, folder: Path) -> dict[str, str]:
        """A container's variables, and no others of the product."""
        values = manifests.environment(self.containers[name], self.settings, self.secrets)
        values = {name: value.replace("/etc/phasetune", str(folder)) for name, value in values.items()}
        values |= {"HOME": str(folder), "TMPDIR": str(folder)}
        if "AWS_ENDPOINT_URL" in values:
            values["AWS_ENDPOINT_URL"] = self.endpoint
        return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **values}

    def command(self, name: str, folder: Path) -> list[str]:
        """A container's command, with this environment's programs and a port of this machine's."""
        item = self.containers[name]
        words = [*item["command"], *item.get("args", [])]
        words[0] = str(Path(sys.executable).with_name(words[0]))
        words = [word.replace("/etc/phasetune", str(folder)) for word in words]
        return [
            {"--port=5000": f"--port={self.port}", "--host=0.0.0.0": "--host=127.0.0.1"}.get(word, word)
            for word in words
        ]

    def prepare(self, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run the first container."""
        for file, text in self.files.items():
            (folder / file).write_text(text)
        return subprocess.run(
            self.command("prepare", folder), env=self.environment("prepare", folder), cwd=folder,
            capture_output=True, text=True, timeout=200,
        )  # fmt: skip


def status(url: str, user: tuple[str, str] | None = None, data: Any = None, method: str = "GET", **headers: str) -> int:
    if user is not None:
        headers["Authorization"] = "Basic " + base64.b64encode(":".join(user).encode()).decode()
    body = data if data is None or isinstance(data, bytes) else json.dumps(data).encode()
    headers.setdefault("Content-Type", "application/json")
    request = urllib.request.Request(url, body, headers, method=method)  # noqa: S310  # our own server
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310  # as above
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.proof
@pytest.mark.timeout(400)
def test_the_pod_starts_and_serves(overlays, postgres, s3, tmp_path):
    pod = Pod(overlays["dev"], postgres, s3, servers.free_port())
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    with ThreadPoolExecutor(2) as both:  # two replicas that start at once
        ended = list(both.map(pod.prepare, folders))
    assert [one.returncode for one in ended] == [0, 0], "\n".join(one.stderr[-2000:] for one in ended)
    assert sorted(" ".join(one.stdout for one in ended).split()).count("made") == 2
    assert postgres.query("SELECT username, is_admin FROM users ORDER BY 1") == [("admin", True), ("phasetune", False)]

    pod.secrets["phasetune-tracking"] = {"username": "phasetune", "password": "another one, now"}
    again = pod.prepare(folders[0])  # a changed secret changes the account
    assert "account admin: as it was" in again.stdout
    assert "account phasetune: changed" in again.stdout

    command = pod.command("mlflow", folders[0])
    assert postgres.password not in " ".join(command)
    log = tmp_path / "mlflow.log"
    with log.open("wb") as out:
        environment = pod.environment("mlflow", folders[0])
        server = subprocess.Popen(command, env=environment, cwd=folders[0], stdout=out, stderr=out)
    uri, runs = f"http://127.0.0.1:{pod.port}", ("phasetune", "another one, now")
    admin = tuple(SECRETS["phasetune-mlflow-auth"][key] for key in ("username", "password"))
    try:
        servers.until("MLflow", lambda: status(f"{uri}{probe(pod)}", Host="10.0.0.7:5000") == 200, server, log)
        search = f"{uri}/api/2.0/mlflow/experiments/search"
        assert status(search, data={"max_results": 5}, method="POST") == 401
        assert status(search, ("phasetune", "for runs, twelve"), {"max_results": 5}, "POST") == 401
        assert status(search, runs, {"max_results": 5}, "POST") == 200
        assert status(search, runs, {"max_results": 5}, "POST", Host="evil.example") == 403
        assert (
            status(f"{uri}/api/2.0/mlflow/users/create", runs, {"username": "x", "password": "x" * 12}, "POST") == 403
        )
        artifact = f"{uri}/api/2.0/mlflow-artifacts/artifacts/0/r/artifacts/a.txt"
        assert status(artifact, data=b"hello", method="PUT") == 401
        assert status(artifact, admin, b"hello", "PUT") == 200
        assert list(s3.sizes("mlflow/").values()) == [5]
    finally:
        servers.kill_family(server)
    assert "Running upgrade" not in log.read_text()


def probe(pod: Pod) -> str:
    return pod.containers["mlflow"]["readinessProbe"]["httpGet"]["path"]
