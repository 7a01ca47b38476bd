"""What can go from a store, as a list of decisions with their reasons, and carrying them out.

What the last runs refer to stays, and everything that is under way; of the rest the parents of phases that stay are
named, and stay as well unless they are given up expressly.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from components.common.checkpoints import DATA
from components.common.names import listed_parts, plain_name, plain_path
from components.common.store import Kind, Store
from components.common.store_entries import DAMAGED, KINDS
from components.common.store_inventory import DAY, Held, Inventory, take_inventory
from components.common.waiting import forgotten

What = Literal["entry", "checkpoints", "lease", "damaged", "unfinished files", "folder", "sign of life"]
_RECENT = 3600.0
"""Seconds for which an entry stays while a run is under way: its step may not have written its record yet."""
_FORGOTTEN = 30 * DAY
"""Seconds after which the checkpoints of a phase that nobody finished are given up."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one thing in the store.

    Attributes:
        what: What it is.
        name: `kind/key`, or where it lies.
        size: Bytes.
        goes: Whether it is deleted.
        reason: Why it goes or stays.
    """

    what: What
    name: str
    size: int
    goes: bool
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def decide(store: Store, keep_runs: int, parents: bool = False) -> list[Decision]:
    """Decide what goes; nothing is changed.

    Args:
        store: The store.
        keep_runs: How many runs, newest first, keep what they refer to.
        parents: Give up also the parents of phases that stay.
    """
    found = take_inventory(store)
    decisions = _entries(found, keep_runs, parents)
    decisions += _beside(found)
    decisions += _files(store, found)
    decisions += [
        Decision("sign of life", name, 0, True, "who waited for this job has gone")
        for name in forgotten(store.objects)
        if len(listed_parts(name)) == 3
    ]
    decisions += [
        Decision("folder", str(folder), _size(folder), True, "unfinished, and nobody works in it")
        for folder in store.stale_staging()
    ]
    return decisions


def _entries(found: Inventory, keep_runs: int, parents: bool) -> list[Decision]:
    reasons = _reasons_to_stay(found, keep_runs)
    needed = _needed_parents(found, reasons)
    decisions = []
    for place, held in found.entries.items():
        name = f"{held.kind}/{held.key}"
        phase: tuple[Kind, str] = ("phases", held.key) if held.kind == "optimizers" else place
        if place in reasons:
            decisions.append(Decision("entry", name, held.size, False, reasons[place]))
        elif phase in needed:
            why = f"parent of {needed[phase][:12]}, which stays"
            decisions.append(Decision("entry", name, held.size, parents, why))
        else:
            used = f"used last by {held.runs[0]}" if held.runs else "no run refers to it"
            decisions.append(Decision("entry", name, held.size, True, held.damage or used))
    return decisions


def _reasons_to_stay(found: Inventory, keep_runs: int) -> dict[tuple[Kind, str], str]:
    makers = found.makers()
    kept = found.runs[:keep_runs]
    under_way = [run for run in found.runs[keep_runs:] if run.under_way]
    busy = bool(makers) or any(run.under_way for run in found.runs)

    def reason(held: Held) -> str:
        place = (str(held.kind), held.key)
        for run in kept:
            if place in run.uses:
                return f"used by {run.run}"
        for run in under_way:
            if place in run.uses:
                return f"used by {run.run}, which has not finished"
        if place in makers:
            return f"at work on it: {makers[place]}"
        return "made just now, and a run is under way" if busy and held.age < _RECENT else ""

    reasons = {place: reason(held) for place, held in found.entries.items() if not held.damage}
    for (kind, key), why in reasons.items():
        if kind == "optimizers" and not why:  # it is published before its phase, and asked for whenever that is
            phase: tuple[Kind, str] = ("phases", key)
            maker = f"at work on its phase: {makers[phase]}" if phase in makers else ""
            reasons[kind, key] = reasons.get(phase, "") or maker
    return {place: why for place, why in reasons.items() if why}


def _needed_parents(found: Inventory, stay: dict[tuple[Kind, str], str]) -> dict[tuple[Kind, str], str]:
    """The phases that would go and from which a phase that stays descends, with the key of their child."""
    needed: dict[tuple[Kind, str], str] = {}
    for kind, key in stay:
        child, parent, seen = key, found.entries[kind, key].parent, set[str]()  # a manifest may name itself as parent
        while ("phases", parent) in found.entries and ("phases", parent) not in needed and parent not in seen:
            seen.add(parent)
            if ("phases", parent) not in stay:
                needed["phases", parent] = child
            child, parent = parent, found.entries["phases", parent].parent
    return needed


def _beside(found: Inventory) -> list[Decision]:
    """Checkpoints and leases."""
    makers = found.makers()
    decisions = []
    for folder, (_, size, age) in sorted(found.checkpoints.items()):
        key, name = folder.removesuffix(DATA), f"checkpoints/{folder}"
        done = ("phases", key) in found.entries
        maker = makers.get(("phases", key)) or makers.get(("optimizers", key))  # trained again for its optimizer
        if maker:
            decisions.append(Decision("checkpoints", name, size, False, f"in use: {maker}"))
        elif done:
            decisions.append(Decision("checkpoints", name, size, True, "the phase is finished"))
        else:
            why = "nobody came back for a month" if age > _FORGOTTEN else "the phase was not finished, and may go on"
            decisions.append(Decision("checkpoints", name, size, age > _FORGOTTEN, why))
    for lease in found.leases:
        why = f"held by {lease.holder}" if lease.holder else "nobody holds it"
        decisions.append(Decision("lease", lease.name, 0, not lease.holder, why))
    return decisions


def _files(store: Store, found: Inventory) -> list[Decision]:
    """What was set aside, and on S3 files that no manifest names."""
    damaged: dict[str, int] = {}
    for item in store.objects.list(DAMAGED):
        parts = listed_parts(item.name)
        if len(parts) > 2:
            name = "/".join(parts[:2])
            damaged[name] = damaged.get(name, 0) + item.size
    decisions = [Decision("damaged", name, size, True, "it was made again") for name, size in damaged.items()]
    if not store.place.startswith("s3://"):
        return decisions
    makers, attempts = found.makers(), dict(_attempts(store))
    for place, (kind, key, size, age) in attempts.items():
        held = found.entries.get((kind, key))
        if held is not None and held.damage:  # it goes, and all its files with it
            continue
        entry = None if held is None else store.find(kind, key)
        if entry is not None and place == f"{kind}/{key}/{entry.manifest.attempt}":
            continue
        if age > DAY and (kind, key) not in makers:
            decisions.append(Decision("unfinished files", place, size, True, "no entry names them"))
    for kind in KINDS:
        for folder in sorted((store.root / kind).glob("*")):
            key, _, attempt = folder.name.partition("-")
            if f"{kind}/{key}/{attempt}" not in attempts:
                decisions.append(Decision("folder", str(folder), _size(folder), True, "a copy of what S3 has no more"))
    return decisions


def _attempts(store: Store) -> Iterator[tuple[str, tuple[Kind, str, int, float]]]:
    """The names on S3 below which files of entries lie, with kind, key, bytes and seconds since the last write."""
    sizes: dict[str, tuple[Kind, str, int, float]] = {}
    for kind in KINDS:
        for item in store.objects.list(kind):
            parts = listed_parts(item.name)
            if len(parts) > 3:
                _, key, attempt = parts[:3]
                place = f"{kind}/{key}/{attempt}"
                _, _, size, age = sizes.get(place, (kind, key, 0, float("inf")))
                sizes[place] = (kind, key, size + item.size, min(age, item.age))
    yield from sizes.items()


def _size(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            size += path.lstat().st_size if path.is_file() else 0
    return size


def _check(store: Store, decision: Decision) -> None:
    """See once more that a decision names one thing: below a name that lacks a part lies what nobody decided on."""
    name = os.path.relpath(decision.name, store.root) if decision.what == "folder" else decision.name
    folder, slash, rest = plain_path(name).partition("/")
    if not slash:
        raise ValueError(f"{folder!r} is no name of one thing in a store")
    if decision.what == "entry":
        plain_name(rest)


def sweep(store: Store, decisions: list[Decision]) -> int:
    """Carry decisions out; returns the bytes that are free now.

    Raises:
        ValueError: If one of them names other than one thing in the store; nothing is deleted then.
    """
    freed, going = 0, [decision for decision in decisions if decision.goes]
    for decision in going:
        _check(store, decision)
    for decision in going:
        if decision.what == "entry":
            kind, key = decision.name.split("/")
            for known in KINDS:
                if known == kind:
                    store.entries.delete(known, key)
        elif decision.what == "lease":
            store.objects.forget(decision.name)
        elif decision.what == "folder":
            shutil.rmtree(decision.name, ignore_errors=True)
        elif decision.what == "sign of life":
            store.objects.remove([decision.name])
        else:
            store.objects.remove([item.name for item in store.objects.list(decision.name)])
        freed += decision.size
    store.objects.end_uploads(DAY)
    return freed
