"""The cost tables of infra/aws: sums by hand, quantities as in the variables' defaults, the page as made."""

from __future__ import annotations

import re
from pathlib import Path

import hcl2
import pytest

from tests.product_scripts import module_at

FOLDER = Path(__file__).resolve().parents[2] / "infra" / "aws"


@pytest.fixture(scope="module")
def cost():
    """The script infra/aws/cost.py."""
    return module_at(FOLDER / "cost.py")


@pytest.fixture
def given():
    """Prices that are easy to reckon with."""
    return {
        "hours_of_a_month": 100,
        "prices": {
            "eks_cluster_hour": 1,
            "small_hour": 2,
            "large_hour": 40,
            "gp3_gib_month": 0.5,
            "gp3_throughput_month": 0.1,
            "node_metrics_month": 3,
            "logs_gb": 0.5,
            "nat_hour": 0.25,
            "public_address_hour": 0.05,
            "db_standby_hour": 0.75,
            "database_standby_gib_month": 0.2,
            "kms_key_month": 1,
            "secret_month": 0.4,
            "s3_gb_month": 0.02,
        },
        "nodes": {
            "cpu": {"instance": "small", "least": 2, "disk_gib": 10, "throughput": 125},
            "gpu": {"instance": "large", "gpus": 4, "disk_gib": 90, "throughput": 225},
        },
        "node_system_disk_gib": 10,
        "database": {"instance": "db", "disk_gib": 20},
        "assumed": {"store_gb": 50, "logs_gb": 10, "spot_share": 0.5},
    }


def test_an_idle_month_by_hand(cost, given):
    amounts = [amount for _, amount in cost.idle_month(given)]
    # 2 nodes: 2 x 100 h x 2; their disks: 2 x (20 GiB x 0.5 + 3); database: 100 h x 0.75 + 20 GiB x 0.2.
    assert amounts == pytest.approx([100, 400, 26, 0, 30, 79, 1, 5, 2.4])
    assert "| **sum** | **643.40** |" in cost.tables(given)


def test_an_hour_of_a_phase_by_hand(cost, given):
    # A GPU node: 40 + (100 GiB x 0.5 + 100 MB/s x 0.1) / 100 h = 40.6; the head's: 2 + 20 GiB x 0.5 / 100 h = 2.1.
    assert cost.phase_hour(given, 4, spot=False) == pytest.approx(42.7)
    assert cost.phase_hour(given, 5, spot=False) == pytest.approx(83.3)
    assert cost.phase_hour(given, 1, spot=True) == pytest.approx(22.7)
    assert "| up to 8 GPUs | 2 | 83.30 | 43.30 |" in cost.tables(given)


def test_the_page_is_current(cost):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert text == cost.page(text, cost.read_prices()), "the prices have changed: run `python infra/aws/cost.py`"


def test_quantities_are_the_defaults_of_the_variables(cost):
    given = cost.read_prices()
    types = {
        name: body["type"]
        for item in hcl2.loads((FOLDER / "variables.tf").read_text(encoding="utf-8"))["variable"]
        for name, body in item.items()
    }

    def default(variable: str, name: str) -> str:
        return re.search(rf"\b{name}\b[^,]*?optional\([^,]+, (\[\"[^\"]+\"\]|[^)]+)\)", types[f'"{variable}"'])[
            1
        ].strip('["]')

    nodes = given["nodes"]
    for variable, node in (("cpu_nodes", nodes["cpu"]), ("gpu_nodes", nodes["gpu"]), ("gpu_spot_nodes", nodes["gpu"])):
        assert (default(variable, "instance_types"), default(variable, "disk_gib")) == (
            node["instance"],
            str(node["disk_gib"]),
        )
    assert default("cpu_nodes", "min") == str(nodes["cpu"]["least"])
    database = given["database"]
    assert (default("database", "instance_class"), default("database", "storage_gib")) == (
        database["instance"],
        str(database["disk_gib"]),
    )
    text = (FOLDER / "nodes.tf").read_text(encoding="utf-8")
    throughputs = [str(nodes[name]["throughput"]) for name in ("cpu", "gpu", "gpu")]
    assert re.findall(r"throughput = (\d+)", text) == throughputs
    assert re.findall(r"volume_size = (\d+)", text) == [str(given["node_system_disk_gib"])]
