"""What an entry of the store is made of: its manifest, and whether its files are as the manifest says."""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from components.common.digests import digest_file
from components.common.errors import Damaged, UserError
from components.common.lease import here
from components.common.names import plain_name, plain_path
from components.common.objects import Objects
from components.common.objects_json import file_facts, json_object

Kind = Literal["prepared", "scores", "splits", "phases", "optimizers", "evaluations", "sweeps"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MANIFEST = "manifest.json"
STAGING, DAMAGED, VERIFIED = ".staging", ".damaged", ".verified"
Files = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the maker of an entry recorded.

    Attributes:
        kind: Of the entry.
        key: Of the entry.
        created: Unix time of the publication, by the maker's clock.
        files: By relative path `size` (bytes) and `sha256`; on S3 also `mark`, which changes with the content.
        info: What the maker has to say (counts, metrics, seconds).
        attempt: On S3 the name below which the files lie; empty in a folder.
        raw: The manifest as it lies in the store.
    """

    kind: Kind
    key: str
    created: float
    files: Files
    info: dict[str, Any]
    attempt: str
    raw: bytes

    @property
    def size(self) -> int:
        """Bytes of the files."""
        return sum(int(about["size"]) for about in self.files.values())


def parse_manifest(kind: Kind, key: str, raw: bytes, where: str) -> Manifest:
    """The manifest that bytes hold.

    Raises:
        Damaged: If they hold none, or one that names files elsewhere or without their size and SHA-256.
    """
    try:
        values = json_object(raw)
        files = {plain_path(name): file_facts(about) for name, about in values["files"].items()}
        created, attempt = float(values.get("created", 0.0)), values.get("attempt", "")
        if attempt != "":
            plain_name(attempt)
        return Manifest(kind, key, created, files, dict(values["info"]), attempt, raw)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:  # not text, JSON or a manifest
        raise Damaged(
            f"the manifest of {where} is damaged: {error!r}", f"delete the folder {where}; it is made again"
        ) from error


def write_manifest(
    staging: Path, kind: Kind, key: str, files: Files, info: dict[str, Any], attempt: str = ""
) -> Manifest:
    """Write the manifest of a finished folder, so that a loss of power does not take it back."""
    created = time.time()
    values: dict[str, Any] = {"kind": kind, "key": key, "created": created, "files": files, "info": info}
    if attempt:
        values["attempt"] = attempt
    raw = json.dumps(values, indent=1, sort_keys=True).encode()
    with (staging / MANIFEST).open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    return Manifest(kind, key, created, files, json.loads(raw)["info"], attempt, raw)


def digest_files(folder: Path) -> Files:
    """Size and SHA-256 of every file below a folder, but for a manifest of its own."""
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": digest_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }


class Verified:
    """Remembers which files were read and found to be as the manifest says; deleting it costs only time.

    Args:
        folder: Where it remembers.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def faults(self, folder: Path, manifest: Manifest, afresh: bool = False) -> list[str]:
        """What is wrong with the files of a folder; nothing where all are whole.

        Args:
            folder: The folder.
            manifest: What should be there.
            afresh: Read every file, also those that were read before and have not been touched since.
        """
        known = {} if afresh else self._known(manifest)
        seen: dict[str, list[Any]] = {}
        found: list[str] = []
        for name, about in manifest.files.items():
            path = folder / name
            try:
                status = path.stat()
            except OSError:
                found.append(f"{name} is missing")
                continue
            stamp = _stamp(status, about)
            if status.st_size != about["size"]:
                found.append(f"{name} has {status.st_size:,} bytes of {about['size']:,}")
            elif known.get(name) != stamp and digest_file(path) != about["sha256"]:
                found.append(f"{name} has changed")
            else:
                seen[name] = stamp
        if seen != known and not found:
            self._remember(manifest, seen)
        return found

    def trust(self, manifest: Manifest, stamps: dict[str, list[Any]]) -> None:
        """Remember that the files have just been read, when their digests were taken; see `stamps`."""
        self._remember(manifest, stamps)

    def _note(self, manifest: Manifest) -> Path:
        return self._folder / f"{manifest.kind}-{manifest.key}.json"

    def _known(self, manifest: Manifest) -> dict[str, list[Any]]:
        try:
            return {} if self._folder.is_symlink() else json_object(self._note(manifest).read_bytes())
        except (OSError, ValueError):
            return {}

    def _remember(self, manifest: Manifest, stamps: dict[str, list[Any]]) -> None:
        if self._folder.is_symlink():  # what it leads to is none of ours
            return
        note = self._note(manifest)
        partial = note.with_name(f".{note.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
        with contextlib.suppress(OSError):  # a store that cannot be written is read all the same
            self._folder.mkdir(exist_ok=True)
            partial.write_text(json.dumps(stamps), encoding="utf-8")
            partial.replace(note)
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def stamps(folder: Path, files: Files) -> dict[str, list[Any]]:
    """What tells whether files were touched since; moving their folder does not change it."""
    return {name: _stamp((folder / name).stat(), about) for name, about in files.items()}


def _stamp(status: os.stat_result, about: dict[str, Any]) -> list[Any]:
    return [status.st_size, status.st_mtime_ns, status.st_ino, about["sha256"]]


class Entries(ABC):
    """The entries at one place.

    Attributes:
        objects: What else lies there: leases, checkpoints, records.
        local: The local folder in which results are made and files are remembered.
    """

    objects: Objects
    local: Path

    @abstractmethod
    def manifest(self, kind: Kind, key: str) -> Manifest | None:
        """The manifest of a finished entry, or None.

        Raises:
            Damaged: If there is one that cannot be read.
        """

    @abstractmethod
    def uri(self, manifest: Manifest) -> str:
        """Where the entry's files lie, for another process."""

    @abstractmethod
    def folder(self, manifest: Manifest) -> Path:
        """A local folder with the entry's files, verified.

        Raises:
            Damaged: If they are not what their maker left there.
        """

    @abstractmethod
    def faults(self, manifest: Manifest, afresh: bool = False) -> list[str]:
        """What is wrong with the entry's files; `afresh` reads every byte of them."""

    @abstractmethod
    def publish(self, staging: Path, kind: Kind, key: str, info: dict[str, Any], permitted: Callable[[], None]) -> None:
        """Make a folder's files an entry; where there is one by now, it stays and ours is dropped.

        Args:
            staging: The folder; it may be moved away.
            kind: Of the entry.
            key: Of the entry.
            info: For the manifest.
            permitted: Called last before the entry appears; raises where it must not.
        """

    @abstractmethod
    def set_aside(self, kind: Kind, key: str, raw: bytes) -> str | None:
        """Take a damaged entry out of the way, if its manifest is still the one that was read; returns where to."""

    @abstractmethod
    def raw_manifest(self, kind: Kind, key: str) -> bytes | None:
        """The manifest's bytes, readable or not."""

    @abstractmethod
    def delete(self, kind: Kind, key: str) -> None:
        """Delete an entry for good; killed in the middle, it leaves no entry.

        Raises:
            ValueError: If the key is no single name: below an empty one lie all entries of the kind.
        """

    @abstractmethod
    def listed(self) -> Iterator[tuple[Kind, str]]:
        """All that is there, listed: only for `ls` and `gc`. What has no entry's name is passed by."""

    def own(self, name: str) -> Path:
        """A folder of the store's own on this machine (`.staging`), there or not.

        Raises:
            Damaged: If it is a link.
        """
        folder = self.local / name
        if folder.is_symlink():
            raise Damaged(f"{folder} is a link, and the store does not reach beyond its folder", "remove the link")
        return folder

    @contextmanager
    def staging(self, kind: Kind, key: str) -> Iterator[Path]:
        """A folder to make a result in; gone when the block ends.

        Raises:
            Damaged: If `.staging` is a link.
            UserError: If the store cannot be written.
        """
        import shutil

        folder = self.own(STAGING) / f"{kind}-{key[:12]}-{here()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise UserError(
                f"the store {self.local} cannot be written: {error.strerror}", "set `store` to a folder of yours"
            ) from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
