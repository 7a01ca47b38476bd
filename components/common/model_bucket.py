"""Models that lie in S3 (`s3://bucket/prefix`), for clusters that reach no hub: listed, digested and fetched.

Only the files that a model needs are looked at, directly below the prefix; nothing that is pickled or code is ever
fetched. What stands for their content is what the server says of it (size and ETag), so nothing is fetched to work
out a key; a model that is uploaded again in other parts counts as another model.
"""

from __future__ import annotations

import fcntl
import fnmatch
import functools
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from components.common.digests import digest
from components.common.errors import UserError
from components.common.model_files import header_length
from components.common.names import plain_name
from components.common.objects import Missing, disk_errors
from components.common.objects_s3 import S3Objects
from components.common.store_s3 import cache_folder

Marks = dict[str, tuple[int, str]]
"""By file name: bytes, and the ETag."""
_FOLDER = "models"
_THREADS = 4


def in_bucket(path: str) -> bool:
    """Whether a model's path is in S3."""
    return path.startswith("s3://")


def listed(path: str, patterns: Sequence[str]) -> Marks:
    """The files of a model, with what changes when their content does; asked once by each process.

    Args:
        path: `s3://bucket/prefix`.
        patterns: Of the names of files that a model needs.

    Raises:
        UserError: If there are none, or one has a name that is no plain file's.
    """
    return _listed(path.rstrip("/"), tuple(patterns), _server())


def _server() -> str:
    """The server that is asked: a bucket's name means another bucket on another one."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


@functools.lru_cache(maxsize=32)
def _listed(path: str, patterns: tuple[str, ...], server: str) -> Marks:
    objects, folder = _place(path)
    names = []
    for item in objects.list(folder):
        name = item.name[len(folder) + 1 :]
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            continue
        try:
            names.append(plain_name(name))
        except ValueError:
            if "/" in name and ".." not in name.split("/"):
                continue  # of a folder below, as of other formats of the same model
            raise UserError(
                f"the model {path} has an object named {name!r}, which is no file's name", "delete or rename it"
            ) from None
    found = objects.in_threads(lambda name: (name, objects.size(f"{folder}/{name}")), sorted(names), _THREADS)
    marks = {name: about for name, about in found if about is not None}
    if "config.json" not in marks:
        raise UserError(
            f"the model {path} has no config.json",
            "give the prefix of a folder saved by `save_pretrained`, with its files directly below it",
        )
    return marks


def _place(path: str) -> tuple[S3Objects, str]:
    """Where the model's folder lies, and its name."""
    place, _, folder = path.rstrip("/").rpartition("/")
    if place == "s3:/" or not folder:
        raise UserError(f"the model {path} names a bucket alone", "give s3://bucket/prefix")
    return S3Objects(place), folder


def fetched(path: str, marks: Marks, headers: bool = False) -> Path:
    """A local folder with the files of a model, fetched when it is first asked for.

    Args:
        path: `s3://bucket/prefix`.
        marks: What `listed` says: a model that was changed since has another folder.
        headers: Fetch safetensors up to the end of their headers only, which name the tensors and their shapes.

    Raises:
        UserError: If the model is changed while it is fetched.
    """
    target = (
        cache_folder() / _FOLDER / digest([_server(), path.rstrip("/"), marks, *(["headers"] if headers else [])])[:24]
    )
    if target.is_dir():
        return target
    with disk_errors(str(target.parent)):
        target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target.with_name(f".{target.name}.lock")):
        if not target.is_dir():
            for left in target.parent.glob(f".{target.name}-*"):  # by one that was killed while it held the lock
                shutil.rmtree(left, ignore_errors=True)
            _fetch(path, marks, target, headers)
    return target


def _fetch(path: str, marks: Marks, target: Path, headers: bool) -> None:
    objects, folder = _place(path)
    partial = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
    try:

        def fetch(name: str) -> None:
            size = marks[name][0]
            if headers and name.endswith(".safetensors"):
                objects.fetch(f"{folder}/{name}", partial / name, min(size, 8))
                try:
                    size = 8 + header_length((partial / name).read_bytes(), size)
                except ValueError as error:
                    raise UserError(
                        f"{path}/{name} is not a safetensors file: {error}", "upload the model again"
                    ) from None
            objects.fetch(f"{folder}/{name}", partial / name, size)
            if objects.size(f"{folder}/{name}") != marks[name]:
                raise Missing(name)

        try:
            objects.in_threads(fetch, marks, _THREADS)
        except Missing as error:
            raise UserError(
                f"the model {path} is changed while it is read ({error})", "run the same command again"
            ) from None
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Of the processes of this machine that want the same model one fetches it, and the others wait."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
