"""The rendered overlays, and the modules beside this file: test modules here import no neighbours."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml


def _beside(name: str) -> ModuleType:
    found = importlib.util.spec_from_file_location(f"k8s_{name}", Path(__file__).with_name(f"{name}.py"))
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # dataclasses look their module up
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def manifests() -> ModuleType:
    return _beside("manifests")


@pytest.fixture(scope="session")
def rules() -> ModuleType:
    return _beside("rules")


@pytest.fixture(scope="session")
def arrows() -> ModuleType:
    return _beside("arrows")


@pytest.fixture(scope="session")
def versions(manifests: ModuleType) -> dict[str, Any]:
    return yaml.safe_load((manifests.K8S / "versions.yaml").read_text())


@pytest.fixture(scope="session")
def overlays(manifests: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The objects of each overlay; not to be changed. `standalone` is production with KFP installed alone."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which renders the overlays, is not on the PATH")
    found = {name: manifests.render(manifests.K8S / "overlays" / name) for name in ("dev", "production")}
    copied = shutil.copytree(manifests.K8S, tmp_path_factory.mktemp("standalone") / "k8s")
    with (copied / "overlays" / "production" / "kustomization.yaml").open("a") as file:
        file.write("components: [../../components/kfp-standalone]\n")
    return {**found, "standalone": manifests.render(copied / "overlays" / "production")}


@pytest.fixture(params=["dev", "production", "standalone"])
def overlay(request: pytest.FixtureRequest, overlays: dict[str, list[Any]]) -> list[Any]:
    return overlays[request.param]
