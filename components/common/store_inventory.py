"""What is in a store, by listing it: entries, the runs that use them, leases, checkpoints. For `ls` and `gc` only."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from components.common.errors import Damaged
from components.common.lease import describe, parse_lease, surely_dead
from components.common.names import listed_parts
from components.common.objects_json import json_object
from components.common.records import RUNS
from components.common.store import Kind, Store
from components.common.store_entries import KINDS

SILENT = 600.0
"""Seconds after which a lease that was not renewed is nobody's, by the store's own clock; renewals come in seconds."""
DAY = 86400.0


@dataclass(frozen=True, slots=True)
class Held:
    """An entry of the store.

    Attributes:
        kind: What it is.
        key: Its key.
        size: Bytes of its files.
        age: Seconds since it was published, by the maker's clock.
        name: Of a phase: `curriculum index name`, as its runs call it.
        runs: The runs that used it, newest first.
        parent: Of a phase: the key of the phase (or the digest of the model) that it started from; empty if unknown.
        damage: What is wrong with its manifest; empty if nothing.
    """

    kind: Kind
    key: str
    size: int
    age: float
    name: str = ""
    runs: tuple[str, ...] = ()
    parent: str = ""
    damage: str = ""


@dataclass(slots=True)
class Run:
    """A run that left records.

    Attributes:
        run: Its id.
        started: ISO 8601 time, UTC; empty where its first record is missing.
        finished: Whether its report was written.
        quiet: Seconds since it wrote its last record, by the store's own clock.
        uses: The entries of its records, by kind and key.
        names: What it calls its phases, by key.
        parents: What its phases started from, by key.
    """

    run: str
    started: str = ""
    finished: bool = False
    quiet: float = float("inf")
    uses: set[tuple[str, str]] = field(default_factory=set)
    names: dict[str, str] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)

    @property
    def under_way(self) -> bool:
        """Whether it may still go on, or be repeated soon."""
        return not self.finished and self.quiet < DAY


@dataclass(frozen=True, slots=True)
class Leased:
    """A lease's record.

    Attributes:
        name: Its register.
        kind: Of the result.
        key: Of the result.
        holder: Who makes the result now, in words; empty where nobody does.
    """

    name: str
    kind: str
    key: str
    holder: str


@dataclass(frozen=True, slots=True)
class Inventory:
    """All that is in a store.

    Attributes:
        entries: The entries, by kind and key.
        runs: The runs, newest first.
        leases: The leases.
        checkpoints: Of phases by key: names, bytes, and seconds since the last change.
    """

    entries: dict[tuple[Kind, str], Held]
    runs: list[Run]
    leases: list[Leased]
    checkpoints: dict[str, tuple[list[str], int, float]]

    def makers(self) -> dict[tuple[str, str], str]:
        """Who makes a result now, by kind and key."""
        return {(lease.kind, lease.key): lease.holder for lease in self.leases if lease.holder}


def take_inventory(store: Store) -> Inventory:
    """List a store. What has none of its names is passed by: strays of others, or S3's markers of folders (`a/`)."""
    runs = _runs(store)
    entries: dict[tuple[Kind, str], Held] = {}
    for kind, key in store.entries.listed():
        entries[kind, key] = _held(store, kind, key, runs)
    checkpoints: dict[str, tuple[list[str], int, float]] = {}
    for item in store.objects.list("checkpoints"):
        parts = listed_parts(item.name)
        if len(parts) > 2:
            names, size, age = checkpoints.get(parts[1], ([], 0, float("inf")))
            checkpoints[parts[1]] = ([*names, item.name], size + item.size, min(age, item.age))
    return Inventory(entries, runs, _leases(store), checkpoints)


def _held(store: Store, kind: Kind, key: str, runs: list[Run]) -> Held:
    users = [run for run in runs if (kind, key) in run.uses]
    name = next((run.names[key] for run in users if key in run.names), "")
    told = next((run.parents[key] for run in users if key in run.parents), "")
    try:
        manifest = store.entries.manifest(kind, key)
    except Damaged as error:
        return Held(kind, key, 0, 0.0, name, tuple(run.run for run in users), told, error.message)
    if manifest is None:  # it went while we looked
        return Held(kind, key, 0, 0.0)
    age = max(0.0, time.time() - manifest.created)
    parent = str(manifest.info.get("parent_key") or told)
    return Held(kind, key, manifest.size, age, name, tuple(run.run for run in users), parent)


def _runs(store: Store) -> list[Run]:
    runs: dict[str, Run] = {}
    for item in store.objects.list(RUNS):
        parts = listed_parts(item.name)
        if len(parts) != 3 or not parts[2].endswith(".json") or parts[2].startswith("."):
            continue
        _, name, file = parts
        run = runs.setdefault(name, Run(name))
        run.quiet = min(run.quiet, item.age)
        values = _values(store, item.name)
        if file == "run.json":
            run.started = str(values.get("started", ""))
        else:
            _note(run, values)
    return sorted(runs.values(), key=lambda run: (run.started, run.run), reverse=True)


def _note(run: Run, record: dict[str, Any]) -> None:
    """Add what a step's record says to its run."""
    kind, key, info = str(record.get("kind", "")), str(record.get("key", "")), record.get("info")
    about = info if isinstance(info, dict) else {}
    if kind == "report":
        run.finished = True
    if kind not in KINDS:
        return
    run.uses.add((kind, key))
    if kind == "phases":
        run.uses.add(("optimizers", key))  # no record names it: it belongs to its phase
        run.names[key] = f"{about.get('curriculum', '')} {about.get('index', '')} {about.get('name', '')}".strip()
        if about.get("parent_key"):
            run.parents[key] = str(about["parent_key"])


def _values(store: Store, name: str) -> dict[str, Any]:
    """The object's JSON values; nothing where it went, or is damaged."""
    try:
        return json_object(store.objects.read(name) or b"{}")
    except ValueError:
        return {}


def _leases(store: Store) -> list[Leased]:
    found = []
    for item in store.objects.list_registers("leases"):
        parts = listed_parts(item.name)
        record = store.objects.look(item.name) if len(parts) == 3 else None
        if record is None:
            continue
        _, kind, key = parts
        holder = parse_lease(record[0])["holder"]
        alive = holder is not None and item.age < SILENT and not surely_dead(holder)
        found.append(Leased(item.name, kind, key, describe(holder) if alive else ""))
    return found
