"""A sweep.json made by hand: every order of one to four tiers, with a result that depends on the last tier."""

from __future__ import annotations

import itertools
from typing import Any


def made(most_tiers: int = 4, methods: tuple[str, ...] = ("length",), seeds: int = 1) -> dict[str, Any]:
    """All orders of 1 to `most_tiers` tiers for each scoring method; the harder the last tier, the better."""
    table: list[dict[str, Any]] = []
    tree: dict[str, dict[str, Any]] = {}
    for method in methods:
        for tiers in range(1, most_tiers + 1):
            for order in itertools.permutations(range(1, tiers + 1)):
                table.append(_trial(len(table) + 1, method, tiers, order, tree))
    table.sort(key=lambda row: -row["metrics"]["verifiable.accuracy"])
    keys = [key for row in table for key in row["keys"]]
    best, second = table[0], table[1]
    sentences = [f"No winner at this budget: trial {best['trial']} leads.", "Each was trained once: `search.seeds`."]
    return {
        "name": "orders",
        "objective": {"metric": "verifiable.accuracy", "mode": "max", "on": "held_out"},
        "trials": len(table),
        "merged_trials": 0,
        "phases_requested": len(keys),
        "phases_distinct": len(set(keys)),
        "phases_trained": len(set(keys)),
        "phases_reused": 0,
        "seconds": 612.0,
        "slot_seconds": 1100.0,
        "verdict": " ".join(sentences),
        "sentences": sentences,
        "contest": {
            "confidence": 0.95,
            "seeds": [17, 18, 19][:seeds],
            "won": False,
            "leader": best["trial"],
            "runner_up": second["trial"],
            "difference": {"difference": 0.01, "low": -0.02, "high": 0.04, "p": 0.4},
            "candidates": [_candidate(row, place) for place, row in enumerate(table)],
        },
        "table": table,
        "tree": list(tree.values()),
    }


def _trial(
    number: int, method: str, tiers: int, order: tuple[int, ...], tree: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    value = 0.45 + 0.04 * tiers + 0.1 * order[-1] / tiers + 0.03 * order[0] / tiers + 0.002 * (number % 3)
    split = f"split-{method}-{tiers}"
    _node(tree, split, None, f"{tiers} tiers", f"{method}, quantiles, seed 17", "", number)
    keys: list[str] = []
    for place in range(1, tiers + 1):
        key = f"phase-{method}-{tiers}-" + "".join(map(str, order[:place]))
        _node(tree, key, keys[-1] if keys else split, f"tier-{order[place - 1]}", "sft", "trained", number)
        keys.append(key)
    metrics = {"verifiable.accuracy": value, "verifiable.accuracy.low": value - 0.05,
               "verifiable.accuracy.high": value + 0.05, "loss.nats_per_token": 1 - value}  # fmt: skip
    return {
        "trial": number,
        "params": {"splitting.tiers": tiers, "scoring.method": method, "curriculum.order": list(order)},
        "same_as": [],
        "state": "done",
        "reason": "",
        "metrics": metrics,
        "by_seed": {"17": value},
        "tokens": 24_000 + 10 * number,
        "keys": keys,
        "tiers": tiers,
        "order": list(order),
        "evaluations": {},
    }


def _node(
    tree: dict[str, dict[str, Any]], key: str, parent: str | None, label: str, about: str, state: str, trial: int
) -> None:
    phase = parent is not None
    node = {"key": key, "parent": parent, "label": label, "about": about, "state": state, "trials": [],
            "tokens": 6000 if phase else None, "seconds": 3.5 + len(key) % 7 if phase else None}  # fmt: skip
    tree.setdefault(key, node)["trials"].append(trial)


def _candidate(row: dict[str, Any], place: int) -> dict[str, Any]:
    value = row["metrics"]["verifiable.accuracy"]
    chance = 0.31 if place == 0 else 0.69 / 2**place
    return {"trial": row["trial"], "value": value, "low": value - 0.05, "high": value + 0.05, "chance": chance}
