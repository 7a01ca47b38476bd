"""checkov finds nothing in the rendered overlays but what is listed, with its reason, in checkov_skips.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

SKIPS = yaml.safe_load(Path(__file__).with_name("checkov_skips.yaml").read_text())


@pytest.fixture(scope="module")
def failed(checkov, overlays, tmp_path_factory):
    """The failed checks, by overlay."""
    found = {}
    for name, objects in overlays.items():
        folder = tmp_path_factory.mktemp(name)
        # checkov knows no RayCluster: its pods are shown to it as pods.
        pods = [
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": part, **template["metadata"], "namespace": "phasetune"},
                "spec": template["spec"],
            }
            for item in objects
            if item["kind"] == "RayCluster"
            for part, template in (
                ("ray-head", item["spec"]["headGroupSpec"]["template"]),
                ("ray-worker", item["spec"]["workerGroupSpecs"][0]["template"]),
            )
        ]
        (folder / "all.yaml").write_text(yaml.safe_dump_all([*objects, *pods]))
        found[name] = checkov(folder, "kubernetes")
    return found


def skipped(fault) -> bool:
    """Whether a fault is on the list, for its resource."""
    return any(
        entry["check"] == fault["check_id"] and any(part in fault["resource"] for part in entry.get("resources", [""]))
        for entry in SKIPS
    )


@pytest.mark.proof
def test_nothing_is_found_but_the_listed(failed):
    left = {
        (name, fault["check_id"], fault["check_name"], fault["resource"])
        for name, faults in failed.items()
        for fault in faults
        if not skipped(fault)
    }
    assert sorted(left) == []


@pytest.mark.proof
def test_every_skip_is_needed(failed):
    for entry in SKIPS:
        assert entry["reason"]
        wanted = entry.get("resources", [""])
        for part in wanted:
            assert any(
                fault["check_id"] == entry["check"] and part in fault["resource"]
                for faults in failed.values()
                for fault in faults
            ), f"{entry['check']} for {part or 'all'} finds nothing: remove it"
