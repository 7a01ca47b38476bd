"""MLflow as a cluster has it: on PostgreSQL and S3, with users; runs against it as users start them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from components.common.records import RunInfo, RunRecords, StepRecord
from tests.services import servers

pytestmark = [pytest.mark.proof, pytest.mark.timeout(1200)]
SPECS = Path(__file__).resolve().parents[2] / "pipelines" / "specs"
EXPERIMENT = "as a service"
USER = {"MLFLOW_TRACKING_USERNAME": "runs", "MLFLOW_TRACKING_PASSWORD": "what runs use: 1"}
"""Whom runs are for MLflow: no administrator."""
SOME = 'path: "lab://instructions?count=1000", name: lab'
TWO_GIB = 2 << 30


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An S3 server."""
    with servers.running(servers.S3(tmp_path_factory.mktemp("s3"))) as server:
        yield server


@pytest.fixture(scope="module")
def mlflow(postgres: Any, s3: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An MLflow server over both, with a user for runs."""
    import requests

    server = servers.Mlflow(postgres, s3, tmp_path_factory.mktemp("mlflow"))
    migrated = server.migrate()
    assert migrated.returncode == 0, migrated.stderr
    try:
        server.start()
        user = {"username": USER["MLFLOW_TRACKING_USERNAME"], "password": USER["MLFLOW_TRACKING_PASSWORD"]}
        place = f"{server.uri}/api/2.0/mlflow/users/create"
        assert requests.post(place, json=user, auth=server.admin, timeout=60).status_code == 200
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def counted(mlflow: Any) -> Iterator[Any]:
    """A way to MLflow that counts what goes there."""
    with servers.counting(mlflow.port) as way:
        yield way


@pytest.fixture(scope="module")
def _user() -> Iterator[None]:
    """This process is the user too, for looking at what is there; no key of S3 is in its environment."""
    before = dict(os.environ)
    os.environ |= USER
    assert not any(name.startswith("AWS_ACCESS") for name in os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@dataclass(frozen=True)
class Tracked:
    """A finished run.

    Attributes:
        folder: Its output folder.
        info: What it is.
        records: Of its steps.
        sent: Bytes that went to MLflow.
        said: What it said.
        live: Points of the longest phase's curve that MLflow held when its server came back.
    """

    folder: Path
    info: RunInfo
    records: RunRecords
    sent: int
    said: str
    live: int

    def phases(self) -> list[StepRecord]:
        """The records of its training steps."""
        steps = sorted(Path(self.info.store, "runs", self.info.run).glob("train.*.json"))
        return [record for step in steps if (record := self.records.read(step.stem)) is not None]


def wait_for(what: str, there: Any, process: subprocess.Popen[str]) -> None:
    """Wait for something to happen while a run goes on."""
    end = time.monotonic() + 600
    while not there():
        assert process.poll() is None, f"the run ended before {what}: {process.communicate()}"
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def quickstart(postgres: Any, mlflow: Any, counted: Any, new_place: Any, _user: None) -> Tracked:
    """The quickstart, while which MLflow's server is killed as a phase begins, and comes back after its end."""
    place = new_place("quickstart")
    changes = [f"data.train=[{{{SOME}}}]", "controls=[one_off]"]
    changes += [f"tracking.uri={counted.uri}", f"tracking.experiment={EXPERIMENT}"]
    # A busy machine's server may take longer at first than the 4 s that a run waits, whose report would send it later.
    patient = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}
    settings = [part for one in changes for part in ("--set", one)]
    process = place.start("run", SPECS / "quickstart.yaml", *settings, **patient)

    def points() -> int:
        rows = postgres.query(
            "SELECT count(*) FROM metrics JOIN runs USING (run_uuid) WHERE key = 'train/loss' AND name LIKE 'one_off/%'"
        )
        return int(rows[0][0])

    def started() -> bool:
        events = (place.folder / "runs" / "quickstart").glob(".events-*.jsonl")
        said = [json.loads(line) for file in events for line in file.read_text().splitlines()]
        return any(one.get("step") == "train.one_off.1.s1" and one.get("state") == "started" for one in said)

    def ended() -> bool:
        return any((place.folder / "runs" / "store").glob("runs/*/train.one_off.*.json"))

    with contextlib.ExitStack() as ending:
        ending.callback(process.kill)
        wait_for("the longest phase", started, process)
        mlflow.kill()
        wait_for("the phase's end without a server", ended, process)
        live = points()
        # The run is held up for as long as the server takes to come back: its last steps are short.
        os.kill(process.pid, signal.SIGSTOP)
        mlflow.start()
        os.kill(process.pid, signal.SIGCONT)
        out, err = process.communicate(timeout=900)
    assert process.returncode == 0, out + err
    folder = place.folder / "runs" / "quickstart"
    info = RunInfo.from_json((folder / "run.json").read_text())
    return Tracked(folder, info, RunRecords(info.store, info.run), counted.sent, out + err, live)


