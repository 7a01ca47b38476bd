"""A run on a cluster, looked at, followed and ended: what Kubeflow, the store and Kubernetes say of it."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from components.common.errors import UserError
from components.common.records import RunInfo, RunRecords, StepRecord
from pipelines.following import Runs, cancel, context_of, follow, labels_of, rayjobs_of, record_name, records_of, run_id
from pipelines.kubeflow import Away
from pipelines.phased import cluster_info
from pipelines.submitting import start, upload
from tests.kfp_api import server as kfp_api
from tests.kubernetes_api import server as kubernetes_api
from tests.simulated_day import DAY, HOUR, Day, constant

CONTEXT = RunInfo("cluster-1", "cluster", {}, "", "store", "", "").to_json()
COMMAND = str(Path(sys.executable).with_name("phasetune"))


@pytest.fixture
def spec(cluster_spec, tmp_path):
    compute = {"ray": "rayjob", "kubernetes": {"image": "registry.example/phasetune:1"}}
    return cluster_spec(store=str(tmp_path / "store"), tracking={"enabled": False}, compute=compute)


@pytest.fixture
def run(cluster, spec) -> str:
    """A run that Kubeflow has started."""
    return start(cluster, spec, upload(cluster, spec, True), "phasetune")


def task(name: str, state: str, **more) -> dict:
    return {"display_name": name, "state": state, "task_id": name, **more}


def looks(state: str, *tasks: dict, **more) -> dict:
    return {"state": state, "run_details": {"task_details": list(tasks)}, **more}


def test_every_task_has_the_name_of_its_step_and_of_its_record(cluster_spec, tmp_path):
    from pipelines.phased import compile_pipeline

    then = [{"method": "dpo", "data": [{"path": "s3://bucket/pairs.jsonl"}]}]
    spec = cluster_spec(controls=["one_off", {"only": [1]}], seeds=[1, 2], curriculum={"then": then})
    compile_pipeline(spec, tmp_path / "p.yaml", False)
    pipeline, _ = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    labels = labels_of(pipeline)
    assert list(labels.values())[:3] == ["prepare", "prepare main 3 dpo seed 1", "score"]
    assert list(labels.values())[-1] == "report"
    names = {record_name(label) for label in labels.values()}
    assert len(names) == len(labels)
    assert {"prepare.main.3.s1", "split.s2", "train.only_1.1.s2", "evaluate.base", "evaluate.one_off.2.s1"} < names
    told = RunInfo.from_json(context_of(pipeline))
    assert told == cluster_info(spec)


def test_what_is_no_pipeline_of_ours_has_no_steps():
    assert labels_of({}) == {}
    assert context_of({"root": {"dag": {"tasks": {"a": {"taskInfo": {"name": "a"}}}}}}) is None


def test_a_run_is_known_by_its_id_its_page_and_our_name():
    known = "0f8fad5b-d9cb-469f-a165-70867728950e"
    for text in (known, f"https://kf/pipeline/#/runs/details/{known}", f"cluster-{known.upper()}"):
        assert run_id(text) == known
    with pytest.raises(UserError, match="names no run"):
        run_id("nightly")


def test_its_steps_are_those_of_the_version_whatever_kubeflow_calls_them(cluster, server, run):
    # Beside the steps Kubeflow shows its own: drivers, groups, and the pods within a step.
    tasks = [("root", "RUNNING"), ("prepare-driver", "SUCCEEDED"), ("prepare", "SUCCEEDED"), ("executor", "RUNNING")]
    server.runs[run] |= looks("RUNNING", *(task(*one) for one in tasks), task("train-2", "RUNNING"))
    known = Runs(cluster).known(run)
    assert known.steps["prepare"] == "SUCCEEDED"
    assert known.steps["train main 2 tier-2 seed 17"] == "RUNNING"
    assert known.steps["score"] == "-"
    assert list(known.steps)[-1] == "report"
    assert len(known.steps) == 9
    assert known.info.run == f"cluster-{run}"


def test_a_run_whose_version_is_gone_is_shown_without_steps(cluster, server, run):
    server.versions.clear()
    known = Runs(cluster).known(run)
    assert (known.steps, known.info, known.state) == ({}, None, "PENDING")


def test_an_unknown_run_is_said(cluster, server):
    with pytest.raises(UserError, match=r"Kubeflow at http://127.* knows no run 0f8f") as caught:
        Runs(cluster).known("0f8fad5b-d9cb-469f-a165-70867728950e")
    assert "`phasetune submit` prints the id of its run" in caught.value.remedy


def test_following_says_each_change_once_and_outlasts_a_server_that_is_away(cluster, server, run):
    began, trained = task("prepare", "RUNNING"), task("train", "FAILED")
    server.script = [
        looks("RUNNING", began),
        looks("RUNNING", began),
        looks("RUNNING", task("prepare", "SUCCEEDED")),
        looks("FAILED", task("prepare", "SUCCEEDED"), trained, error={"message": "a step failed"}),
    ]
    server.faults.append(kfp_api.Fault("GET .*/runs/", 13, 503))
    said, pauses = [], []
    known = follow(cluster, run, said.append, pauses.append)
    assert (known.state, known.error) == ("FAILED", "a step failed")
    assert "trying again" in said[0]
    assert said[1:] == [
        "prepare: running", "the run: running", "prepare: succeeded", "train main 1 tier-1 seed 17: failed",
        "the run: failed",
    ]  # fmt: skip
    # five attempts each time: twice given up and tried again after ever longer pauses, then every five seconds
    assert pauses == [10.0, 20.0, 5.0, 5.0, 5.0]


class SimulatedKubeflow(Day):
    """A Kubeflow with one run of a day, away now and then."""

    host = "http://kf"
    asked = 0

    def ask(self, service: str, method: str, *names: str, **_: str) -> SimpleNamespace:
        self.asked += 1
        if "version" in method:
            told = {"inputs": {"parameters": {"context": {"runtimeValue": {"constant": CONTEXT}}}}}
            tasks = {f"train-{number}": {"taskInfo": {"name": f"train main {number}"}, **told} for number in range(6)}
            return SimpleNamespace(pipeline_spec={"root": {"dag": {"tasks": tasks}}})
        if self.asked % 100 == 0:
            raise Away(f"it does not answer, at {self.now}", "wait")
        done = int(6 * self.now / DAY)
        states = ["SUCCEEDED" if number < done else "RUNNING" for number in range(6)]
        tasks = [SimpleNamespace(display_name=f"train-{number}", state=state) for number, state in enumerate(states)]
        return SimpleNamespace(
            display_name="nightly",
            state="RUNNING" if self.now < DAY else "SUCCEEDED",
            error=SimpleNamespace(message=f"{self.now} " * 200),
            run_details=SimpleNamespace(task_details=tasks),
            pipeline_version_reference=SimpleNamespace(pipeline_id="p", pipeline_version_id="v"),
        )


@pytest.mark.proof
@pytest.mark.timeout(120)
def test_a_day_of_following_keeps_no_more_than_an_hour_of_it(traced):
    kubeflow, said = SimulatedKubeflow(), itertools.count()
    known = follow(kubeflow, "r", lambda line: next(said) and None, kubeflow.pass_)
    assert known.state == "SUCCEEDED"
    assert kubeflow.asked > 10_000
    assert next(said) > 12
    assert len(kubeflow.memory) == DAY / HOUR
    assert constant(kubeflow.memory), kubeflow.memory


def test_following_ends_when_kubeflow_lets_us_in_no_more(cluster, server, run):
    server.token = "another"
    with pytest.raises(UserError, match="does not know who asks"):
        follow(cluster, run, print, lambda _: None)


def test_what_the_steps_left_in_the_store_is_shown(cluster, run):
    known = Runs(cluster).known(run)
    records = RunRecords(known.info.store, known.info.run)
    records.write(StepRecord("train.main.1.s17", "phases", "abc", "uri", True, 2.0, 1.0, {}))
    found = records_of(known, 5.0)
    assert list(found) == ["train main 1 tier-1 seed 17"]
    assert found["train main 1 tier-1 seed 17"].reused


def test_the_rayjobs_that_a_run_waits_for(cluster, run, jobs):
    assert sorted(rayjobs_of(Runs(cluster).known(run), None, 5.0)) == [
        ("phases-a-1", "working"),
        ("phases-c-1", "working"),
    ]


def test_a_run_is_told_to_end_once(cluster, server, run):
    server.runs[run]["state"] = "RUNNING"
    assert cancel(cluster, run)
    assert not cancel(cluster, run)
    server.runs[run]["state"] = "CANCELED"
    assert not cancel(cluster, run)
    assert server.count("POST", ":terminate") == 1


def command(*arguments: str, code: int = 0, **variables: str) -> str:
    ended = subprocess.run(
        [COMMAND, *arguments], capture_output=True, text=True, timeout=100, env={**os.environ, **variables}
    )
    assert ended.returncode == code, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stdout + ended.stderr


def test_status_shows_what_can_be_seen_from_here(server, run, jobs, spec):
    server.runs[run] |= looks("RUNNING", task("prepare", "SUCCEEDED"))
    record = StepRecord("prepare", "prepared", "0123456789abcdef", "uri", False, 12.5, 1.0, {})
    RunRecords(spec.store, f"cluster-{run}").write(record)
    said = command("status", run, "--host", server.url)
    assert [line.split() for line in said.splitlines() if line.startswith("prepare ")] == [
        ["prepare", "succeeded", "made", "12.5", "0123456789ab"]
    ]
    assert "RayJob phases-a-1: working" in said
    assert "phases-b-1" not in said
    assert "RayJobs: there is no Kubernetes cluster to ask" in command(
        "status", run, "--host", server.url, KUBECONFIG=os.devnull
    )


def test_status_says_in_which_namespace_it_looked_for_the_run(server, run, jobs, phasetune, tmp_path, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", str(jobs.kubeconfig(tmp_path / "elsewhere", kubernetes_api.EMPTY)))
    server.runs[run]["state"] = "RUNNING"
    code, said = phasetune("status", run, "--host", server.url)
    assert code == 0
    assert "RayJobs: no Workflow of the run is in the namespace empty (name the namespace" in said
    assert "RayJob phases-a-1: working" in phasetune("status", run, "--host", server.url, "--namespace", "phasetune")[1]


def test_a_run_without_rayjobs_is_shown_without_kubernetes(cluster, server, cluster_spec, tmp_path, phasetune):
    spec = cluster_spec(store=str(tmp_path / "store"), tracking={"enabled": False})
    run = start(cluster, spec, upload(cluster, spec, True), "phasetune")
    assert "RayJobs" not in phasetune("status", run, "--host", server.url)[1]
