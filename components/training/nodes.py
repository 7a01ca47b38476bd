"""The workers of a phase on machines that share no disk with its driver: what they need is brought, and taken back.

A worker that finds the phase's files beside it does nothing here. On another machine it brings them to the same
paths: what lies in S3 or comes from a hub from there, the rest from a small actor on the driver's machine, in pieces.
While it trains it looks there for the wish to stop, and says why it cannot go on; at the end the first worker takes
what the phase leaves to the driver's machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from components.common.errors import UserError
from components.common.models import model_folder
from components.common.store import reading
from components.training.stopping import ASKED, DONE, FAILED, Stopped, told_as

Send = Callable[[list[Path]], None]
_PIECE = 8 << 20
"""Bytes that travel at once; two pieces of each transfer are in memory."""
_AHEAD = 2
_LOOKS = 0.5
"""Seconds between two looks for the wish to stop."""
_WHOLE = ".brought"
"""Lies in a folder of the phase that is a copy, once all is there."""


class Courier:
    """An actor on the driver's machine that reads and writes files there for workers elsewhere.

    Args:
        readable: Files and folders that may be read.
        writable: The folder of the phase, below which files may be written too.
    """

    def __init__(self, readable: list[str], writable: str) -> None:
        self._readable = [Path(place) for place in (*readable, writable)]
        self._writable = Path(writable)

    def files(self, place: str) -> list[tuple[str, int]]:
        """The files of a folder with their sizes in bytes, relative to it; of a file itself under an empty name."""
        path = _inside(place, self._readable)
        if path.is_file():
            return [("", path.stat().st_size)]
        found = (item for item in sorted(path.rglob("*")) if item.is_file())
        return [(item.relative_to(path).as_posix(), item.stat().st_size) for item in found]

    def read(self, place: str, start: int) -> bytes:
        """One piece of a file."""
        with _inside(place, self._readable).open("rb") as file:
            file.seek(start)
            return file.read(_PIECE)

    def write(self, place: str, start: int, data: bytes) -> None:
        """One piece of a file; the pieces come in order."""
        path = _inside(place, [self._writable])
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = _partial(path)
        if start == 0:
            partial.unlink(missing_ok=True)
        with partial.open("ab") as file:
            if file.tell() != start:
                raise RuntimeError(f"{path}: a piece for byte {start} came at byte {file.tell()}")
            file.write(data)

    def note(self, place: str, data: bytes) -> None:
        """A small file, whole."""
        self.write(place, 0, data)
        self.finish(place)

    def finish(self, place: str) -> None:
        """The last piece of a file is written."""
        path = _inside(place, [self._writable])
        _partial(path).replace(path)

    def exists(self, place: str) -> bool:
        """Whether a file is there."""
        return _inside(place, self._readable).exists()

    def clear(self, place: str) -> None:
        """Delete a folder, which may not be there."""
        shutil.rmtree(_inside(place, [self._writable]), ignore_errors=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.coming")


def _inside(place: str, roots: list[Path]) -> Path:
    path = Path(os.path.normpath(place))
    if not any(path.is_relative_to(root) for root in roots):
        raise ValueError(f"{place} is not the phase's")
    return path


def open_courier(job: dict[str, Any]) -> Any:
    """A courier on this machine, which lives as long as this process; for the driver of a phase in a Ray cluster."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    places = [job[name] for name in ("model", "carried", "selection") if job[name]] + _folders(job)
    return ray.remote(Courier).options(num_cpus=0, scheduling_strategy=here).remote(places, job["out"])


def _folders(job: dict[str, Any]) -> list[str]:
    """The base model, where the spec names a folder."""
    path = str(job["model_spec"]["path"])
    return [path] if Path(path).is_absolute() else []


@contextmanager
def at_hand(job: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Send]]:
    """While inside, what the phase needs lies on this machine.

    Args:
        job: See `fit`; `courier` is null where driver and workers are processes of one machine.

    Yields:
        The job with the paths of this machine, and what takes files of the phase to the driver's machine.

    Raises:
        UserError: If the store is a folder that this machine does not see.
    """
    out, courier = Path(job["out"]), job.get("courier")
    if courier is None or (Path(job["data"]["file"]).exists() and not (out / _WHOLE).exists()):
        yield job, lambda places: None
        return
    scratch = Path(job["scratch"])
    with _copied(out) as making:
        try:
            with making():
                located = _located(job, courier)
            with _linked(courier, scratch):
                yield located, lambda places: _send(courier, places)
        except (Stopped, UserError) as error:
            _tell(courier, scratch, error)
            raise


def _tell(courier: Any, scratch: Path, error: Exception) -> None:
    """Tell the driver that a worker is done, or what the user can mend: Ray would start it again, to no avail."""
    import ray

    if isinstance(error, UserError):
        ray.get(courier.note.remote(str(scratch / FAILED), told_as(error).encode()))
    ray.get(courier.note.remote(str(scratch / DONE), b""))