@pytest.fixture(scope="module")
def runs(quickstart: Tracked, mlflow: Any) -> dict[str, Any]:
    """MLflow's runs of it, by name."""
    from mlflow import MlflowClient

    client = MlflowClient(mlflow.uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def test_postgres_holds_the_run_and_its_children(quickstart, runs, postgres):
    rows = postgres.query("SELECT name, status, user_id FROM runs")
    names = {"main/1 tier-1", "main/2 tier-2", "main/3 tier-3", "control: one_off", "one_off/1 all-tiers"}
    assert names < {name for name, _, _ in rows}
    assert {status for _, status, _ in rows} == {"FINISHED"}
    assert {name for name, _, _ in rows} == set(runs)
    assert len(quickstart.phases()) == sum("/" in name for name in runs) == 4
    (parent,) = postgres.query("SELECT run_uuid FROM runs WHERE name = 'quickstart'")
    assert parent[0] == quickstart.info.mlflow["run_id"]
    params = dict(postgres.query(f"SELECT key, value FROM params WHERE run_uuid = '{parent[0]}'"))  # noqa: S608  # a run's id, made by MLflow
    assert params["curriculum.sft.epochs"] == "2"
    assert params["splitting.tiers"] == "3"


def test_nothing_is_lost_though_the_server_was_killed(quickstart, runs, postgres):
    (longest,) = (record for record in quickstart.phases() if record.info["curriculum"] == "one_off")
    assert quickstart.live == 0
    assert longest.info["steps"] > 20
    for record in quickstart.phases():
        about = record.info
        run = runs[f"{about['curriculum']}/{about['index']} {about['name']}"]
        points = about["learning"]
        assert len(points) == about["steps"] > 5
        for metric, name in (("train/loss", "loss"), ("train/grad_norm", "grad_norm")):
            rows = postgres.query(
                f"SELECT step, value FROM metrics WHERE run_uuid = '{run.info.run_id}' AND key = '{metric}'"  # noqa: S608  # as above
            )
            assert len(rows) == len(points)
            assert dict(rows) == {point["step"]: pytest.approx(point[name], rel=1e-12) for point in points}


def test_artifacts_went_through_the_proxy_to_s3(quickstart, runs, s3, mlflow):
    parent = runs["quickstart"].info
    assert parent.artifact_uri.startswith("mlflow-artifacts:/")
    below = f"mlflow/{parent.experiment_id}/{parent.run_id}/artifacts/"
    there = {name.removeprefix(below): size for name, size in s3.sizes(below).items()}
    local = [quickstart.folder / name for name in ("report.html", "summary.json")]
    local += sorted((quickstart.folder / "plots").glob("*.png"))
    assert there == {path.name: path.stat().st_size for path in local}
    log = (mlflow.folder / "mlflow.log").read_text()
    through = f"PUT /api/2.0/mlflow-artifacts/artifacts/{parent.experiment_id}/{parent.run_id}/"
    assert log.count(through) == len(local)


def test_weights_went_nowhere(quickstart, s3, mlflow):
    from mlflow import MlflowClient

    phases = quickstart.phases()
    weights = [Path(record.uri) / "model" / "model.safetensors" for record in phases]
    sizes = [path.stat().st_size for path in weights]
    artifacts = sum(s3.sizes("mlflow/").values())
    print(f"{quickstart.sent:,} bytes sent to MLflow, of which {artifacts:,} artifacts; weights {sum(sizes):,}")
    assert not [name for name in s3.sizes("") if name.endswith((".safetensors", ".bin", ".pt"))]
    assert quickstart.sent - artifacts < min(sizes)
    client = MlflowClient(mlflow.uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    models = client.search_logged_models([experiment.experiment_id])
    assert {model.tags["phasetune.uri"] for model in models} == {f"{record.uri}/model" for record in phases}


def test_a_checkpoint_of_two_gib_costs_mlflow_nothing(quickstart, mlflow, tmp_path):
    """The same run with a phase of a large model, told to MLflow as a run of its own."""
    from components.common.tracking import open_parent, sync

    store = str(tmp_path / "store")
    info = RunInfo.from_json(quickstart.info.to_json())
    info.run, info.store = "large-0001", store
    record = next(one for one in quickstart.phases() if one.step == "train.main.1.s1")
    record.key, record.uri = "large" * 6, f"{store}/phases/{'large' * 6}"
    weights = Path(record.uri) / "model" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    with weights.open("wb") as file:
        file.truncate(TWO_GIB)
    records = RunRecords(store, info.run)
    with servers.counting(mlflow.port) as way:
        spec = info.parsed().tracking.model_copy(update={"uri": way.uri})
        info.mlflow = open_parent(spec, info)
        records.open(info)
        records.write(record)
        assert sync(info, records, None, [])
        assert 1_000 < way.sent < 1_000_000


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ({**USER, "MLFLOW_TRACKING_PASSWORD": "wrong"}, "does not take the password of 'runs'"),
        ({}, "asks for a password"),
    ],
    ids=["wrong", "none"],
)
def test_a_wrong_password_is_said_before_any_work(mlflow, place, monkeypatch, user, message):
    for name in USER:
        monkeypatch.delenv(name, raising=False)
    set_uri = f"tracking.uri={mlflow.uri}"
    ended = place.run("run", SPECS / "quickstart.yaml", "--set", set_uri, code=1, **user)
    said = ended.stdout + ended.stderr
    assert said.count("error:") == 1
    assert f"MLflow at {mlflow.uri} {message}" in said
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in said
    assert "Traceback" not in said
    assert "wrong" not in said
    assert place.entries() == set()
    assert "run.log" not in {path.name for path in place.folder.rglob("*")}


