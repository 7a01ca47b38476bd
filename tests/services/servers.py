"""The servers that a cluster has, as processes of their own on this machine: PostgreSQL, S3, MLflow over both.

They listen on 127.0.0.1 only, and nothing of them stays.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import psutil

from tests.services import moto

HOST = "127.0.0.1"
BUCKET = "phasetune"
_AUTHORIZATION = "mlflow.server.auth:authenticate_request_basic_auth"
KEYS = {"AWS_ACCESS_KEY_ID": "server-key", "AWS_SECRET_ACCESS_KEY": "server-secret"}
"""What the S3 server's clients are; runs that go through MLflow's proxy are not given them."""
Server = TypeVar("Server", "Postgres", "S3")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def until(what: str, there: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for a server to answer.

    Raises:
        AssertionError: If it ends, or does not come within two minutes.
    """
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert process.poll() is None, f"{what} ended:\n{log.read_text(errors='replace')[-3000:]}"
        with contextlib.suppress(OSError):
            if there():
                return
        time.sleep(0.1)
    raise AssertionError(f"{what} does not answer:\n{log.read_text(errors='replace')[-3000:]}")


def listens(port: int) -> bool:
    with socket.create_connection((HOST, port), timeout=2):
        return True


def kill_family(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all below it, and wait until they are gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()
        psutil.wait_procs(family, timeout=10)


def postgres_programs() -> Path | None:
    """The folder of PostgreSQL's newest server programs; None where there are none."""
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    on_path = shutil.which("initdb")
    folders += [Path(on_path).parent] if on_path else []
    return max(folders, key=lambda path: (path.parts[-2].isdecimal() and int(path.parts[-2]), str(path)), default=None)


class Postgres:
    """A PostgreSQL server with one database, which asks for a password.

    Attributes:
        uri: Of the database, with user and password.
        programs: The folder of PostgreSQL's programs.
    """

    user, password, database = "phasetune", "p@ss/w%rd:1", "mlflow"

    def __init__(self, programs: Path) -> None:
        self.programs = programs
        # PostgreSQL refuses to run as root, and its user cannot look into the tests' own folders.
        self._folder = Path(tempfile.mkdtemp(prefix="phasetune-postgres-", dir="/tmp"))
        self._account = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        self._port = free_port()
        # SQLAlchemy takes `postgresql://` for psycopg 3, which is not installed.
        self.uri = (
            f"postgresql+psycopg2://{self.user}:{quote(self.password, safe='')}@{HOST}:{self._port}/{self.database}"
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> dict[str, str]:
        """Where it is, as the settings of k8s/ say it."""
        return {
            "postgres_host": HOST,
            "postgres_port": str(self._port),
            "postgres_database": self.database,
            "postgres_sslmode": "disable",
        }

    def _as_account(self) -> dict[str, Any]:
        return {} if self._account is None else {"user": self._account.pw_uid, "group": self._account.pw_gid}

    def start(self) -> None:
        """Make the database's files, come, and make the database."""
        secret = self._folder / "password"
        secret.write_text(self.password)
        if self._account is not None:
            for path in (self._folder, secret):
                os.chown(path, self._account.pw_uid, self._account.pw_gid)
        data, log = self._folder / "data", self._folder / "log"
        options = ["--auth=scram-sha-256", f"--pwfile={secret}", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
        subprocess.run(
            [self.programs / "initdb", "-D", data, "-U", self.user, *options],
            check=True, stdout=subprocess.DEVNULL, timeout=120, cwd="/", **self._as_account(),
        )  # fmt: skip
        command = [self.programs / "postgres", "-D", data, "-h", HOST, "-p", str(self._port), "-k", ""]
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [*command, "-c", "fsync=off"], stdout=out, stderr=out, cwd="/", **self._as_account()
            )
        until("PostgreSQL", lambda: listens(self._port), self._process, log)
        self.query(f"CREATE DATABASE {self.database}", database="postgres")

    def query(self, statement: str, database: str = "") -> list[tuple[Any, ...]]:
        """The rows that a statement gives."""
        import psycopg2

        place = {"host": HOST, "port": self._port, "user": self.user, "password": self.password}
        end = time.monotonic() + 60
        while True:
            try:
                connection = psycopg2.connect(dbname=database or self.database, **place)
                break
            except psycopg2.OperationalError as error:  # it listens before it lets anybody in
                if "starting up" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(0.1)
        connection.autocommit = True
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []

    def stop(self) -> None:
        """End, and leave nothing."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # "fast": it does not wait for its clients
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                kill_family(self._process)
        shutil.rmtree(self._folder, ignore_errors=True)


class S3:
    """An S3 server (moto's) with one bucket.

    Attributes:
        address: Its address.
    """

    def __init__(self, folder: Path) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._log, self._port = folder / "s3.log", free_port()
        self.address = f"http://{HOST}:{self._port}"

    def start(self) -> None:
        """Come, and make the bucket."""
        with self._log.open("wb") as out:
            self._process = subprocess.Popen(moto.command(self._port), stdout=out, stderr=out)
        until("moto's server", lambda: listens(self._port), self._process, self._log)
        self.client().create_bucket(Bucket=BUCKET)

    def client(self) -> Any:
        """A client of it."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.address,
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
        )

    def sizes(self, prefix: str) -> dict[str, int]:
        """The objects below a prefix, with their sizes in bytes."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return {item["Key"]: item["Size"] for page in pages for item in page.get("Contents", [])}

    def stop(self) -> None:
        """End."""
        if self._process is not None:
            kill_family(self._process)


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """A server from its start to its end."""
    try:
        server.start()
        yield server
    finally:
        server.stop()


@dataclass
class Mlflow:
    """An MLflow server as the cluster has it: users, database and artifacts are elsewhere, it keeps nothing itself.

    Attributes:
        postgres: Its database, which holds its users too.
        s3: Where it keeps artifacts; only it has the keys.
        folder: For its settings and its log.
        port: Its port, the same after each start.
    """

    postgres: Postgres
    s3: S3
    folder: Path
    port: int = field(default_factory=free_port)
    admin: tuple[str, str] = ("admin", "an admin's password")
    _process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """Its address, without anybody's name."""
        return f"http://{HOST}:{self.port}"

    def migrate(self, uri: str = "") -> subprocess.CompletedProcess[str]:
        """Bring both schemas (of another database, where one is named) up to date, as before any server runs."""
        return subprocess.run(
            [sys.executable, "-m", "components.common.tracking_schema"],
            env={**os.environ, "MLFLOW_BACKEND_STORE_URI": uri or self.postgres.uri},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    def start(self, workers: int = 2) -> None:
        """Come (back)."""
        settings = self.folder / "basic_auth.ini"
        lines = ["[mlflow]", "default_permission = READ", f"database_uri = {self.postgres.uri.replace('%', '%%')}"]
        settings.write_text("\n".join([*lines, "authorization_function = " + _AUTHORIZATION, ""]))
        settings.chmod(0o600)
        name, password = self.admin
        variables = {
            **KEYS,
            "AWS_ENDPOINT_URL": self.s3.address,
            "MLFLOW_BACKEND_STORE_URI": self.postgres.uri,
            "MLFLOW_AUTH_CONFIG_PATH": str(settings),
            "MLFLOW_AUTH_ADMIN_USERNAME": name,
            "MLFLOW_AUTH_ADMIN_PASSWORD": password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "a secret of these tests",
            "MLFLOW_SERVER_ALLOWED_HOSTS": f"{HOST}:*",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        command = [str(Path(sys.executable).with_name("mlflow")), "server", "--app-name", "basic-auth"]
        command += ["--serve-artifacts", "--artifacts-destination", f"s3://{BUCKET}/mlflow"]
        command += ["--host", HOST, "--port", str(self.port), "--workers", str(workers)]
        log = self.folder / "mlflow.log"
        with log.open("ab") as out:
            self._process = subprocess.Popen(command, env={**os.environ, **variables}, stdout=out, stderr=out)
        until("MLflow", self._healthy, self._process, log)

    def _healthy(self) -> bool:
        # As the cluster's probe asks: without a name.
        with urllib.request.urlopen(f"{self.uri}/health", timeout=10) as answer:  # noqa: S310  # our own server
            return bool(answer.status == 200)

    def kill(self) -> None:
        """Go away without a word."""
        if self._process is not None:
            kill_family(self._process)
            self._process = None


@dataclass
class Counted:
    """A way to a server that counts what goes to it.

    Attributes:
        uri: Its address.
        sent: Bytes that went to the server.
    """

    uri: str
    sent: int = 0


@contextlib.contextmanager
def counting(port: int) -> Iterator[Counted]:
    """A way to a server of this machine, connection by connection."""
    listener = socket.create_server((HOST, 0), backlog=64)
    counted = Counted(f"http://{HOST}:{listener.getsockname()[1]}")
    lock = threading.Lock()

    def pass_on(source: socket.socket, target: socket.socket, counts: bool) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(1 << 16):
                target.sendall(part)
                if counts:
                    with lock:
                        counted.sent += len(part)
        for one in (source, target):  # an end on one side ends the connection: whoever waits sees it
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection((HOST, port), timeout=60)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            for source, target, counts in ((client, server, True), (server, client, False)):
                threading.Thread(target=pass_on, args=(source, target, counts), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield counted
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
