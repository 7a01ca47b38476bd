"""Entries in a local folder: `<kind>/<key>/`, moved into place whole."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from components.common.errors import Damaged
from components.common.names import plain_name
from components.common.objects import LocalObjects
from components.common.store_entries import (
    DAMAGED,
    KINDS,
    MANIFEST,
    STAGING,
    VERIFIED,
    Entries,
    Kind,
    Manifest,
    Verified,
    digest_files,
    parse_manifest,
    stamps,
    write_manifest,
)

_RENAMES = 100
"""Attempts to put a result into its place while others do the same."""


class LocalEntries(Entries):
    """See `Entries`.

    Args:
        root: The store's folder; made when the first result is.
    """

    def __init__(self, root: Path) -> None:
        self.local = root.absolute()
        self.objects: LocalObjects = LocalObjects(self.local)
        self._verified = Verified(self.local / VERIFIED)

    def _path(self, kind: Kind, key: str) -> Path:
        return self.objects.path(f"{kind}/{key}")

    def _broken(self) -> Path:
        """A new name for what is to be deleted."""
        return self.objects.path(f"{STAGING}/broken-{os.getpid()}-{uuid.uuid4().hex[:8]}")

    def raw_manifest(self, kind: Kind, key: str) -> bytes | None:
        """See `Entries`."""
        return self.objects.read(f"{kind}/{key}/{MANIFEST}")

    def manifest(self, kind: Kind, key: str) -> Manifest | None:
        """See `Entries`."""
        raw = self.raw_manifest(kind, key)
        return None if raw is None else parse_manifest(kind, key, raw, str(self._path(kind, key)))

    def uri(self, manifest: Manifest) -> str:
        """See `Entries`."""
        return str(self._path(manifest.kind, manifest.key))

    def faults(self, manifest: Manifest, afresh: bool = False) -> list[str]:
        """See `Entries`."""
        return self._verified.faults(self._path(manifest.kind, manifest.key), manifest, afresh)

    def folder(self, manifest: Manifest) -> Path:
        """See `Entries`."""
        folder = self._path(manifest.kind, manifest.key)
        if found := self.faults(manifest):
            raise Damaged(f"{folder} is damaged: {found[0]}", "the next `phasetune run` makes it again")
        return folder

    def publish(self, staging: Path, kind: Kind, key: str, info: dict[str, Any], permitted: Callable[[], None]) -> None:
        """See `Entries`."""
        manifest = write_manifest(staging, kind, key, digest_files(staging), info)
        target, untouched = self._path(kind, key), stamps(staging, manifest.files)
        target.parent.mkdir(parents=True, exist_ok=True)
        permitted()
        for _ in range(_RENAMES):
            try:
                staging.rename(target)
                self._verified.trust(manifest, untouched)
                return
            except OSError as error:
                if self._stands(kind, key):
                    return
                # Something was in the way; by now another maker may have set it aside, which is no reason to stop.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
            # A folder without a manifest is no result: it is set aside, never mixed with ours. Another maker may be
            # doing the same at this moment, and even have put its result there: then that goes back, and stays.
            aside = self._broken()
            with contextlib.suppress(OSError):
                target.rename(aside)
                if _readable(aside, kind, key):
                    aside.rename(target)
        raise OSError(f"{target} cannot be replaced")

    def _stands(self, kind: Kind, key: str) -> bool:
        return _readable(self._path(kind, key), kind, key)

    def set_aside(self, kind: Kind, key: str, raw: bytes) -> str | None:
        """See `Entries`."""
        target = self._path(kind, key)
        aside = self.objects.path(f"{DAMAGED}/{kind}-{key}-{uuid.uuid4().hex[:8]}")
        if self.raw_manifest(kind, key) != raw:
            return None
        aside.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            target.rename(aside)
            if (aside / MANIFEST).read_bytes() == raw:
                return str(aside)
            aside.rename(target)  # another has made it again in this very moment
        return None

    def delete(self, kind: Kind, key: str) -> None:
        """See `Entries`."""
        target, aside = self._path(kind, plain_name(key)), self._broken()
        aside.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.rename(aside)
        except FileNotFoundError:
            return
        shutil.rmtree(aside, ignore_errors=True)
        self.objects.remove([f"{VERIFIED}/{kind}-{key}.json"])

    def listed(self) -> Iterator[tuple[Kind, str]]:
        """See `Entries`."""
        for kind in KINDS:
            for path in sorted((self.local / kind).glob(f"*/{MANIFEST}")):
                name = path.relative_to(self.local).as_posix()
                if self.objects.link(name) is None and path.is_file():
                    yield kind, path.parent.name


def _readable(folder: Path, kind: Kind, key: str) -> bool:
    """Whether a folder has a manifest that can be read."""
    try:
        parse_manifest(kind, key, (folder / MANIFEST).read_bytes(), str(folder))
    except (Damaged, OSError):
        return False
    return True