def test_two_servers_that_start_at_once_migrate_one_after_the_other(postgres, s3, tmp_path):
    postgres.query("CREATE DATABASE fresh")
    uri = postgres.uri.removesuffix(postgres.database) + "fresh"
    server = servers.Mlflow(postgres, s3, tmp_path)
    with ThreadPoolExecutor(2) as both:
        ended = list(both.map(server.migrate, [uri, uri]))
    assert [one.returncode for one in ended] == [0, 0], [one.stderr[-2000:] for one in ended]
    both_versions = "SELECT (SELECT version_num FROM alembic_version), (SELECT version_num FROM alembic_version_auth)"
    versions = postgres.query(both_versions, database="fresh")
    assert len(versions) == 1
    assert all(versions[0])
    assert server.migrate(uri).stdout == "MLflow's database is up to date\n"
    assert postgres.query(both_versions, database="fresh") == versions


def test_servers_migrate_nothing(mlflow):
    log = (mlflow.folder / "mlflow.log").read_text()
    assert "Application startup complete" in log
    assert "Creating initial MLflow database tables" not in log
    assert "Running upgrade" not in log


@pytest.mark.parametrize("fault", ["password", "absent"])
def test_a_database_that_refuses_is_one_plain_error(postgres, s3, tmp_path, fault):
    secret = postgres.uri.split("@")[0].rsplit(":", 1)[1]
    port = servers.free_port()
    uri = {
        "password": postgres.uri.replace(secret, "wrong"),
        "absent": f"postgresql+psycopg2://ann:wrong@127.0.0.1:{port}/x",
    }[fault]
    ended = servers.Mlflow(postgres, s3, tmp_path).migrate(uri)
    assert ended.returncode == 1
    assert "does not let us in" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "wrong" not in ended.stderr


