"""A spec sent to Kubeflow: uploaded once, started once, whatever the connection does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components.common.errors import UserError
from components.common.model_bucket import _listed
from components.common.objects_s3 import S3Objects
from pipelines import kubeflow
from pipelines.kubeflow import connect
from pipelines.submission_check import IN_THE_GPU_IMAGE, check_submission
from pipelines.submitting import start, upload
from tests.kfp_api import server as kfp_api
from tests.services import moto

COMMAND = str(Path(sys.executable).with_name("phasetune"))


def phasetune(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments], capture_output=True, text=True, timeout=100, env={**os.environ, **variables}
    )


def test_the_same_spec_is_uploaded_once_and_a_changed_one_is_another_version(cluster, server, cluster_spec):
    first, second = upload(cluster, cluster_spec(), False), upload(cluster, cluster_spec(), False)
    assert (first.new, second.new) == (True, False)
    assert (first.id, first.pipeline) == (second.id, second.pipeline)
    changed = upload(cluster, cluster_spec(seed=2), False)
    other_image = upload(cluster, cluster_spec(compute={"kubernetes": {"image": "phasetune:2"}}), False)
    assert len({first.name, changed.name, other_image.name}) == 3
    assert len(server.pipelines) == 1
    assert len(server.versions) == server.count("POST", "upload_version") == 3


def test_pages_are_turned_until_what_is_looked_for_is_found(cluster, server, cluster_spec):
    first = upload(cluster, cluster_spec(), False)
    kept = server.versions.pop(first.id)
    server.versions = {str(number): {**kept, "name": str(number), "display_name": str(number)} for number in range(4)}
    server.versions[first.id] = kept
    listing = ("pipelines", "pipeline_service_list_pipeline_versions", "pipeline_versions", first.pipeline)
    assert len(list(cluster.every(*listing))) == 5
    assert not upload(cluster, cluster_spec(), False).new


def test_a_run_is_started_as_the_service_account_of_the_pipeline(cluster, server, cluster_spec):
    spec = cluster_spec()
    version = upload(cluster, spec, False)
    run = server.runs[start(cluster, spec, version, "nightly")]
    assert run["service_account"] == "phasetune-pipeline"
    assert run["pipeline_version_reference"]["pipeline_version_id"] == version.id
    assert run["display_name"].startswith("cluster 20")
    (experiment,) = server.experiments.values()
    assert (experiment["display_name"], experiment["experiment_id"]) == ("nightly", run["experiment_id"])
    start(cluster, spec, version, "nightly")
    assert (len(server.runs), len(server.experiments)) == (2, 1)


@pytest.mark.parametrize("status", [0, 500, 503])
@pytest.mark.parametrize("late", [False, True], ids=["before", "after it was done"])
def test_a_failure_in_the_middle_makes_nothing_twice(cluster, server, cluster_spec, status, late):
    for pattern in ("POST .*/pipelines$", "POST .*upload_version", "POST .*/experiments$", "POST .*/runs$"):
        server.faults.append(kfp_api.Fault(pattern, 1, status, late))
    start(cluster, cluster_spec(), upload(cluster, cluster_spec(), False), "phasetune")
    assert [len(held) for held in (server.pipelines, server.versions, server.experiments, server.runs)] == [1, 1, 1, 1]
    assert not any(fault.times for fault in server.faults)


def test_whoever_is_second_takes_what_the_first_one_made(cluster, server, cluster_spec, monkeypatch):
    spec = cluster_spec()
    first = upload(cluster, spec, False)
    early = {"pipelines", "pipeline_versions"}  # the second one looks before the first one is done

    def every(api, call, field, *arguments, **options):
        if field in early:
            early.remove(field)
            return iter([])
        return type(cluster).every(cluster, api, call, field, *arguments, **options)

    monkeypatch.setattr(cluster, "every", every)
    second = upload(cluster, spec, False)
    assert (second.id, len(server.pipelines), len(server.versions)) == (first.id, 1, 1)


def test_a_server_that_stays_away_is_given_up(cluster, server, cluster_spec):
    server.faults.append(kfp_api.Fault(".", 1000))
    with pytest.raises(UserError, match="Kubeflow does not answer at http://127"):
        upload(cluster, cluster_spec(), False)


def test_several_users_need_a_namespace_and_a_token(shared_server, monkeypatch, tmp_path, cluster_spec):
    url, token = shared_server.url, tmp_path / "token"
    with pytest.raises(UserError, match="does not know who asks") as caught:
        connect(url, "phasetune", None, None)
    assert "--token-file" in caught.value.remedy
    token.write_text("secret\n")
    with pytest.raises(UserError, match="has several users"):
        connect(url, None, token, None)
    with pytest.raises(UserError, match="does not allow it in the namespace nobody: User 'ann' is not authorized"):
        upload(connect(url, "nobody", token, None), cluster_spec(), False)
    monkeypatch.setenv(kubeflow.TOKEN, "secret")
    version = upload(connect(url, "phasetune", None, None), cluster_spec(), False)
    assert shared_server.pipelines[version.pipeline]["namespace"] == "phasetune"
    elsewhere = upload(connect(url, "others", None, None), cluster_spec(), False)
    assert elsewhere.pipeline != version.pipeline


def test_a_token_is_read_anew_for_each_request(shared_server, tmp_path):
    token = tmp_path / "token"
    token.write_text("secret")
    cluster = connect(shared_server.url, "phasetune", token, None)
    shared_server.token = "renewed"
    token.write_text("renewed")
    assert cluster.multi_user()
    token.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        cluster.multi_user()


def test_a_session_s_cookie_lets_in_and_an_address_holds_no_password(server, monkeypatch):
    seen = []
    original = server.answer

    def answer(method, target, body, headers):
        seen.append(headers.get("cookie"))
        return original(method, target, body, headers)

    monkeypatch.setattr(server, "answer", answer)
    monkeypatch.setenv(kubeflow.COOKIE, "authservice_session=abc")
    connect(server.url, None, None, None)
    assert seen == ["authservice_session=abc"]
    with pytest.raises(UserError) as caught:
        connect("https://ann:hunter2@kubeflow.example", None, None, None)
    assert "hunter2" not in str(caught.value)


def test_an_installation_with_one_user_is_told_no_namespace(server, cluster_spec):
    cluster = connect(server.url, "phasetune", None, None)
    assert server.pipelines[upload(cluster, cluster_spec(), False).pipeline]["namespace"] == ""


def test_what_is_no_kubeflow_is_said(server, monkeypatch):
    monkeypatch.setattr(server, "answer", lambda *_: "<html>please log in</html>")
    with pytest.raises(UserError, match="not as Kubeflow's API does") as caught:
        connect(server.url, None, None, None)
    assert "/pipeline" in caught.value.remedy
    with pytest.raises(UserError, match="which Kubeflow is meant"):
        monkeypatch.delenv(kubeflow.ENDPOINT, raising=False)
        connect(None, None, None, None)
    with pytest.raises(UserError, match="is no address"):
        connect("kubeflow.example", None, None, None)


@pytest.mark.parametrize(
    "host",
    ["http://foo bar", "ftp://x", "http://", "http://kf:port", "http://:8888", "https:///pipeline", "http://a\nb"],
)
def test_what_is_no_address_is_refused_before_it_is_asked(host, monkeypatch):
    monkeypatch.setattr(kubeflow, "PAUSES", ())
    with pytest.raises(UserError, match="is no address") as caught:
        connect(host, None, None, None)
    assert "--host https://HOST/pipeline" in caught.value.remedy


def test_an_address_without_its_scheme_shows_no_password():
    with pytest.raises(UserError) as caught:
        connect("ann:hunter2@kubeflow.example", None, None, None)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", [None, "no certificate"])
def test_authorities_that_cannot_be_read_are_noticed_at_once(server, tmp_path, text):
    file = tmp_path / "ca.pem"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=r"the certificates .*ca.pem cannot be read") as caught:
        connect(server.url, None, None, file)
    assert "--ca-file" in caught.value.remedy
    assert server.asked == []


def test_the_command_submits_and_refuses_before_anything_is_sent(server, cluster_values, tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(cluster_values))
    ended = phasetune("submit", str(file), "--host", server.url)
    assert ended.returncode == 0, ended.stderr
    (run,) = server.runs
    assert f"{server.url}/#/runs/details/{run}" in ended.stdout
    server.asked.clear()
    ended = phasetune("submit", str(file), "--host", server.url, "--set", "data.train.0.path=lab://nothing")
    assert ended.returncode == 1
    assert "lab://nothing" in ended.stderr
    assert server.asked == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"store": "/runs/store"}, "a cluster cannot see these places"),
        ({"compute": {"kubernetes": {"image": "phasetune:latest"}}}, "the image phasetune:latest may be another one"),
        ({"compute": {"gpus_per_worker": 1, "kubernetes": {"image": "a:1"}}}, "the pods of a pipeline have none"),
        ({"compute": {"workers": 8, "kubernetes": {"image": "a:1"}}}, "a pod of the pipeline has 1 cores"),
        ({"compute": {"kubernetes": {"image": "a:1", "pipeline": {"memory": "64Mi"}}}}, "of a pod of the pipeline"),
        ({"store": "runs/store", "compute": {"ray": "rayjob", "kubernetes": {"image": "a:1"}}}, "cannot see the store"),
        ({"model": {"path": "lab", "adapter": {"target_modules": ["nothing"]}}}, "names 'nothing'"),
    ],
)
@pytest.mark.parametrize("look", [True, False], ids=["looked", "skipped"])
def test_what_cannot_run_on_a_cluster_is_refused_also_where_the_inputs_are_skipped(cluster_spec, changes, said, look):
    with pytest.raises(UserError) as caught:
        check_submission(cluster_spec(**changes), allow_local=False, allow_latest=False, look=look)
    assert said in caught.value.message
    assert caught.value.remedy


def test_what_is_allowed_by_name_is_let_through(cluster_spec):
    changes = {"store": "/runs/store", "compute": {"kubernetes": {"image": "phasetune"}}}
    check_submission(cluster_spec(**changes), allow_local=True, allow_latest=True)
    away = cluster_spec(data={"train": [{"path": "s3://bucket/only-from-there.jsonl"}]})
    check_submission(away, allow_local=False, allow_latest=False, look=False)


@pytest.fixture
def bucket(s3_server, monkeypatch, tmp_path):
    """An empty prefix of an S3 server, which the environment points at."""
    moto.point_at(monkeypatch, s3_server)
    monkeypatch.setenv("PHASETUNE_CACHE", str(tmp_path / "cache"))
    return f"s3://bucket/{tmp_path.name}"


def test_a_model_in_s3_is_checked_by_the_headers_of_its_weights(bucket, lab_model, cluster_spec, tmp_path):
    objects = S3Objects(bucket)
    for file in [*lab_model.glob("*.json"), *lab_model.glob("*.safetensors")]:
        objects.write(f"model/{file.name}", file.read_bytes())
    path = f"{bucket}/model"
    assert check_submission(cluster_spec(model={"path": path}), False, False) == []
    [weights] = (tmp_path / "cache" / "models").glob("*/*.safetensors")
    assert weights.stat().st_size < 20_000 < (lab_model / weights.name).stat().st_size
    with pytest.raises(UserError, match="names 'nothing', and no linear layer"):
        check_submission(cluster_spec(model={"path": path, "adapter": {"target_modules": ["nothing"]}}), False, False)
    small = {"kubernetes": {"image": "a:1", "pipeline": {"memory": "64Mi"}}}
    with pytest.raises(UserError, match="of a pod of the pipeline"):
        check_submission(cluster_spec(model={"path": path}, compute=small), False, False)
    objects.write("model/model.safetensors", b"\xff" * 16)
    _listed.cache_clear()  # each process asks once
    with pytest.raises(UserError, match="is not a safetensors file"):
        check_submission(cluster_spec(model={"path": path}), False, False)


def test_what_could_not_be_checked_is_said(cluster, server, cluster_values, tmp_path, phasetune):
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump({**cluster_values, "model": {"path": "org/model"}}))
    code, said = phasetune("submit", str(file), "--host", server.url, "--skip-inputs")
    assert code == 0
    assert said.startswith("not checked: whether the phases fit into memory and the adapter into the model, as org/m")


def test_packages_that_no_image_of_ours_has_are_named(cluster_spec):
    adapter = {"rank": 8, "quantize": "nf4"}
    compute = {"ray": "rayjob", "gpus_per_worker": 1, "liger": True, "kubernetes": {"image": "registry/phasetune:1"}}
    said = check_submission(
        cluster_spec(model={"path": "lab", "adapter": adapter}, compute=compute), False, False, False
    )
    assert said == ["not checked: whether the image has liger-kernel, which `compute.liger: true` needs"]
    locked = (Path(__file__).parents[2] / "infra" / "torch.lock").read_text()
    assert all(f"\n{name}==" in locked for name in IN_THE_GPU_IMAGE)


@pytest.fixture
def file(cluster_values, tmp_path):
    """A spec's file."""
    made = tmp_path / "cluster.yaml"
    made.write_text(yaml.safe_dump(cluster_values))
    return str(made)


