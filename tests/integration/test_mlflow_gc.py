"""The CronJob of `mlflow gc`, run as it is rendered, on the servers of `test_mlflow_service.py`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from components.common.records import StepRecord
from tests import needed
from tests.integration.test_mlflow_service import _user, mlflow, s3
from tests.k8s import manifests

__all__ = ["_user", "mlflow", "s3"]
pytestmark = [pytest.mark.proof, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def clean_up(postgres: Any, mlflow: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs the CronJob `mlflow-gc` once, as it is rendered, in a folder of its own and without a key of S3."""
    needed.kubectl()
    objects = manifests.render(manifests.K8S / "overlays" / "dev")
    job = next(item for item in objects if (item["kind"], item["metadata"]["name"]) == ("CronJob", "mlflow-gc"))
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    secrets = {
        "phasetune-postgres": {"username": postgres.user, "password": postgres.password},
        "phasetune-mlflow-auth": dict(zip(("username", "password"), mlflow.admin, strict=True)),
    }
    folder = tmp_path_factory.mktemp("gc")
    variables = manifests.environment(container, postgres.settings, secrets)
    variables |= {"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder)}
    assert not any(name.startswith("AWS_") for name in variables)
    words = [word.replace("http://mlflow:5000", mlflow.uri) for word in (*container["command"], *container["args"])]
    assert f"--tracking-uri={mlflow.uri}" in words
    words[0] = str(Path(sys.executable).with_name(words[0]))

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True, timeout=300)

    return run


def tracked_phase(mlflow: Any, experiment: str, parent: str) -> str:
    """A phase's run as we send it: below its parent, with a metric of the checkpoint, which is a model elsewhere."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    from components.common.tracking_entities import checkpoint_model

    client = MlflowClient(mlflow.uri)
    run = client.create_run(experiment, tags={"mlflow.parentRunId": parent})
    record = StepRecord("train.main.1.s1", "phase", "key" * 10, "/store/phases/key", False, 1.0, 0.5, {"method": "sft"})
    model = checkpoint_model(client, mlflow.uri, run, record, "tier-1")
    loss = Metric("eval/loss", 0.5, int(time.time() * 1000), 0, model_id=model.model_id)
    client.log_batch(run.info.run_id, metrics=[loss])
    return str(run.info.run_id)


def test_deleted_runs_and_their_artifacts_go_after_thirty_days(clean_up, postgres, mlflow, s3, _user):
    from mlflow import MlflowClient

    client = MlflowClient(mlflow.uri)
    experiment = client.create_experiment("cleared")
    old, recent, kept = (client.create_run(experiment).info.run_id for _ in range(3))
    for run in (old, recent, kept):
        client.log_text(run, "hello", "report.html")
        client.log_text(run, "hello", "plots/loss.png")
    phase = tracked_phase(mlflow, experiment, old)
    for run in (old, phase, recent):
        client.delete_run(run)
    days = 31 * 24 * 3600 * 1000
    postgres.query(f"UPDATE runs SET deleted_time = deleted_time - {days} WHERE run_uuid IN ('{old}', '{phase}')")  # noqa: S608  # our own ids

    def there() -> tuple[set[str], set[str]]:
        rows = postgres.query(f"SELECT run_uuid FROM runs WHERE experiment_id = {experiment}")  # noqa: S608  # as above
        return {run for (run,) in rows}, {name.split("/")[2] for name in s3.sizes(f"mlflow/{experiment}/")} - {"models"}

    assert there() == ({old, phase, recent, kept}, {old, recent, kept})
    ended = clean_up()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert there() == ({recent, kept}, {recent, kept})
    assert len(s3.sizes(f"mlflow/{experiment}/{kept}/")) == 2
    assert clean_up().returncode == 0  # a week later there is nothing to do
