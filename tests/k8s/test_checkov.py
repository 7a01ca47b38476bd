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


def fits(entry, name, fault) -> bool:
    """Whether an entry of the list speaks of a fault."""
    where = name in entry.get("overlays", [name])
    return (
        where
        and entry["check"] == fault["check_id"]
        and fault["resource"] in entry.get("resources", [fault["resource"]])
    )


@pytest.mark.proof
def test_nothing_is_found_but_the_listed(failed):
    left = {
        (name, fault["check_id"], fault["check_name"], fault["resource"])
        for name, faults in failed.items()
        for fault in faults
        if not any(fits(entry, name, fault) for entry in SKIPS)
    }
    assert sorted(left) == []


@pytest.mark.proof
def test_every_skip_is_needed_and_has_a_reason(failed):
    for entry in SKIPS:
        assert len(entry["reason"]) > 40
        for name in entry.get("overlays", ["dev", "production"]):
            for resource in entry.get("resources", [None]):
                found = [fault for fault in failed[name] if fits(entry, name, fault)]
                assert any(resource in (None, fault["resource"]) for fault in found), f"{entry['check']} is not needed"
