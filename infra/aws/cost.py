"""The cost tables of README.md, worked out from prices.yaml.

Run as `python infra/aws/cost.py [--check]`: it writes the tables between the two marks in README.md; `--check` writes
nothing and fails where they are out of date.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
BEGIN, END = "<!-- cost: made by cost.py -->\n", "<!-- end of cost -->\n"


def read_prices() -> dict[str, Any]:
    """The content of prices.yaml."""
    prices: dict[str, Any] = yaml.safe_load((HERE / "prices.yaml").read_text(encoding="utf-8"))
    return prices


def disk_month(given: dict[str, Any], node: dict[str, Any]) -> float:
    """What the disks of a node cost in a month, in USD."""
    prices = given["prices"]
    gib = node["disk_gib"] + given["node_system_disk_gib"]
    return float(gib * prices["gp3_gib_month"] + (node["throughput"] - 125) * prices["gp3_throughput_month"])


def idle_month(given: dict[str, Any]) -> list[tuple[str, float]]:
    """What a month costs in which nothing runs: rows of a name and USD."""
    prices, hours, assumed = given["prices"], given["hours_of_a_month"], given["assumed"]
    cpu, database = given["nodes"]["cpu"], given["database"]
    node = prices[f"{cpu['instance']}_hour"] * hours
    return [
        ("EKS control plane", prices["eks_cluster_hour"] * hours),
        (f"{cpu['least']} CPU nodes ({cpu['instance']})", cpu["least"] * node),
        ("their disks and metrics", cpu["least"] * (disk_month(given, cpu) + prices["node_metrics_month"])),
        ("GPU nodes, on-demand and spot: none", 0.0),
        ("NAT gateway with its address", (prices["nat_hour"] + prices["public_address_hour"]) * hours),
        (
            f"PostgreSQL ({database['instance']}, with standby)",
            prices[f"{database['instance']}_standby_hour"] * hours
            + database["disk_gib"] * prices["database_standby_gib_month"],
        ),
        (f"{assumed['store_gb']} GB in the bucket", assumed["store_gb"] * prices["s3_gb_month"]),
        (f"{assumed['logs_gb']} GB of logs", assumed["logs_gb"] * prices["logs_gb"]),
        ("2 keys and a secret", 2 * prices["kms_key_month"] + prices["secret_month"]),
    ]


def phase_hour(given: dict[str, Any], gpus: int, spot: bool) -> float:
    """What an hour of a phase costs beside the idle month, in USD: GPU nodes, and a CPU node for Ray's head."""
    prices, hours = given["prices"], given["hours_of_a_month"]
    gpu, cpu = given["nodes"]["gpu"], given["nodes"]["cpu"]
    share = given["assumed"]["spot_share"] if spot else 1.0
    node = prices[f"{gpu['instance']}_hour"] * share + disk_month(given, gpu) / hours
    head = prices[f"{cpu['instance']}_hour"] + disk_month(given, cpu) / hours
    return float(math.ceil(gpus / gpu["gpus"]) * node + head)


def tables(given: dict[str, Any]) -> str:
    """Both tables, as Markdown."""
    rows = idle_month(given)
    lines = ["| idle | USD a month |", "| --- | ---: |"]
    lines += [f"| {name} | {amount:,.2f} |" for name, amount in rows]
    lines += [f"| **sum** | **{sum(amount for _, amount in rows):,.2f}** |", ""]
    gpu = given["nodes"]["gpu"]
    lines += [f"| an hour of a phase on | nodes ({gpu['instance']}) | on-demand, USD | spot, USD |"]
    lines += ["| --- | ---: | ---: | ---: |"]
    for gpus in (gpu["gpus"], 2 * gpu["gpus"]):
        both = [phase_hour(given, gpus, spot) for spot in (False, True)]
        lines += [f"| up to {gpus} GPUs | {gpus // gpu['gpus']} | {both[0]:,.2f} | {both[1]:,.2f} |"]
    return "\n".join(lines) + "\n"


def page(text: str, given: dict[str, Any]) -> str:
    """README.md with the tables in their place.

    Raises:
        ValueError: A mark is missing.
    """
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + tables(given) + END + after


def main() -> int:
    """Write the tables, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the tables are out of date")
    readme = HERE / "README.md"
    current = readme.read_text(encoding="utf-8")
    wanted = page(current, read_prices())
    if parser.parse_args().check:
        return int(current != wanted)
    readme.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
