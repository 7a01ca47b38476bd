"""infra/images: the Dockerfile keeps its rules, and its install steps make an environment that works.

The image itself is built and run by `make image-test`, which needs root, the network, and some minutes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import hcl2
import pytest

from tests.infra import dockerfile

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "infra" / "images"
LOCKS = ("requirements.lock", "torch-cpu.lock", "torch.lock")


@pytest.fixture(scope="module")
def file():
    return dockerfile.read((IMAGES / "Dockerfile").read_text())


def pins(name: str) -> dict[str, str]:
    text = (ROOT / "infra" / name).read_text()
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", text, re.MULTILINE))


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("hadolint")
    return subprocess.run([program, "--no-color", path], capture_output=True, text=True)


def test_hadolint_finds_nothing():
    ended = hadolint(IMAGES / "Dockerfile")
    assert (ended.returncode, ended.stdout) == (0, "")


def test_hadolint_looks(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM debian:latest\nRUN cd /tmp && pip install ray\n")
    assert {"DL3007", "DL3013"} <= set(re.findall(r"DL\d+", hadolint(tmp_path / "Dockerfile").stdout))


def test_the_dockerfile_keeps_the_rules(file):
    assert dockerfile.faults(file) == []


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("ARG BASE_IMAGE=python:3.11-slim-bookworm", "ARG BASE_IMAGE=python:latest", "another image tomorrow"),
        ("ARG BASE_IMAGE=python:3.11-slim-bookworm", "ARG BASE_IMAGE=python", "another image tomorrow"),
        ("FROM ${BASE_IMAGE} AS runtime", "FROM debian:12 AS runtime", "which no builder can choose"),
        ("USER 10001:10001", "USER phasetune", "is no number"),
        ("USER 10001:10001", "USER 0:0", "is no number"),
        ("COPY infra/requirements.lock", "ADD infra/requirements.lock", "downloads and unpacks"),
        ("RUN python3.11 -m venv", "RUN wget some/file && python3.11 -m venv", "a download that nothing pins"),
        ("ENV PIP_NO_CACHE_DIR=1", "ENV PIP_INDEX_URL=index.example", "stays in the image's history"),
        ("--no-deps --require-hashes --only-binary :all:", "--no-deps --only-binary :all:", "neither by hash"),
        ("--no-index --no-deps --prefix", "--no-deps --prefix", "neither by hash"),
        ("RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf", "RUN", "without the builder's indexes"),
        ("--no-index --no-deps --no-build-isolation", "--no-index --no-deps", "an isolated build"),
    ],
)
def test_each_rule_bites(before, after, said):
    text = (IMAGES / "Dockerfile").read_text()
    assert before in text
    found = dockerfile.faults(dockerfile.read(text.replace(before, after)))
    assert found
    assert all(said in fault for fault in found)


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_an_image_ends_unprivileged_and_without_its_tools(file, target):
    lineage = file.lineage(target)
    assert [stage.name for stage in lineage] == ["runtime", target]
    assert lineage[0].parent == "${BASE_IMAGE}"  # so neither pip nor its caches are below it
    items = [item for stage in lineage for item in stage.instructions]
    assert [item.text for item in items if item.keyword == "USER"] == ["10001:10001"]
    assert not [item for item in items if item.keyword == "ENTRYPOINT"]  # Kubernetes' `args` would be its arguments
    copied = [(flag, item.text.split()[0]) for item in items if item.keyword == "COPY" for flag in item.flags]
    assert copied == [
        ("--from=packages", "/opt/phasetune"),
        (f"--from=torch-{target}", "/torch"),
        ("--from=project", "/project"),
    ]
    labels = " ".join(item.text for item in items if item.keyword == "LABEL")
    assert 'org.opencontainers.image.revision="${COMMIT}"' in labels


def test_both_images_differ_in_torch_alone(file):
    cpu, gpu = (file.stages[name].instructions for name in ("cpu", "gpu"))
    assert [item for item in cpu if "--from=torch-cpu" not in item.flags] == [
        item for item in gpu if "--from=torch-gpu" not in item.flags
    ]


def test_no_layer_asks_for_every_gpu_of_a_node(file):
    text = " ".join(text for stage in file.stages.values() for text in stage.texts("ENV"))
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in text
    assert "NVIDIA_VISIBLE_DEVICES" not in text


def test_bake_builds_what_the_dockerfile_has(file):
    parsed = hcl2.loads((IMAGES / "docker-bake.hcl").read_text())

    def blocks(kind: str) -> dict[str, dict[str, object]]:
        return {name.strip('"'): body for block in parsed[kind] for name, body in block.items()}

    def text(value: object) -> str:
        return str(value).strip('"')

    targets, defaults = blocks("target"), {name: text(body["default"]) for name, body in blocks("variable").items()}
    assert {text(name) for name in blocks("group")["default"]["targets"]} == {"cpu", "gpu"}
    for name in ("cpu", "gpu"):
        assert text(targets[name]["target"]) in file.stages
        assert [text(parent) for parent in targets[name]["inherits"]] == ["common"]
    assert text(targets["common"]["dockerfile"]) == "infra/images/Dockerfile"
    known = file.arguments | {
        key: default
        for stage in file.stages.values()
        for key, _, default in (line.partition("=") for line in stage.texts("ARG"))
    }
    given = {key for name in ("common", "cpu") for key in targets[name]["args"] if not key.startswith("__")}
    assert given == known.keys()
    assert {name: defaults[name] for name in known} == known


def test_the_builders_scripts_are_sound():
    scripts = sorted(IMAGES.rglob("*.sh"))
    assert {script.name for script in scripts} >= {"build.sh", "profile.sh", "sandbox.sh", "inside.sh"}
    for script in scripts:
        assert subprocess.run(["bash", "-n", script]).returncode == 0
        assert script.name == "profile.sh" or "set -euo pipefail" in script.read_text()


def test_shellcheck_finds_nothing():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck (a Debian package) is not here")
    ended = subprocess.run(["shellcheck", *sorted(IMAGES.rglob("*.sh"))], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "engine", "said"),
    [
        (["tpu"], "buildah", "build.sh: tpu is not an image; there are cpu and gpu\n"),
        (["cpu"], "podman", "build.sh: ENGINE is 'podman'; it must be docker or buildah\n"),
    ],
)
def test_a_wrong_call_of_the_builder_is_refused(arguments, engine, said):
    environment = {**os.environ, "ENGINE": engine}
    ended = subprocess.run([IMAGES / "build.sh", *arguments], env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (2, said)


def test_the_context_is_a_list_of_what_the_images_need(file):
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        source
        for stage in file.stages.values()
        for item in stage.instructions
        if item.keyword == "COPY" and not any(flag.startswith("--from=") for flag in item.flags)
        for source in item.text.split()[:-1]
    }
    assert copied - {"infra/requirements.lock", "infra/torch.lock"} == allowed
    assert "infra/*.lock" in allowed


def test_the_cpu_build_of_torch_is_the_pinned_version():
    assert pins("torch-cpu.lock") == {"torch": pins("torch.lock")["torch"] + "+cpu"}
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", (ROOT / "infra" / "torch-cpu.lock").read_text())) == 1


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The project's wheel, built from what the image's stage copies."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("components", "pipelines"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", folder, source], check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_file_of_the_packages(wheel):
    there = {
        path.relative_to(ROOT).as_posix()
        for package in ("components", "pipelines")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == there


IMPORT_ALL = """
import importlib, json, pkgutil, sys
import components, pipelines

