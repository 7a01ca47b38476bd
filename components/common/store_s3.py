"""Entries in S3: files below a name that is the attempt's own, and a manifest that is written last and names it.

A late writer can therefore never touch another's files, and of two that publish one key one is refused. What is read
is copied to a folder of this machine first, verified, and kept there; deleting that cache costs only time.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from components.common.digests import digest, digest_file
from components.common.errors import Damaged, UserError
from components.common.names import listed_parts, plain_name
from components.common.objects import NEW, Missing, disk_errors
from components.common.objects_json import json_object
from components.common.objects_s3 import S3Objects
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

CACHE = "PHASETUNE_CACHE"
"""The variable that names the folder for copies; phasetune in `XDG_CACHE_HOME` (`~/.cache`) where absent."""
_ASIDE = "aside"
_THREADS = 4


def cache_folder() -> Path:
    """Where copies of what lies in S3 are kept on this machine."""
    if place := os.environ.get(CACHE):
        return Path(place).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "phasetune"


class S3Entries(Entries):
    """See `Entries`.

    Args:
        place: `s3://bucket/prefix`.
    """

    def __init__(self, place: str) -> None:
        self.objects: S3Objects = S3Objects(place)
        server = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        # A bucket's name means another bucket on another server.
        self.local = cache_folder() / "store" / digest([server, self.objects.place])[:16]
        self._verified = Verified(self.local / VERIFIED)

    def _look(self, kind: Kind, key: str) -> tuple[bytes, str] | None:
        return self.objects.look(f"{kind}/{key}/{MANIFEST}")

    def raw_manifest(self, kind: Kind, key: str) -> bytes | None:
        """See `Entries`."""
        found = self._look(kind, key)
        return None if found is None or _set_aside(found[0]) else found[0]

    def manifest(self, kind: Kind, key: str) -> Manifest | None:
        """See `Entries`."""
        raw = self.raw_manifest(kind, key)
        return None if raw is None else parse_manifest(kind, key, raw, f"{self.objects.place}/{kind}/{key}")

    def _name(self, manifest: Manifest, file: str = "") -> str:
        return f"{manifest.kind}/{manifest.key}/{manifest.attempt}/{file}".rstrip("/")

    def uri(self, manifest: Manifest) -> str:
        """See `Entries`."""
        return f"{self.objects.place}/{self._name(manifest)}"

    def faults(self, manifest: Manifest, afresh: bool = False) -> list[str]:
        """See `Entries`. Unless `afresh`, only what the server says does not fit is read."""

        def fault(item: tuple[str, dict[str, Any]]) -> str | None:
            file, about = item
            found = self.objects.size(self._name(manifest, file))
            if found is None:
                return f"{file} is missing"
            if found[0] != about["size"]:
                return f"{file} has {found[0]:,} bytes of {about['size']:,}"
            if not afresh and found[1] == about.get("mark"):
                return None
            return self._read_fault(manifest, file)

        return [found for found in self.objects.in_threads(fault, manifest.files.items(), _THREADS) if found]

    def _read_fault(self, manifest: Manifest, file: str) -> str | None:
        """What is wrong with one file, by reading it."""
        about = manifest.files[file]
        with disk_errors(str(self.local)), tempfile.TemporaryDirectory(dir=self._made(STAGING)) as folder:
            copy = Path(folder) / "copy"
            try:
                self.objects.fetch(self._name(manifest, file), copy, about["size"])
            except Missing:
                return f"{file} is missing"
            return None if digest_file(copy) == about["sha256"] else f"{file} has changed"

    def _made(self, name: str) -> Path:
        folder = self.local / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def folder(self, manifest: Manifest) -> Path:
        """See `Entries`."""
        folder = self._cached(manifest)
        if (folder / MANIFEST).exists():
            if not self._verified.faults(folder, manifest):
                return folder
            # The copy is bad, which says nothing about the store. Moved first: others may look at this moment.
            self._drop(folder)
        with self.staging(manifest.kind, manifest.key) as staging, disk_errors(str(self.local)):

            def fetch(file: str) -> None:
                self.objects.fetch(self._name(manifest, file), staging / file, manifest.files[file]["size"])

            try:
                self.objects.in_threads(fetch, manifest.files, _THREADS)
            except Missing as error:
                raise self._damaged(manifest, f"{error} is missing or too short") from None
            if found := self._verified.faults(staging, manifest, afresh=True):
                raise self._damaged(manifest, found[0])
            (staging / MANIFEST).write_bytes(manifest.raw)
            self._adopt(staging, manifest)
        return folder

    def _damaged(self, manifest: Manifest, what: str) -> Damaged:
        return Damaged(f"{self.uri(manifest)} is damaged: {what}", "the next `phasetune run` makes it again")

    def _cached(self, manifest: Manifest) -> Path:
        return self.local / manifest.kind / f"{manifest.key}-{manifest.attempt}"

    def _drop(self, folder: Path) -> None:
        aside = self._made(STAGING) / f"broken-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            folder.rename(aside)
        except OSError:  # another process did it
            return
        shutil.rmtree(aside, ignore_errors=True)

    def _adopt(self, staging: Path, manifest: Manifest) -> None:
        """Keep a folder as this machine's copy of an entry."""
        target, untouched = self._cached(manifest), stamps(staging, manifest.files)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            staging.rename(target)
        except OSError:
            if not (target / MANIFEST).exists():  # else another process was faster
                raise
        else:
            self._verified.trust(manifest, untouched)

    def publish(self, staging: Path, kind: Kind, key: str, info: dict[str, Any], permitted: Callable[[], None]) -> None:
        """See `Entries`."""
        attempt = uuid.uuid4().hex[:16]
        files = digest_files(staging)
        names = {file: f"{kind}/{key}/{attempt}/{file}" for file in files}

        def send(file: str) -> None:
            files[file]["mark"] = self.objects.send(staging / file, names[file])

        try:
            self.objects.in_threads(send, names, _THREADS)
            manifest = write_manifest(staging, kind, key, files, info, attempt)
            permitted()
        except BaseException:
            self._withdraw(names.values())
            raise
        # Once the manifest may have been written, also by a request that seems to have failed, the files stay: `gc`
        # deletes them where no manifest names them.
        if self._appear(manifest):
            self._adopt(staging, manifest)
        else:
            self._withdraw(names.values())

    def _withdraw(self, names: Iterable[str]) -> None:
        with contextlib.suppress(UserError):
            self.objects.patient(30.0).remove(names)

    def _appear(self, manifest: Manifest) -> bool:
        """Write the manifest; False where another's stands there."""
        name = f"{manifest.kind}/{manifest.key}/{MANIFEST}"
        while True:
            found = self.objects.look(name)
            if found is not None and not _set_aside(found[0]) and _readable(manifest, found[0]):
                return False
            if self.objects.swap(name, manifest.raw, NEW if found is None else found[1]) is not None:
                return True

    def set_aside(self, kind: Kind, key: str, raw: bytes) -> str | None:
        """See `Entries`."""
        found = self._look(kind, key)
        if found is None or found[0] != raw:
            return None
        place = f"{DAMAGED}/{kind}-{key}-{uuid.uuid4().hex[:8]}/{MANIFEST}"
        self.objects.write(place, raw)
        note = json.dumps({_ASIDE: place, "write": uuid.uuid4().hex}).encode()
        swapped = self.objects.swap(f"{kind}/{key}/{MANIFEST}", note, found[1])
        return None if swapped is None else f"{self.objects.place}/{place}"

    def delete(self, kind: Kind, key: str) -> None:
        """See `Entries`."""
        names = [item.name for item in self.objects.list(f"{kind}/{plain_name(key)}")]
        self.objects.forget(f"{kind}/{key}/{MANIFEST}")
        self.objects.remove(names)
        for folder in (self.local / kind).glob(f"{glob.escape(key)}-*"):
            self._drop(folder)

    def listed(self) -> Iterator[tuple[Kind, str]]:
        """See `Entries`."""
        for kind in KINDS:
            for item in self.objects.list(kind):
                parts = listed_parts(item.name)
                if parts[2:] == [MANIFEST] and self.raw_manifest(kind, parts[1]) is not None:
                    yield kind, parts[1]


def _readable(ours: Manifest, raw: bytes) -> bool:
    try:
        parse_manifest(ours.kind, ours.key, raw, "")
    except Damaged:
        return False
    return True


def _set_aside(raw: bytes) -> bool:
    """Whether a manifest only says that the entry was set aside."""
    try:
        return _ASIDE in json_object(raw)
    except ValueError:
        return False
