"""The store: one finished result per key, and the only cache there is.

An entry is the folder `<kind>/<key>/` with a `manifest.json` that is written last and lists every file with its
size and SHA-256. Without a manifest the entry does not exist. In a folder, a result is made in a staging folder on the
same file system and moved into place whole; in S3 its files go below a name of their own and the manifest names it.
Either way a killed process leaves nothing that could be taken for a result. See docs/store.md.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.common.errors import Damaged, UserError
from components.common.lease import Lease, ended, here
from components.common.objects import FULL, Objects, open_objects
from components.common.progress import say
from components.common.store_entries import KINDS, MANIFEST, STAGING, Entries, Kind, Manifest
from components.common.store_local import LocalEntries

__all__ = ["KINDS", "MANIFEST", "Entry", "Kind", "Store", "folder_of", "reading"]

_LONGEST_PID = 10
"""Digits that no process number has."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished result.

    Attributes:
        kind: What it is.
        key: The digest of everything that determines it.
        uri: Where its files lie, for another process: a folder, or an S3 prefix.
        info: What the maker recorded in the manifest (counts, metrics, seconds).
        manifest: All of the manifest.
    """

    kind: Kind
    key: str
    uri: str
    info: dict[str, Any]
    manifest: Manifest = field(repr=False)
    _entries: Entries = field(repr=False, compare=False)

    @property
    def path(self) -> Path:
        """A local folder with its files, verified; of S3 a copy, which is fetched when it is first asked for.

        Raises:
            Damaged: If the files are not what the maker left there.
        """
        return self._entries.folder(self.manifest)


class Store:
    """A store in a local folder or below an S3 prefix.

    Args:
        root: The folder, made when the first result is; or `s3://bucket/prefix`.

    Attributes:
        place: The folder, absolute, or `s3://bucket/prefix`.
        root: The local folder: the store itself, or the copies of what lies in S3.
        objects: What lies beside the entries: leases, checkpoints, records.
        entries: The entries.

    Raises:
        UserError: If the location is neither.
    """

    def __init__(self, root: str | Path) -> None:
        self.entries = _entries(root)
        self.objects: Objects = self.entries.objects
        self.place: str = self.objects.place
        self.root: Path = self.entries.local

    @property
    def memory(self) -> Path:
        """Where the digests of the users' files are remembered; deleting it costs only time.

        Raises:
            Damaged: If it is a link.
        """
        return self.entries.own(".digests")

    def path(self, kind: Kind, key: str) -> Path:
        """The folder of an entry of a store in a folder, whether it exists or not."""
        return self.root / kind / key

    def find(self, kind: Kind, key: str) -> Entry | None:
        """The finished result under a key, or None; nothing is moved or read but its manifest.

        Raises:
            Damaged: If the manifest cannot be read.
        """
        manifest = self.entries.manifest(kind, key)
        return None if manifest is None else self.entry(manifest)

    def entry(self, manifest: Manifest) -> Entry:
        """The entry of a manifest."""
        return Entry(manifest.kind, manifest.key, self.entries.uri(manifest), manifest.info, manifest, self.entries)

    def whole(self, kind: Kind, key: str) -> Entry | None:
        """The finished result under a key, its files looked after; a damaged one is named and set aside, then None."""
        raw = self.entries.raw_manifest(kind, key)
        if raw is None:
            return None
        try:
            entry = self.find(kind, key)
            found = [] if entry is None else self.entries.faults(entry.manifest)
            if entry is not None and found:  # once more: it may have been moved away and back while we looked
                found = self.entries.faults(entry.manifest)
        except Damaged as error:
            entry, found = None, [error.message]
        if found:
            self.set_aside(kind, key, raw, found[0])
            return None
        return entry

    def set_aside(self, kind: Kind, key: str, raw: bytes, reason: str) -> None:
        """Take a damaged entry out of the way and tell the user; one that was made again meanwhile stays."""
        where = self.entries.set_aside(kind, key, raw)
        if where is not None:
            say(warning=f"{kind}/{key[:12]} in the store is damaged ({reason}): it is made again; the old one: {where}")

    @contextmanager
    def make(self, kind: Kind, key: str, info: dict[str, Any], lease: Lease | None = None) -> Iterator[Path]:
        """Make a result: yields an empty folder, and publishes it under the key when the block ends cleanly.

        `info` is read when the block ends, so the block may fill it. If another process published the same key
        meanwhile, its result stays and ours is dropped: equal keys mean equal results.

        Raises:
            UserError: If the disk is full.
            LeaseLost: If the lease under which it is made was taken over; nothing is published then.
        """
        try:
            with self.entries.staging(kind, key) as staging:
                yield staging
                self.entries.publish(staging, kind, key, info, lambda: None if lease is None else lease.check())
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise UserError(
                f"the disk of the store {self.root} is full", "free some space there, or set `store` to another disk"
            ) from error

    def files(self, entry: Entry) -> dict[str, dict[str, Any]]:
        """The entry's files with `size` (bytes) and `sha256`, from its manifest."""
        return entry.manifest.files

    def clear_staging(self, older_than: float = 86400.0) -> int:
        """Delete staging folders whose owner has ended, or that are older than so many seconds where that is unknown.

        Returns:
            How many.
        """
        stale = self.stale_staging(older_than)
        for folder in stale:
            shutil.rmtree(folder, ignore_errors=True)
        return len(stale)

    def stale_staging(self, older_than: float = 86400.0) -> list[Path]:
        """What `clear_staging` deletes."""
        import psutil

        stale: list[Path] = []
        place = self.root / STAGING
        if place.is_symlink():  # what it leads to is none of the store's
            return stale
        for folder in sorted(path for path in place.glob("*") if not path.is_symlink()):
            boot, owner = ([*folder.name.split("-"), "", "", ""])[2:4]
            owner = owner if len(owner) < _LONGEST_PID else ""
            # Of a process of another machine nobody here can tell.
            dead = owner.isdecimal() and bool(boot) and boot == here() and ended(int(owner))
            if owner.isdecimal() and not dead and psutil.pid_exists(int(owner)):
                continue
            with contextlib.suppress(FileNotFoundError):
                if dead or time.time() - folder.stat().st_mtime > older_than:
                    stale.append(folder)
        return stale


