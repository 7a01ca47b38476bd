"""The store: one finished result per key, and the only cache there is.

An entry is the folder `<kind>/<key>/` with a `manifest.json` that is written last and lists every file with its
size and SHA-256. Without a manifest the entry does not exist. A result is made in a staging folder on the same
file system and moved into place whole, so a killed process leaves nothing that could be taken for a result.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from components.common.digests import digest_file
from components.common.errors import UserError

Kind = Literal["prepared", "scores", "splits", "phases", "evaluations"]
MANIFEST = "manifest.json"
_RENAMES = 100
"""Attempts to put a result into its place while others do the same."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished result.

    Attributes:
        kind: What it is.
        key: The digest of everything that determines it.
        path: Its folder.
        info: What the maker recorded in the manifest (counts, metrics, seconds).
    """

    kind: Kind
    key: str
    path: Path
    info: dict[str, Any]

    @property
    def uri(self) -> str:
        """Where it is, for another process."""
        return str(self.path)


class Store:
    """A store in a local folder.

    Args:
        root: The folder; made when the first result is.

    Raises:
        UserError: If the location is not one that this version can use.
    """

    def __init__(self, root: str | Path) -> None:
        if "://" in str(root):
            raise UserError(f"store: {root!r} is not a folder", "give a local folder, e.g. `store: runs/store`")
        self.root = Path(root).absolute()

    @property
    def memory(self) -> Path:
        """Where the digests of the users' files are remembered; deleting it costs only time."""
        return self.root / ".digests"

    def path(self, kind: Kind, key: str) -> Path:
        """The folder of an entry, whether it exists or not."""
        return self.root / kind / key

    def find(self, kind: Kind, key: str) -> Entry | None:
        """The finished result under a key, or None."""
        folder = self.path(kind, key)
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            info, _ = dict(manifest["info"]), manifest["files"]
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError) as error:  # not text, not JSON, or not a manifest
            raise UserError(
                f"the manifest of {folder} is damaged: {error!r}", f"delete the folder {folder}; it is made again"
            ) from error
        return Entry(kind, key, folder, info)

    @contextmanager
    def make(self, kind: Kind, key: str, info: dict[str, Any]) -> Iterator[Path]:
        """Make a result: yields an empty folder, and publishes it under the key when the block ends cleanly.

        `info` is read when the block ends, so the block may fill it. If another process published the same key
        meanwhile, its result stays and ours is dropped: equal keys mean equal results.

        Raises:
            UserError: If the disk is full.
        """
        staging = self.root / ".staging" / f"{kind}-{key[:12]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            staging.mkdir(parents=True)
        except OSError as error:
            raise UserError(
                f"the store {self.root} cannot be written: {error.strerror}", "set `store` to a folder of yours"
            ) from error
        try:
            yield staging
            self._publish(staging, kind, key, info)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"the disk of the store {self.root} is full", "free some space there, or set `store` to another disk"
            ) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _publish(self, staging: Path, kind: Kind, key: str, info: dict[str, Any]) -> None:
        files = {
            str(path.relative_to(staging)): {"size": path.stat().st_size, "sha256": digest_file(path)}
            for path in sorted(staging.rglob("*"))
            if path.is_file()
        }
        manifest = {"kind": kind, "key": key, "created": time.time(), "files": files, "info": info}
        with (staging / MANIFEST).open("w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        target = self.path(kind, key)
        target.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(_RENAMES):
            try:
                staging.rename(target)
                return
            except OSError as error:
                if self.find(kind, key) is not None:
                    return
                # Something was in the way; by now another maker may have set it aside, which is no reason to stop.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
            # A folder without a manifest is no result: it is set aside, never mixed with ours. Another maker may be
            # doing the same at this moment, and even have put its result there: then that goes back, and stays.
            aside = self.root / ".staging" / f"broken-{os.getpid()}-{uuid.uuid4().hex[:8]}"
            with contextlib.suppress(OSError):
                target.rename(aside)
                if (aside / MANIFEST).exists():
                    aside.rename(target)
        raise OSError(f"{target} cannot be replaced")

    def files(self, entry: Entry) -> dict[str, dict[str, Any]]:
        """The entry's files with `size` (bytes) and `sha256`, from its manifest."""
        manifest = json.loads((entry.path / MANIFEST).read_text(encoding="utf-8"))
        files: dict[str, dict[str, Any]] = manifest["files"]
        return files

    def clear_staging(self, older_than: float = 86400.0) -> int:
        """Delete staging folders older than so many seconds that no living process of this machine owns.

        Returns:
            How many.
        """
        import psutil

        count = 0
        for folder in sorted((self.root / ".staging").glob("*")):
            owner = folder.name.rpartition("-")[0].rpartition("-")[2]
            owned = owner.isdecimal() and psutil.pid_exists(int(owner)) and not folder.name.startswith("broken-")
            if not owned and time.time() - folder.stat().st_mtime > older_than:
                shutil.rmtree(folder, ignore_errors=True)
                count += 1
        return count
