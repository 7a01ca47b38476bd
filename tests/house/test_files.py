"""The other files: no places of one machine, locks and constraints that agree, targets that exist, data that parse."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib

import pytest
import yaml

LARGEST = 1_000_000
"""Bytes; larger files are data."""
# Written in parts, so that this file does not hold what it forbids.
PLACES = [
    r"/wo" r"rk/(main|shared)\b",
    r"/opt/(wh" r"eels|py" r"pi)\b",
    r"/Us" r"ers/\w",
]
HOMES = [r"/ro" r"ot/", r"/ho" r"me/(?!phasetune\b)\w"]
"""But for the home of our image's user. Not looked for in infra/ and k8s/, where they are places inside an image."""
INDEXES = [
    r"\bpy" r"pi\.(org|python\.org|nvidia\.com)",
    r"files\.python" r"hosted\.org",
    r"download\.py" r"torch\.org",
    r"conda\.ana" r"conda\.org",
    r"registry\.np" r"mjs\.org",
    r"-index-" r"url[= ]+[a-z]+://",
    r"PIP_(EXTRA_)?INDEX_" r"URL[:= ]+[\"']?[a-z]+://",
    r"[a-z]+://[\w./-]+/sim" r"ple\b",
]


def forbidden(path: str, text: str) -> list[str]:
    patterns = PLACES + INDEXES + ([] if path.startswith(("infra/", "k8s/")) else HOMES)
    return [
        f"{path}:{number}: {match[0]}"
        for number, line in enumerate(text.splitlines(), 1)
        for match in re.finditer("|".join(patterns), line)
    ]


def versions(text: str) -> dict[str, str]:
    """The pins of a constraints or requirements file, by name as indexes compare it."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;#\\]+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def test_no_places_of_one_machine(root, tracked):
    found = []
    for path in tracked:
        if path.stat().st_size <= LARGEST:
            try:
                found += forbidden(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8"))
            except UnicodeDecodeError:
                continue
    assert not found


@pytest.mark.parametrize(
    ("path", "text", "count"),
    [
        ("README.md", "cd /wo" + "rk/main", 1),
        ("README.md", "docs at https://py" + "pi.org/project/ray", 1),
        ("README.md", "ls /ho" + "me/ann", 1),
        ("infra/Dockerfile", "WORKDIR /ho" + "me/ray", 0),
        ("README.md", "pip install --index-" + "url https://a.b/c", 1),
        ("README.md", "set PIP_EXTRA_INDEX_" + "URL for that, in simple words", 0),
    ],
)
def test_places_are_seen(path, text, count):
    assert len(forbidden(path, text)) == count


def test_locks_agree_with_the_constraints(root):
    pinned = versions((root / "constraints.txt").read_text())
    locked = {name: versions((root / "infra" / name).read_text()) for name in ("requirements.lock", "torch.lock")}
    assert not locked["requirements.lock"].keys() & locked["torch.lock"].keys()
    assert locked["torch.lock"]["torch"] == pinned["torch"]
    assert {name: pinned.get(name) for name in locked["requirements.lock"]} == locked["requirements.lock"]


def locked_for_gpus(root):
    return versions((root / "infra" / "torch.lock").read_text())


def test_locks_carry_hashes(root):
    for name in ("requirements.lock", "torch.lock"):
        text = (root / "infra" / name).read_text()
        assert len(versions(text)) == len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", text))


def test_every_direct_dependency_is_pinned_with_a_reason(root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    lines = (root / "constraints.txt").read_text().splitlines()
    reasons = {line.split("==")[0]: line.partition("  # ")[2] for line in lines if "==" in line}
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["ifeval"], *extras["dev"]]
    names = [re.match(r"[A-Za-z0-9_-]+", item)[0].lower().replace("_", "-") for item in wanted]
    assert not [name for name in names if not reasons.get(name) and name != project["name"]]
    for_gpus = [item for item in (*extras["gpu"], *extras["quantize"]) if item != f"{project['name']}[quantize]"]
    assert all("==" in item for item in for_gpus)  # not installed on a CPU, so they are pinned where they stand
    assert set(extras["quantize"]) <= {f"{name}=={version}" for name, version in locked_for_gpus(root).items()}
    assert len(set(reasons)) == len([line for line in lines if "==" in line])


def test_the_environment_is_the_pinned_one(root):
    from importlib.metadata import distributions

    pinned = versions((root / "constraints.txt").read_text())
    installed = {re.sub(r"[-_.]+", "-", item.name).lower(): item.version.split("+")[0] for item in distributions()}
    assert {name: version for name, version in pinned.items() if installed.get(name) != version} == {}


def test_targets_that_are_named_exist(root, tracked):
    targets = set(re.findall(r"^([a-z][a-z-]*):", (root / "Makefile").read_text(), re.MULTILINE))
    texts = {path: path.read_text() for path in tracked if path.suffix == ".md" or path.parent.name == ".ci"}
    named = {
        (path.name, name)
        for path, text in texts.items()
        for name in re.findall(r"(?:`|^\s*)make ([a-z-]+)", text, re.M)
    }
    assert not {(path, name) for path, name in named if name not in targets}


def test_json_and_yaml_parse(root, tracked):
    faults = []
    for path in tracked:
        if path.relative_to(root).parts[0] != "tests":  # tests keep malformed files on purpose
            try:
                if path.suffix == ".json":
                    json.loads(path.read_text(encoding="utf-8"))
                elif path.suffix in (".yaml", ".yml"):
                    list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
            except ValueError as error:
                faults.append(f"{path.relative_to(root)}: {error}")
            except yaml.YAMLError as error:
                faults.append(f"{path.relative_to(root)}: {error}")
    assert not faults


def test_specs_are_valid(root):
    from components.common.errors import UserError
    from components.common.spec_file import load_spec
    from pipelines.sweep_cli import is_sweep
    from pipelines.sweep_spec import load_sweep

    specs = sorted((root / "pipelines" / "specs").glob("*.yaml"))
    assert specs
    faults = []
    for spec in specs:
        try:
            load_sweep(spec) if is_sweep(spec) else load_spec(spec)
        except UserError as error:
            faults.append(f"{spec.name}: {error}")
    assert not faults


def test_the_page_of_the_spec_is_current(root):
    from pipelines.spec_page import page

    current = (root / "docs" / "spec.md").read_text(encoding="utf-8")
    assert current == page(), "the spec's models have changed: run `make docs`"


def test_installed_packages_agree():
    result = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
