"""A Kubeflow of each test's own, and specs that may be sent to it."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from components.common.spec import Spec
from pipelines import cli, cluster_cli, kubeflow, submitting
from pipelines.phased import compile_pipeline
from pipelines.terminal import Terminal
from tests.kfp_api import server as kfp_api
from tests.kubernetes_api.server import ApiServer
from tests.pipelines import sweep_world

OURS = {"app.kubernetes.io/part-of": "phasetune", "app.kubernetes.io/component": "ray-job"}
VALUES: dict[str, Any] = {
    "name": "cluster",
    "model": {"path": "lab"},
    "data": {"train": [{"path": "lab://instructions?count=40"}]},
    "scoring": {"method": "column"},
    "splitting": {"tiers": 2},
    "controls": [],
    "tracking": {"uri": "http://mlflow:5000"},
    "compute": {"kubernetes": {"image": "registry.example/phasetune:1"}},
    "store": "s3://bucket/store",
}


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Kubernetes API, which KUBECONFIG names."""
    started = ApiServer()
    monkeypatch.setenv("KUBECONFIG", str(started.kubeconfig(tmp_path / "kubeconfig")))
    yield started
    started.close()


@pytest.fixture
def server() -> Iterator[Any]:
    """A Kubeflow with one user."""
    started = kfp_api.KfpServer()
    yield started
    started.stop()


@pytest.fixture
def shared_server() -> Iterator[Any]:
    """A Kubeflow with several users, who have tokens."""
    started = kfp_api.KfpServer(namespaces=("phasetune", "others"), token="secret")
    yield started
    started.stop()


@pytest.fixture
def phasetune(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Gives the command in this process: `phasetune("status", RUN)` -> its exit code, and what it said."""

    def call(*arguments: str) -> tuple[int, str]:
        said = io.StringIO()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "argv", ["phasetune", *arguments])
            for module, name in ((cluster_cli, "console"), (cli, "console"), (cli, "complaints")):
                patched.setattr(module, name, Terminal(said, 140))
            try:
                cli.main()
            except SystemExit as ended:
                return int(ended.code or 0), said.getvalue()
        return 0, said.getvalue()

    return call


@pytest.fixture(scope="session")
def compiled_once() -> Callable[[Spec, Path, bool], None]:
    """Compiles each spec once: a second takes a second again."""
    texts: dict[str, str] = {}

    def compile_or_copy(spec: Spec, out: Path, allow_local: bool) -> None:
        if spec.model_dump_json() not in texts:
            compile_pipeline(spec, out, allow_local)
            texts[spec.model_dump_json()] = out.read_text()
        out.write_text(texts[spec.model_dump_json()])

    return compile_or_copy


@pytest.fixture
def cluster(
    server: Any, compiled_once: Callable[[Spec, Path, bool], None], monkeypatch: pytest.MonkeyPatch
) -> kubeflow.Kubeflow:
    """The connection to `server`; its pauses take no time, and no spec is compiled twice."""
    monkeypatch.setattr(submitting, "compile_pipeline", compiled_once)
    for name in (kubeflow.TOKEN, kubeflow.COOKIE, kubeflow.ENDPOINT, kubeflow.UI):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(kubeflow.time, "sleep", lambda _seconds: None)
    connected = kubeflow.connect(server.url, None, None, None)
    connected.pause = lambda _seconds: None
    server.asked.clear()
    return connected


@pytest.fixture
def cluster_spec() -> Callable[..., Spec]:
    """Makes a spec that may be sent to a cluster, with top-level keys replaced."""
    return lambda **changes: Spec.model_validate({**VALUES, **changes})


@pytest.fixture
def cluster_values() -> dict[str, Any]:
    """The values of such a spec."""
    return dict(VALUES)


@pytest.fixture
def jobs(kubernetes: Any, run: str) -> Any:
    """A Workflow of the run and another; a RayJob of each alone, and one that both wait for."""
    owners: dict[str, Any] = {}
    for name, label in (("mine", run), ("theirs", "another")):
        made = kubernetes.put("workflows", name, labels={"pipeline/runid": label}, spec={})
        about = {key: made["metadata"][key] for key in ("name", "uid")}
        owners[name] = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", **about}
    for name, waits in (("phases-a-1", ["mine"]), ("phases-b-1", ["theirs"]), ("phases-c-1", ["mine", "theirs"])):
        kubernetes.put(
            "rayjobs", name, labels=OURS, spec={}, metadata={"ownerReferences": [owners[one] for one in waits]}
        )
        kubernetes.status(name, "Running", "RUNNING")
    return kubernetes


@pytest.fixture(scope="session")
def scored_world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A world whose data are prepared and scored: scoring imports what takes seconds."""
    made = sweep_world.World(tmp_path_factory.mktemp("scored"))
    run, _ = made.run(sweep_world.Hands(made.store))
    for trial in made.trials(made.sweep({"splitting.tiers": [1]}), [{"splitting.tiers": 1}]):
        run.ask(trial)
    sweep_world.finish(run)
    return made


@pytest.fixture
def world(scored_world: Any, tmp_path: Path) -> Any:
    """A world of a test's own; its store holds the data, the scores and nothing else."""
    for kind in ("prepared", "scores"):
        shutil.copytree(scored_world.store.root / kind, tmp_path / "store" / kind)
    return sweep_world.World(tmp_path)
