"""Checkpoints of a phase under way: kept beside the store's results until the phase is published.

`checkpoints/<key>/pointer` names the whole checkpoints, newest first, with the size and SHA-256 of every file, and is
moved by compare and swap after the files lie there. What was being written when a process was killed is named in it
too, so that the next one can delete it without a listing. Without a pointer there is no checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from components.common.digests import digest_file
from components.common.errors import Damaged, LeaseLost
from components.common.lease import held, in_use, leased_token, take_free
from components.common.names import listed_parts, plain_name, plain_path
from components.common.objects import NEW, Missing, Objects, open_objects
from components.common.objects_json import file_facts, json_object
from components.common.progress import say

Change = Callable[[dict[str, Any]], list[dict[str, Any]]]
"""Changes the pointer's state in place; returns the checkpoints that it no longer names."""
POINTER = "pointer"
DATA = "-data"
"""The part of a phase's place for the data that it has made for itself; goes with its checkpoints."""
_ATTEMPTS = 20
"""Attempts to move the pointer while others move it too; each shows a new token, so that more than two are rare."""


@dataclass(frozen=True, slots=True)
class CheckpointPlace:
    """Where the checkpoints of one phase lie; JSON-able with `dataclasses.asdict`.

    Attributes:
        store: The root of the store, a folder or `s3://bucket/prefix`.
        key: The phase's key.
        token: The fencing token of the lease under which the phase is trained; 0 where there is no lease.
        part: Empty for the checkpoints themselves; `DATA` for what was worked out before the first step.
    """

    store: str
    key: str
    token: int
    part: str = ""

    @property
    def folder(self) -> str:
        """What the names of its objects begin with."""
        return f"checkpoints/{self.key}{self.part}"


def save(place: CheckpointPlace, step: int, folder: Path, keep: int = 2) -> None:
    """Keep a copy of a checkpoint. Killed at any moment, it leaves the checkpoints before usable.

    A process saves one checkpoint of a phase at a time.

    Args:
        place: Whose checkpoint it is.
        step: The optimizer step at which it was taken.
        folder: The files; they must not change until this returns.
        keep: How many checkpoints are kept, this one among them.

    Raises:
        LeaseLost: If another process trains the phase by now.
        UserError: If the disk is full or S3 stays away.
    """
    objects = open_objects(place.store)
    name = f"{step}-{place.token}-{uuid.uuid4().hex[:8]}"
    sources = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files = {file: {"size": path.stat().st_size, "sha256": digest_file(path)} for file, path in sources.items()}
    made = {"step": step, "name": name, "files": files}

    def announce(state: dict[str, Any]) -> list[dict[str, Any]]:
        # Two saves of one process never overlap, so whatever else was announced is left by one that was killed.
        left: list[dict[str, Any]] = state["unfinished"]
        state["unfinished"] = [made]
        return left

    def finish(state: dict[str, Any]) -> list[dict[str, Any]]:
        # Newest is what was saved last, not the highest step: after a rollback the steps are counted anew.
        kept: list[dict[str, Any]] = [made, *state["kept"]]
        state["kept"], state["unfinished"] = kept[:keep], []
        return kept[keep:]

    _delete(objects, place, _move(objects, place, announce))
    for file, path in sources.items():
        objects.send(path, f"{place.folder}/{name}/{file}")
    _delete(objects, place, _move(objects, place, finish))


def latest(place: CheckpointPlace, into: Path) -> tuple[int, Path] | None:
    """The newest whole checkpoint, brought to a local folder and verified; damaged ones are named and skipped.

    Args:
        place: Whose checkpoint is wanted.
        into: A folder in which the checkpoint gets a folder of its own. Its files may be links to the store's: they
            are to be read only.

    Returns:
        The step at which it was taken and its folder, or None where there is none.
    """
    objects = open_objects(place.store)
    found = objects.look(f"{place.folder}/{POINTER}")
    try:
        kept = _state(found[0])["kept"] if found else []
    except ValueError as error:
        where = f"{objects.place}/{place.folder}/{POINTER}"
        say(warning=f"{where} is damaged ({error}): the checkpoints that it named are not used")
        return None
    for item in kept:
        partial = into / f".bringing-{uuid.uuid4().hex[:8]}"
        try:
            reason = _bring(objects, place, item, partial)
            if reason is None:
                target = into / item["name"]
                shutil.rmtree(target, ignore_errors=True)
                partial.rename(target)
                return int(item["step"]), target
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        where = f"{objects.place}/{place.folder}/{item['name']}"
        say(warning=f"the checkpoint of step {item['step']} in {where} is damaged ({reason}) and is not used")
    return None


def clear(place: CheckpointPlace) -> None:
    """Delete the checkpoints of a phase that is published; those of another process that trains it now stay."""
    for part in ("", DATA):
        _clear(replace(place, part=part))