def _entries(root: str | Path) -> Entries:
    if str(root).startswith("s3://"):
        from components.common.store_s3 import S3Entries

        return S3Entries(str(root))
    open_objects(root)  # refuses what is neither
    return LocalEntries(Path(root))


def located(uri: str) -> tuple[str, Kind, str]:
    """The store's place, the kind and the key of an entry's URI (`Entry.uri`)."""
    parts = uri.split("/")
    if uri.startswith("s3://"):
        parts = parts[:-1]  # the attempt
    *place, kind, key = parts
    return "/".join(place), _kind(kind), key


def _kind(name: str) -> Kind:
    for kind in KINDS:
        if kind == name:
            return kind
    raise ValueError(f"{name!r} is no kind of result")


def folder_of(uri: str) -> Path | None:
    """A local folder with the files of an entry's URI, which is the folder itself unless the store is in S3.

    Returns:
        The folder, there or not; None where S3 has no such entry.
    """
    if not uri.startswith("s3://"):
        return Path(uri)
    place, kind, key = located(uri)
    entry = Store(place).find(kind, key)
    return None if entry is None else entry.path


def reading(uri: str) -> Path:
    """A local folder with the files of an entry's URI, verified for a step that works with them.

    Raises:
        Damaged: If they are not what their maker left there; the entry is set aside, so that a rerun makes it again.
        UserError: If it is not there.
    """
    if not uri.startswith("s3://") and Path(uri).is_dir() and not (Path(uri) / MANIFEST).exists():
        return Path(uri)  # a stage's result on its own, outside any store
    place, kind, key = located(uri)
    store = Store(place)
    raw = store.entries.raw_manifest(kind, key)
    try:
        entry = store.find(kind, key)
        if entry is None:
            raise UserError(f"{uri} is not in the store any more", "run the same command again: it is made again")
        return entry.path
    except Damaged as error:
        if raw is not None:
            store.set_aside(kind, key, raw, error.message)
        raise Damaged(error.message, "run the same command again: it is made again") from error
