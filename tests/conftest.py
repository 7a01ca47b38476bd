"""What every test stands on: an environment of its own, the public data, servers, and nothing left running.

The environment is set when this file is read, before any test imports torch, boto3 or MLflow: those read it once.
"""

from __future__ import annotations

import functools
import gc
import os
import re
import sys
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from components.lab import MODEL_FOLDER
from tests import checkov_environment
from tests.kubernetes_api.server import ApiServer
from tests.services import moto, servers

ROOT = Path(__file__).resolve().parents[1]
MARK = "PHASETUNE_TEST_SESSION"
"""Every process that descends from this one has the variable with this session's value, also when orphaned."""
SERVERS = re.compile(
    r"\braylet\b|\bgcs_server\b|\bmlflow\b.*\b(server|ui)\b|\bmlflow\.server\b|\bservices/moto\.py\b|/bin/postgres\b"
)
_FROM_OUTSIDE = re.compile(r"^(AWS_|MLFLOW_|RAY_|HF_|HUGGING_FACE_|KUBERNETES_|KUBECONFIG$|PHASETUNE_(?!NO_SKIP$))")
"""PHASETUNE_NO_SKIP is the tests' own: see needed.py."""


def _prepare_environment() -> None:
    """Nothing of the user's accounts and servers reaches a test, no test asks the hub, and libraries are quiet."""
    for name in [name for name in os.environ if _FROM_OUTSIDE.match(name)]:
        del os.environ[name]
    # Threads of OpenMP spin while they wait: two processes with two threads each on two cores slow both down manyfold.
    threads = str(max(1, (os.cpu_count() or 2) // 2))
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
    os.environ |= {
        MARK: uuid.uuid4().hex,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_DEFAULT_REGION": "us-east-1",
        "DO_NOT_TRACK": "true",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "KUBECONFIG": os.devnull,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MPLBACKEND": "Agg",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # 15 as Ray has it: beside other tests its workers would hardly get on
        "TOKENIZERS_PARALLELISM": "false",
    }


_prepare_environment()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data files beside the checkout."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the public data files are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def lab_model() -> Path:
    """The folder of the lab's base model."""
    return MODEL_FOLDER


@pytest.fixture(scope="session")
def checkov() -> Callable[..., list[dict[str, Any]]]:
    """`checkov(folder, framework, skips=())`: the failed checks; see checkov_environment.py. For proofs only."""
    python = checkov_environment.environment(ROOT / ".cache") / "bin" / "python"
    return functools.partial(checkov_environment.check, python)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of an S3 server with one bucket, `bucket`."""
    with moto.serving() as address:
        yield address


@pytest.fixture(scope="module")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables, to be copied: making them takes seconds."""
    from components.common.tracking_connect import connect

    file = tmp_path_factory.mktemp("template") / "mlflow.db"
    connect(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(scope="module")
def postgres() -> Iterator[servers.Postgres]:
    """A PostgreSQL server with an empty database."""
    programs = servers.postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    with servers.running(servers.Postgres(programs)) as server:
        yield server


@pytest.fixture
def kubernetes_api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Kubernetes API of ours (kubernetes_api/server.py), which KUBECONFIG names; pauses of its clients are short."""
    monkeypatch.setattr("components.common.kubernetes_api._FIRST_PAUSE", 0.01)
    monkeypatch.setattr("components.common.kubernetes_api._LONGEST_PAUSE", 0.05)
    server = ApiServer()
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
    yield server
    server.close()


@pytest.fixture
def traced() -> Iterator[None]:
    """While the test runs, Python keeps count of the memory in use."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.fixture(autouse=True)
def _working_directory() -> Iterator[None]:
    """A test that goes elsewhere (by `monkeypatch.chdir`) is back when it ends."""
    before = Path.cwd()
    yield
    after = Path.cwd()
    os.chdir(before)
    assert after == before, f"the test left the working directory at {after}; use monkeypatch.chdir"


@pytest.fixture(autouse=True)
def _imported_for_good() -> Iterator[None]:
    """What a test has imported is not looked through for garbage in each of the tests that follow."""
    before = len(sys.modules)
    yield
    if len(sys.modules) > before + 100:
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_running() -> Iterator[None]:
    """No server outlives the tests: Ray, MLflow, PostgreSQL and S3 servers started below this process are looked for.

    It is set up before every other fixture of the session, so it looks after all of them have ended.
    """
    yield
    left = servers_of_session(os.environ[MARK])
    # A server that was told to end may still be about it.
    _, left = psutil.wait_procs(left, timeout=10)
    described = [describe(process) for process in left]
    for process in left:
        process.kill()
    psutil.wait_procs(left, timeout=10)
    assert not left, "left running by the tests, and now ended:\n" + "\n".join(described)


def servers_of_session(session: str) -> list[psutil.Process]:
    """The servers that carry a session's mark, without the Ray that this very process would end at its exit."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()
    found = []
    for process in psutil.process_iter():
        try:
            if SERVERS.search(" ".join(process.cmdline())) and process.environ().get(MARK) == session:
                found.append(process)
        except (psutil.Error, OSError):  # it has ended, or is somebody else's
            continue
    return [process for process in found if process.pid != os.getpid()]


def describe(process: psutil.Process) -> str:
    """A process's number and the start of its command."""
    try:
        return f"  {process.pid}: {' '.join(process.cmdline())[:160]}"
    except psutil.Error:
        return f"  {process.pid}"
