"""The rendered overlays."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests import needed
from tests.k8s import manifests
from tests.services import servers


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.S3]:
    """An S3 server, as a process."""
    with servers.running(servers.S3(tmp_path_factory.mktemp("s3"))) as server:
        yield server


@pytest.fixture(scope="session")
def versions() -> dict[str, Any]:
    return yaml.safe_load((manifests.K8S / "versions.yaml").read_text())


@pytest.fixture(scope="session")
def overlays(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The objects of each overlay; not to be changed. `standalone` is production with KFP installed alone."""
    needed.kubectl()
    found = {name: manifests.render(manifests.K8S / "overlays" / name) for name in ("dev", "production")}
    copied = shutil.copytree(manifests.K8S, tmp_path_factory.mktemp("standalone") / "k8s")
    with (copied / "overlays" / "production" / "kustomization.yaml").open("a") as file:
        file.write("components: [../../components/kfp-standalone]\n")
    return {**found, "standalone": manifests.render(copied / "overlays" / "production")}


@pytest.fixture(params=["dev", "production", "standalone"])
def overlay(request: pytest.FixtureRequest, overlays: dict[str, list[Any]]) -> list[Any]:
    return overlays[request.param]
