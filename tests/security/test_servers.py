"""The pages of MLflow that `phasetune ui` serves: for this machine's user only."""

import http.client
import ipaddress
import os
import socket
import subprocess
import time

import psutil
import pytest

from components.common.spec import TrackingSpec
from components.common.tracking import ui_command
from components.common.tracking_connect import connect


def listening(process: psutil.Process) -> set[str]:
    """The addresses at which a process and its descendants listen."""
    return {
        connection.laddr.ip.removeprefix("::ffff:")
        for one in [process, *process.children(recursive=True)]
        for connection in one.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    """The port of the pages; the process is asked for nothing else."""
    folder = tmp_path_factory.mktemp("pages")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    uri = f"sqlite:///{folder}/mlflow.db"
    connect(uri)  # makes the database
    command = ui_command(TrackingSpec(uri=uri))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", str(number)], cwd=folder, stdout=log, stderr=log, env=os.environ
        )
    try:
        until = time.monotonic() + 120
        while status(number, "127.0.0.1") != 200:
            assert process.poll() is None and time.monotonic() < until, (folder / "log").read_text()[-2000:]
            time.sleep(0.2)
        yield number, listening(psutil.Process(process.pid))
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        _, left = psutil.wait_procs([*family, psutil.Process(process.pid)], timeout=15)
        for one in left:
            one.kill()


def status(port: int, host: str, path: str = "/", **headers: str) -> int:
    """The status of an answer; 0 where there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST" if headers else "GET", path, headers={"Host": f"{host}:{port}", **headers})
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


@pytest.mark.proof
def test_mlflow_s_pages_listen_on_loopback_only(port):
    assert port[1]
    assert all(ipaddress.ip_address(address).is_loopback for address in port[1]), port[1]


@pytest.mark.proof
def test_a_page_of_somebody_else_cannot_ask_mlflow_by_another_name(port):
    """What a browser sends after DNS was made to point at this machine, and what a page elsewhere makes it send."""
    number, _ = port
    path = "/api/2.0/mlflow/experiments/create"
    assert status(number, "evil.example") == 403
    assert status(number, "127.0.0.1", path, Origin="http://evil.example") == 403