def _clear(place: CheckpointPlace) -> bool:
    """Whether they were ours to delete."""
    objects = open_objects(place.store)
    if objects.look(f"{place.folder}/{POINTER}") is None:
        return True

    def empty(state: dict[str, Any]) -> list[dict[str, Any]]:
        left = [*state["kept"], *state["unfinished"]]
        state["kept"], state["unfinished"] = [], []
        return left

    try:
        left = _move(objects, place, empty)
    except LeaseLost:
        return False
    _delete(objects, place, left)
    objects.forget(f"{place.folder}/{POINTER}")
    return True


def unfinished(objects: Objects) -> set[str]:
    """The keys of all phases that have checkpoints; a listing, which is slow where many phases are under way."""
    names = (listed_parts(item.name) for item in objects.list("checkpoints"))
    return {parts[1].removesuffix(DATA) for parts in names if len(parts) > 2}


def clear_finished(store: str, key: str, run: str) -> None:
    """Delete what is left of a finished phase's checkpoints by a process that was killed before it could do so.

    Waits for nobody: where the phase is in use, or its last holder may still live, they stay, for `store gc` if for
    nobody else.

    Args:
        store: The root of the store.
        key: Of a phase that is published.
        run: The run that found it.
    """
    objects = open_objects(store)
    places = [CheckpointPlace(store, key, 0, part) for part in ("", DATA)]
    if all(objects.look(f"{place.folder}/{POINTER}") is None for place in places):
        return
    lease = take_free(objects, "phases", key, run)
    if lease is None:
        return
    with held(lease):
        if in_use(objects, "optimizers", key):  # it is trained once more for its optimizer, and keeps checkpoints
            return
        for place in places:
            if _clear(replace(place, token=lease.token)):
                # Also what a pointer names no more, where the process was killed while it deleted.
                objects.remove([item.name for item in objects.list(place.folder)])


def _bring(objects: Objects, place: CheckpointPlace, item: dict[str, Any], folder: Path) -> str | None:
    """Fetch a checkpoint's files; says what is wrong with them, or None."""
    if reason := _misnamed(item):
        return reason
    folder.mkdir(parents=True)
    for file, about in item["files"].items():
        try:
            objects.fetch(f"{place.folder}/{item['name']}/{file}", folder / file, about["size"])
        except Missing:
            return f"{file} is missing or too short"
        except Damaged as error:
            return error.message
        if digest_file(folder / file) != about["sha256"]:
            return f"{file} has changed"
    return None


def _misnamed(item: dict[str, Any]) -> str | None:
    """What is wrong with the names that the pointer gives a checkpoint, of which paths are made; or None."""
    try:
        plain_name(item["name"])
        for file in item["files"]:
            plain_path(file)
    except ValueError as error:
        return str(error)
    return None


def _state(data: bytes) -> dict[str, Any]:
    """The state that a pointer holds; its names are checked where paths are made of them, see `_misnamed`.

    Raises:
        ValueError: If it holds none.
    """
    state = json_object(data)
    kept, left = state.get("kept"), state.get("unfinished")
    if not (isinstance(kept, list) and isinstance(left, list) and isinstance(state.get("token"), int)):
        raise ValueError("it names no checkpoints")
    for item in [*kept, *left]:
        files = item.get("files") if isinstance(item, dict) else None
        if not (isinstance(files, dict) and isinstance(item.get("name"), str) and isinstance(item.get("step"), int)):
            raise ValueError("it names what is no checkpoint")
        for about in files.values():
            file_facts(about)
    return state


def _state_or_new(found: tuple[bytes, str] | None) -> dict[str, Any]:
    """The state to go on from: a new one also where the pointer is damaged, which `latest` has said."""
    with contextlib.suppress(ValueError):
        if found is not None:
            return _state(found[0])
    return {"token": 0, "kept": [], "unfinished": []}


def _move(objects: Objects, place: CheckpointPlace, change: Change) -> list[dict[str, Any]]:
    """Move the pointer by a change of its state; returns the checkpoints that nothing names any more.

    Raises:
        LeaseLost: If a newer token has been given out.
    """
    name = f"{place.folder}/{POINTER}"
    for _ in range(_ATTEMPTS):
        found = objects.look(name)
        state = _state_or_new(found)
        if max(int(state["token"]), leased_token(objects, "phases", place.key)) > place.token:
            raise LeaseLost(
                f"another process trains the phase {place.key[:12]} by now", "run the same command again to follow it"
            )
        dropped = change(state)
        state |= {"token": place.token, "write": uuid.uuid4().hex}
        version = found[1] if found else NEW
        if objects.swap(name, json.dumps(state).encode(), version, durable=True) is not None:
            return dropped
    raise LeaseLost(f"the checkpoints of the phase {place.key[:12]} are changed by others without end", "run it again")


def _delete(objects: Objects, place: CheckpointPlace, checkpoints: list[dict[str, Any]]) -> None:
    for item in checkpoints:
        if _misnamed(item) is None:  # else it is nothing that was ever saved here
            objects.remove(f"{place.folder}/{item['name']}/{file}" for file in item["files"])