COMPILED = """
import sys
from pathlib import Path
from components.common.launcher import session
from components.common.spec_file import load_spec
from pipelines.phased import cluster_info, run_locally

spec = load_spec(Path(sys.argv[1]), [])
with session(Path("ray-logs")):
    run_locally(spec, cluster_info(spec).to_json(), Path("kfp"))
"""
"""Runs a pipeline as it is compiled for a cluster: the context of its tasks says nothing of this run."""


def test_a_compiled_pipeline_with_its_store_in_s3(mlflow, s3, place, _user):
    from mlflow import MlflowClient

    name = place.spec(
        {
            "splitting": {"tiers": 2},
            "controls": ["one_off"],
            "tracking": {"uri": mlflow.uri, "experiment": "compiled"},
            "store": f"s3://{servers.BUCKET}/store",
        }
    )
    variables = {**servers.KEYS, "AWS_ENDPOINT_URL": s3.address, "PHASETUNE_CACHE": str(place.folder / "cache")}
    ended = subprocess.run(
        [sys.executable, "-c", COMPILED, name],
        cwd=place.folder, env={**os.environ, **variables}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    client = MlflowClient(mlflow.uri)
    experiment = client.get_experiment_by_name("compiled").experiment_id
    found = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert set(found) == {"small", "main/1 tier-1", "main/2 tier-2", "control: one_off", "one_off/1 all-tiers"}
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    (record,) = [key for key in s3.sizes("store/runs/") if key.endswith("/run.json")]
    info = RunInfo.from_json(s3.client().get_object(Bucket=servers.BUCKET, Key=record)["Body"].read().decode())
    assert record == f"store/runs/{info.run}/run.json"
    assert info.run.startswith("small-")
    assert "{{" not in info.run
    assert info.mlflow == {"uri": mlflow.uri, "run_id": found["small"].info.run_id}
    parent = s3.sizes(f"mlflow/{experiment}/{info.mlflow['run_id']}/artifacts/")
    summary = next(key for key in parent if key.endswith("/summary.json"))
    told = json.loads(s3.client().get_object(Bucket=servers.BUCKET, Key=summary)["Body"].read())
    assert told["complete"] is True
    assert {
        model.tags["phasetune.uri"].partition("/phases/")[0] for model in client.search_logged_models([experiment])
    } == {f"s3://{servers.BUCKET}/store"}
    assert not [key for key in s3.sizes("mlflow/") if key.endswith(".safetensors")]


@pytest.mark.soak  # test_sweep_mlflow.py has it in SQLite
def test_a_sweep_is_a_tree_of_runs(mlflow, postgres, s3, place, _user):
    place.spec({"tracking": {"uri": mlflow.uri, "experiment": "sweeps"}}, "base")
    space = {"splitting.tiers": [1, 2], "curriculum.order": "permutations"}
    (place.folder / "sweep.yaml").write_text(json.dumps({"name": "orders", "base": "base.yaml", "space": space}))
    said = place.run("sweep", "sweep.yaml")
    assert "warning" not in said.stdout + said.stderr
    written = json.loads((place.folder / "runs" / "orders" / "sweep.json").read_text())
    rows = postgres.query(
        "SELECT run_uuid, experiment_id, status, "
        "(SELECT value FROM tags WHERE tags.run_uuid = runs.run_uuid AND key = 'mlflow.parentRunId') "
        "FROM runs JOIN experiments USING (experiment_id) WHERE experiments.name = 'sweeps'"
    )
    assert {status for _, _, status, _ in rows} == {"FINISHED"}
    [(sweep, experiment)] = [(run, number) for run, number, _, parent in rows if parent is None]
    trials = [run for run, _, _, parent in rows if parent == sweep]
    phases = [run for run, _, _, parent in rows if parent in trials]
    assert (len(trials), len(phases)) == (3, written["phases_trained"]) == (3, 5)
    params = postgres.query("SELECT run_uuid, value FROM params WHERE key = 'order'")
    assert sorted(value for run, value in params if run in trials) == ["1", "1-2", "2-1"]
    artifacts = s3.sizes(f"mlflow/{experiment}/{sweep}/artifacts/")
    page = place.folder / "runs" / "orders" / "sweep.html"
    assert [size for name, size in artifacts.items() if name.endswith("/sweep.html")] == [page.stat().st_size]