folder, ending = sys.argv[1:]
names = [
    name for package in (components, pipelines)
    for _, name, _ in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    if name.endswith(ending)
]
files = {name: importlib.import_module(name).__file__ for name in names}
assert all(path.startswith(folder) for path in files.values()), files
print(json.dumps(sorted(files)))
"""


def imported(python: Path, folder: Path, cwd: Path, ending: str = "", **environment: str) -> list[str]:
    """Import the packages' modules with this ending in a process of its own, and see that each is of the folder."""
    ended = subprocess.run(
        [python, "-c", IMPORT_ALL, str(folder), ending],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def components_of_the_checkout() -> set[str]:
    return {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in ROOT.glob("components/*/component.py")}


def test_every_component_imports_from_the_wheel_outside_the_checkout(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    installed = tmp_path / "installed"
    names = imported(Path(sys.executable), installed, tmp_path, ".component", PYTHONPATH=str(installed))
    assert len(names) >= 6
    assert components_of_the_checkout() == set(names)


@pytest.mark.proof
@pytest.mark.timeout(1500)
def test_the_install_steps_replayed_make_an_environment_that_works(file, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_COMPILE", "no")  # few of the 28,000 files are imported here
    if shutil.which("python3.11") is None:
        pytest.skip("the locks are for Python 3.11, and no python3.11 is here")
    places = ["/opt/tools", "/opt/phasetune", "/build", "/torch", "/project", "/src", "/wheels"]
    replay = dockerfile.Replay(file, ROOT, tmp_path / "r", places)
    (tmp_path / "r").mkdir()
    for stage in ("tools", "packages", "torch-cpu", "project", "cpu"):
        replay.run(stage)
    environment = tmp_path / "r" / "opt" / "phasetune"
    python, elsewhere = environment / "bin" / "python", tmp_path / "elsewhere"
    elsewhere.mkdir()
    program = (
        "import json, importlib.metadata as m; print(json.dumps([[d.name, d.version] for d in m.distributions()]))"
    )
    printed = subprocess.run([python, "-c", program], cwd=elsewhere, check=True, capture_output=True, text=True).stdout
    installed = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in json.loads(printed)}
    project = {"phasetune": installed.get("phasetune", "missing")}
    assert installed == pins("requirements.lock") | pins("torch-cpu.lock") | project
    assert components_of_the_checkout() <= set(imported(python, environment, elsewhere))
    command = environment / "bin" / "phasetune"
    subprocess.run([command, "--help"], cwd=elsewhere, check=True, capture_output=True)
    (spec,) = environment.glob("lib/python*/site-packages/pipelines/specs/quickstart.yaml")
    ended = subprocess.run([command, "validate", spec], cwd=elsewhere, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
