"""A sweep sent to Kubeflow by the real command: uploaded once, started or scheduled, and refused before it is sent."""

from __future__ import annotations

import json

import pytest
import yaml

from components.common.spec import Spec
from pipelines.sweep_check import distinct
from tests.pipelines.conftest import VALUES
from tests.pipelines.test_submitting import phasetune

SPACE = {"splitting.tiers": [1, 2], "curriculum.order": "permutations"}


@pytest.fixture
def written(cluster_values, tmp_path):
    """Writes a sweep that may be sent to a cluster; returns its file."""

    def write(space, ray="rayjob"):
        compute = {**cluster_values["compute"], "ray": ray}
        (tmp_path / "base.yaml").write_text(yaml.safe_dump({**cluster_values, "compute": compute}))
        file = tmp_path / "sweep.yaml"
        file.write_text(yaml.safe_dump({"name": "orders", "base": "base.yaml", "space": space}))
        return str(file)

    return write


def test_a_sweep_is_submitted_as_one_task_and_scheduled_with_the_same_version(server, written):
    file = written(SPACE)
    ended = phasetune("submit", file, "--host", server.url)
    assert ended.returncode == 0, ended.stderr
    (run,) = server.runs.values()
    assert run["display_name"].startswith("orders 20")
    assert f"{server.url}/#/runs/details/{run['run_id']}" in ended.stdout
    ((name, version),) = server.versions.items()
    assert run["pipeline_version_reference"]["pipeline_version_id"] == name
    (task,) = version["pipeline_spec"]["pipeline_spec"]["root"]["dag"]["tasks"].values()
    sent = json.loads(task["inputs"]["parameters"]["sweep"]["runtimeValue"]["constant"])
    assert sent["spec"]["space"] == SPACE
    ended = phasetune("schedule", file, "--cron", "0 0 2 * * *", "--name", "nightly", "--host", server.url)
    assert ended.returncode == 0, ended.stderr
    (made,) = server.schedules.values()
    assert (made["display_name"], made["mode"]) == ("nightly", "ENABLE")
    assert made["pipeline_version_reference"]["pipeline_version_id"] == name
    assert len(server.versions) == 1  # the same sweep was uploaded before


def test_a_sweep_on_the_cluster_is_looked_at_and_waited_for(server, written):
    server.script = [{"state": "SUCCEEDED"}]
    ended = phasetune("submit", written(SPACE), "--host", server.url, "--wait")
    assert ended.returncode == 0, ended.stderr
    (run,) = server.runs
    ended = phasetune("status", run, "--host", server.url)
    assert ended.returncode == 0, ended.stderr
    assert "sweep" in ended.stdout.split()


NIGHTLY = ["schedule", "--cron", "0 0 2 * * *", "--name", "nightly"]


@pytest.mark.parametrize(
    ("arguments", "space", "said"),
    [
        (["submit"], {"model.path": ["org/model", "/models/here"]}, "/models/here"),
        (NIGHTLY, {"model.path": ["org/model", "/models/here"]}, "/models/here"),
        (
            ["submit"],
            {"curriculum.then": [[], [{"method": "sft", "data": [{"path": "/data/here.jsonl"}]}]]},
            "here.jsonl",
        ),
        (["submit"], {"scoring.model": [None, "/models/scorer"], "scoring.method": ["loss"]}, "/models/scorer"),
    ],
)
def test_what_only_a_later_trial_lacks_is_refused_before_anything_is_sent(server, written, arguments, space, said):
    ended = phasetune(*arguments, written(space), "--host", server.url)
    assert ended.returncode != 0
    assert said in " ".join(ended.stderr.split())
    assert server.asked == []


def test_a_sweep_that_is_not_for_rays_cluster_is_refused(server, written):
    ended = phasetune("submit", written(SPACE, ray="local"), "--host", server.url)
    assert ended.returncode != 0
    assert "`compute.ray` of its base spec is `local`" in ended.stderr
    assert server.asked == []


def test_what_trials_share_is_looked_at_once():
    def spec(**changes):
        return Spec.model_validate({**VALUES, **changes})

    first, other = spec(seed=1), spec(scoring={"method": "loss", "model": "hub/scorer"})
    orders = [spec(seed=2), spec(splitting={"tiers": 3}), spec(curriculum={"order": "descending"})]
    rate = spec(curriculum={"sft": {"batch_size": 64}})
    assert list(distinct([first, *orders, other, rate])) == [first, other, rate]
