"""Where bytes lie: a local folder, or an S3 prefix (`objects_s3`), behind one interface.

An object is a file's worth of bytes under a name (`a/b/c`). A *register* is a small object that is only ever changed
by compare and swap: whoever writes names the version that they have read, and one of two writers fails. Leases, the
pointers to checkpoints and the manifests on S3 are registers; everything else is written once.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import stat
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from components.common.errors import Damaged, UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says of a full disk."""
NEW = ""
"""The version of a register that is not there: swapping from it makes it."""


class Missing(Exception):
    """An object that should be there is not, or is shorter than it should be."""


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as a listing shows it.

    Attributes:
        name: Its name.
        size: Bytes.
        age: Seconds since it was written, by the store's own clock.
    """

    name: str
    size: int
    age: float


class Objects(ABC):
    """Objects below one place.

    Attributes:
        place: The folder, absolute, or `s3://bucket/prefix`.
    """

    place: str

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """A small object's bytes, or None where there is none."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a small object whole, over whatever was there."""

    @abstractmethod
    def look(self, name: str) -> tuple[bytes, str] | None:
        """A register's bytes and their version, or None where there is none."""

    @abstractmethod
    def swap(self, name: str, data: bytes, version: str, durable: bool = False) -> str | None:
        """Replace a register's bytes if they still have the version that the caller has read.

        Args:
            name: The register.
            data: The new bytes; no two writes may have the same ones.
            version: What `look` gave, or `NEW`.
            durable: Whether a loss of power must not take it back.

        Returns:
            The new version, or None where another writer came first.
        """

    @abstractmethod
    def forget(self, name: str) -> None:
        """Delete a register."""

    @abstractmethod
    def send(self, file: Path, name: str) -> str:
        """Copy a local file to an object; returns a mark that changes with the content (empty where there is none)."""

    @abstractmethod
    def fetch(self, name: str, file: Path, size: int) -> None:
        """Copy (or link) an object of so many bytes to a local file.

        Raises:
            Missing: If it is not there or shorter.
        """

    @abstractmethod
    def size(self, name: str) -> tuple[int, str] | None:
        """An object's size in bytes and its mark (see `send`), or None where there is none."""

    @abstractmethod
    def remove(self, names: Iterable[str]) -> None:
        """Delete objects; those that are not there are no error."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[Listed]:
        """The objects below a prefix (a name up to a `/`). Slow in a large store: only for `ls` and `gc`."""

    @abstractmethod
    def list_registers(self, prefix: str) -> Iterator[Listed]:
        """The registers below a prefix."""

    def end_uploads(self, older_than: float) -> int:
        """End uploads begun so many seconds ago that nobody goes on with; returns how many."""
        return 0

    def patient(self, seconds: float) -> Objects:
        """The same place, asked for at most so many seconds where it does not answer."""
        return self


def seconds_of(variable: str, usual: float) -> float:
    """The seconds that a variable of the environment sets.

    Raises:
        UserError: If it is no number above 0.
    """
    text = os.environ.get(variable, str(usual))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise UserError(f"{variable} is {text!r}", f"give seconds, e.g. {variable}={usual:g}")
    return seconds


@contextlib.contextmanager
def disk_errors(place: str) -> Iterator[None]:
    """Turns a full disk into an error that says what to mend.

    Raises:
        UserError: If the disk of `place` is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(
            f"the disk of the store {place} is full", "free some space there, or set `store` to another disk"
        ) from error