def _located(job: dict[str, Any], courier: Any) -> dict[str, Any]:
    """The job with the folders of models and data as they are on this machine."""
    out, place = Path(job["out"]), job["checkpoints"]
    if place is not None and not str(place["store"]).startswith("s3://"):
        raise UserError(
            f"the store {place['store']} is a folder that the machine of a worker does not see",
            "set `store` to s3://bucket/prefix, or to a folder that all nodes of the Ray cluster share",
        )
    if not (out / _WHOLE).exists():
        shutil.rmtree(out, ignore_errors=True)
        Path(job["scratch"]).mkdir(parents=True)
        _bring(courier, Path(job["data"]["file"]), Path(job["data"]["file"]))
        (out / _WHOLE).touch()
    for folder in _folders(job):
        _bring(courier, Path(folder), Path(folder))
    found = {"model": str(_model(job, courier))}
    if job["carried"]:
        found["carried"] = str(reading(job["sources"]["carried"]))
    if job["selection"]:
        found["selection"] = str(_bring(courier, Path(job["selection"]), out / "selection.parquet"))
    return {**job, **found}


def _model(job: dict[str, Any], courier: Any) -> Path:
    """The model that the phase starts from: out of the store, from where the spec says, or else from the driver."""
    parent = job["sources"]["model"]
    if parent is not None:
        return reading(parent) / "model"
    try:
        return model_folder(job["model_spec"]["path"])
    except UserError:  # a hub that only the driver's machine reaches
        return _bring(courier, Path(job["model"]), Path(job["out"]) / "base")


def _bring(courier: Any, there: Path, here: Path) -> Path:
    """Copy a file or folder of the driver's machine to a path here, unless it is there; returns that path."""
    import ray

    if here.exists():
        return here
    files = ray.get(courier.files.remote(str(there)))
    if not files:
        raise UserError(f"{there} is not on the machine of the phase's driver", "run the same command again")
    here.parent.mkdir(parents=True, exist_ok=True)
    partial = here.with_name(f".{here.name}.{uuid.uuid4().hex[:8]}")
    try:
        for name, size in files:
            _fetch(courier, there / name if name else there, partial / name if name else partial, size)
        partial.rename(here)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # of one that failed
    return here


def _fetch(courier: Any, there: Path, here: Path, size: int) -> None:
    import ray

    here.parent.mkdir(parents=True, exist_ok=True)
    starts = list(range(0, size, _PIECE))
    with here.open("wb") as file:
        under_way = [courier.read.remote(str(there), start) for start in starts[:_AHEAD]]
        for number in range(len(starts)):
            file.write(ray.get(under_way.pop(0)))
            if number + _AHEAD < len(starts):
                under_way.append(courier.read.remote(str(there), starts[number + _AHEAD]))
        if file.tell() != size:
            raise RuntimeError(f"{there} has {file.tell()} bytes by now, and had {size}")


def _send(courier: Any, places: list[Path]) -> None:
    """Copy files and folders to the same paths of the driver's machine, over what is there."""
    import ray

    for place in places:
        if place.is_dir():
            ray.get(courier.clear.remote(str(place)))
        for file in [place] if place.is_file() else sorted(item for item in place.rglob("*") if item.is_file()):
            under_way = [courier.write.remote(str(file), 0, b"")]
            with file.open("rb") as source:
                start = 0
                while data := source.read(_PIECE):
                    under_way.append(courier.write.remote(str(file), start, data))
                    start += len(data)
                    if len(under_way) > _AHEAD:
                        ray.get(under_way.pop(0))
            ray.get(under_way)
            ray.get(courier.finish.remote(str(file)))


@contextmanager
def _linked(courier: Any, scratch: Path) -> Iterator[None]:
    """While inside, the wish to stop is noted here too."""
    import ray

    done = threading.Event()

    def look() -> None:
        while not done.wait(_LOOKS):
            # Without the courier there is no driver either: Ray ends this worker.
            with contextlib.suppress(ray.exceptions.RayError):
                if ray.get(courier.exists.remote(str(scratch / ASKED))):
                    (scratch / ASKED).touch()
                    return

    thread = threading.Thread(target=look, name="nodes", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5.0)


_USED, _MADE = ".copy-of-", ".copying-"
"""What the names of the locks of a copy begin with, which lie beside it: whoever uses it shares the first; the second
is held by the one worker of this machine that makes it."""


@contextmanager
def _copied(out: Path) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """While inside, the copy of a phase's folder on this machine is in use; the last to use it deletes it.

    Yields:
        What holds the other workers of this machine up while the copy is made.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    for other in out.parent.glob(f"{_USED}*"):  # of workers that were killed
        _drop(other.with_name(other.name.removeprefix(_USED)))
    descriptor = _locked(out.with_name(_USED + out.name), fcntl.LOCK_SH)

    @contextmanager
    def making() -> Iterator[None]:
        alone = _locked(out.with_name(_MADE + out.name), fcntl.LOCK_EX)
        try:
            yield
        finally:
            os.close(alone)

    try:
        yield making
    finally:
        os.close(descriptor)
        _drop(out)


def _locked(path: Path, how: int) -> int:
    """The descriptor of a lock file, made where it is not there; again where another has just deleted it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(descriptor, how)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)


def _drop(copy: Path) -> None:
    """Delete a copy that nobody uses."""
    used, made = copy.with_name(_USED + copy.name), copy.with_name(_MADE + copy.name)
    with contextlib.suppress(OSError):
        descriptor = os.open(used, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(copy, ignore_errors=True)
            made.unlink(missing_ok=True)
            used.unlink()
        finally:
            os.close(descriptor)