def test_the_command_waits_and_ends_as_the_run_does(cluster, server, file, phasetune):
    server.script = [{"state": "FAILED", "error": {"message": "Workflow has failed"}}]
    code, said = phasetune("submit", file, "--host", server.url, "--wait")
    assert (code, "has ended: failed (Workflow has failed)" in said) == (1, True)
    server.script = [{"state": "SUCCEEDED"}]
    code, said = phasetune("submit", file, "--host", server.url, "--wait")
    assert (code, said.splitlines()[-1]) == (0, "the run: succeeded")


@pytest.mark.parametrize(("status", "why"), [(401, "does not know who asks"), (403, "does not allow it")])
def test_where_kubeflow_lets_us_in_no_more_the_run_is_said_to_go_on(cluster, server, file, phasetune, status, why):
    server.faults.append(kfp_api.Fault("GET .*/runs/", 1, status))
    code, said = phasetune("submit", file, "--host", server.url, "--wait")
    (run,) = server.runs
    assert (code, why in said) == (1, True)
    assert f"the run {run} is followed no further, and goes on" in said
    assert f"`phasetune status {run}`" in said


def test_a_run_that_was_deleted_while_it_was_followed_does_not_go_on(cluster, server, file, phasetune):
    server.faults.append(kfp_api.Fault("GET .*/runs/", 1, 404))
    code, said = phasetune("submit", file, "--host", server.url, "--wait")
    assert (code, "knows no run" in said, "goes on" in said) == (1, True, False)


def test_a_ctrl_c_ends_the_waiting_and_not_the_run(server, file):
    waits = subprocess.Popen(
        [COMMAND, "submit", file, "--host", server.url, "--wait"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert waits.stdout is not None
    for line in waits.stdout:
        if line == "the run: pending\n":
            waits.send_signal(signal.SIGINT)
            break
    rest, _ = waits.communicate(timeout=100)
    (run,) = server.runs
    assert waits.returncode == 130
    assert f"the run goes on: {server.url}/#/runs/details/{run}" in rest
    assert server.count("POST", ":terminate") == 0