def make_durable(path: Path) -> None:
    """See that a loss of power does not take a file's content back."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


class LocalObjects(Objects):
    """Objects in a local folder, one file each.

    A register is a folder of numbered files of which the highest counts; the next number is taken by a hard link,
    which exactly one of several writers gets. Nothing is locked, so a writer that is suspended holds nobody up.

    A link below the folder is no object, and what it leads to is none either: it may belong to anybody. The folder
    itself may be reached through a link.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.place = str(self.root)

    def path(self, name: str) -> Path:
        """The file of an object.

        Raises:
            Damaged: If there is a link in its place, or on the way to it.
        """
        if link := self.link(name):
            raise Damaged(
                f"{link} is a link, and the store does not reach beyond its folder", f"remove the link {link}"
            )
        return self.root / name

    def link(self, name: str) -> Path | None:
        """The first link on the way to a name, the last part of it included; None where there is none."""
        path = self.root
        for part in filter(None, name.split("/")):
            path /= part
            if path.is_symlink():
                return path
        return None

    def read(self, name: str) -> bytes | None:
        """See `Objects`."""
        try:
            return self.path(name).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def write(self, name: str, data: bytes) -> None:
        """See `Objects`."""
        with disk_errors(self.place), self._partial(self.path(name)) as partial:
            partial.write_bytes(data)
            partial.replace(self.path(name))

    @contextlib.contextmanager
    def _partial(self, target: Path) -> Iterator[Path]:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno in FULL:
                raise
            raise UserError(
                f"the store {self.place} cannot be written: {error.strerror}", "set `store` to a folder of yours"
            ) from error
        partial = target.with_name(f".{target.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
        try:
            yield partial
        finally:
            partial.unlink(missing_ok=True)

    def _numbers(self, name: str) -> list[int]:
        try:
            with os.scandir(self.path(name)) as items:
                return sorted(int(item.name) for item in items if _is_number(item))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def look(self, name: str) -> tuple[bytes, str] | None:
        """See `Objects`."""
        while numbers := self._numbers(name):
            data = self.read(f"{name}/{numbers[-1]}")
            if data is not None:  # else a later one has taken its place meanwhile
                return data, str(numbers[-1])
        return None

    def swap(self, name: str, data: bytes, version: str, durable: bool = False) -> str | None:
        """See `Objects`."""
        folder, number = self.path(name), int(version or 0) + 1
        if version != NEW and not (folder / version).exists():
            return None
        if version == NEW and self._numbers(name):
            return None
        target = folder / str(number)
        with disk_errors(self.place), self._partial(target) as partial:
            partial.write_bytes(data)
            if durable:
                make_durable(partial)
            try:
                os.link(partial, target)
            except FileExistsError:
                return None
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                raise UserError(
                    f"the file system of the store {self.place} has no hard links", "set `store` to another disk"
                ) from error
        numbers = self._numbers(name)
        if not numbers or numbers[-1] != number:  # we were late: others went on from our version long ago
            target.unlink(missing_ok=True)
            return None
        for old in numbers[:-1]:
            (folder / str(old)).unlink(missing_ok=True)
        return str(number)

    def forget(self, name: str) -> None:
        """See `Objects`."""
        if self.link(name) is None:
            shutil.rmtree(self.root / name, ignore_errors=True)

    def send(self, file: Path, name: str) -> str:
        """See `Objects`."""
        with disk_errors(self.place), self._partial(self.path(name)) as partial:
            shutil.copyfile(file, partial)
            make_durable(partial)
            partial.replace(self.path(name))
        return ""

    def fetch(self, name: str, file: Path, size: int) -> None:
        """See `Objects`."""
        found = self.size(name)
        if found is None or found[0] < size:
            raise Missing(name)
        with disk_errors(str(file.parent)):
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(self.path(name), file)
            except OSError:  # another disk, or one without links
                shutil.copyfile(self.path(name), file)

    def size(self, name: str) -> tuple[int, str] | None:
        """See `Objects`."""
        try:
            status = self.path(name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return (status.st_size, "") if stat.S_ISREG(status.st_mode) else None

    def remove(self, names: Iterable[str]) -> None:
        """See `Objects`."""
        for name in names:
            if self.link(name) is not None:  # nothing of the store's is there
                continue
            path = self.root / name
            path.unlink(missing_ok=True)
            for partial in path.parent.glob(f".{glob.escape(path.name)}.*"):  # left by a writer that was killed
                partial.unlink(missing_ok=True)
            for folder in path.parents:  # an empty folder is no object
                if folder == self.root:
                    break
                try:
                    folder.rmdir()
                except OSError:
                    break

    def list(self, prefix: str) -> Iterator[Listed]:
        """See `Objects`."""
        if self.link(prefix) is not None:  # `os.walk` passes by the links that it meets, but not the one it starts at
            return
        now = time.time()
        for folder, _, files in os.walk(self.root / prefix):
            for file in sorted(files):
                path = Path(folder, file)
                with contextlib.suppress(FileNotFoundError):
                    status = path.lstat()
                    if stat.S_ISLNK(status.st_mode):
                        continue
                    name = path.relative_to(self.root).as_posix()
                    yield Listed(name, status.st_size, max(0.0, now - status.st_mtime))

    def list_registers(self, prefix: str) -> Iterator[Listed]:
        """See `Objects`."""
        youngest: dict[str, Listed] = {}
        for item in self.list(prefix):
            name, _, number = item.name.rpartition("/")
            if number.isdecimal() and (name not in youngest or item.age < youngest[name].age):
                youngest[name] = Listed(name, item.size, item.age)
        yield from youngest.values()


def _is_number(item: os.DirEntry[str]) -> bool:
    """Whether it is one of a register's files: their numbers have one spelling, so that each is found by its number."""
    plain = item.name.isascii() and item.name.isdecimal() and not item.name.startswith("0")
    return plain and item.is_file(follow_symlinks=False)


def open_objects(place: str | Path) -> Objects:
    """The objects at a folder or at `s3://bucket/prefix`.

    Raises:
        UserError: If the place is neither.
    """
    text = str(place)
    if text.startswith("s3://"):
        from components.common.objects_s3 import S3Objects

        return S3Objects(text)
    if "://" in text:
        raise UserError(f"store: {text!r} is neither a folder nor S3", "give a folder, or s3://bucket/prefix")
    return LocalObjects(Path(text))
