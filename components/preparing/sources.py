"""Resolves the spec's sources into files, reads them, and digests everything that determines what comes of them."""

import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from components.common.digests import digest, digest_file
from components.common.errors import DataError
from components.common.phase_data import Required
from components.common.spec import DataSpec
from components.common.spec_base import Source
from components.preparing import remote
from components.preparing.chunks import Chunk
from components.preparing.containers import container, known_suffixes, read_chunks
from components.preparing.laboratory import lab_asked, lab_chunks

PREPARING_VERSION = 3
"""To be raised whenever the same sources would become other examples; it makes stored results unfindable."""
_DATASET_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a source, or a source that is no file.

    Attributes:
        source: The source's name in examples and reports.
        spec: The source as the spec has it.
        held_out: Whether it is held out whole.
        shown: Its path or address.
        kind: `file`, `s3`, `hf` or `lab`.
        item: The object, of kind `s3`.
    """

    source: str
    spec: Source
    held_out: bool
    shown: str
    kind: str
    item: remote.S3Object | None = None

    @property
    def size(self) -> int:
        """Bytes to read, 0 where unknown."""
        if self.kind == "file":
            return Path(self.shown).stat().st_size
        return self.item.size if self.item else 0


def looks_like_dataset_id(path: str) -> bool:
    """Whether a path that does not exist is to be taken for a Hugging Face data set: `org/name`."""
    return bool(_DATASET_ID.fullmatch(path)) and container(path) is None and not Path(path).exists()


def source_name(source: Source) -> str:
    """The name of a source: the given one, or the last part of its path or address."""
    if source.name:
        return source.name
    path = source.path.split("?", 1)[0] if "://" in source.path else source.path
    if path.startswith("lab://"):
        return "lab"
    return path.rstrip("/").rsplit("/", 1)[-1]


def resolve(data: DataSpec) -> list[Part]:
    """Every file of the sources, in the order in which they are read: those that are held out whole first.

    A row of a test set is then the first of its kind, and its copy in the training data is the duplicate.

    Raises:
        DataError: If a source does not exist or holds no data file.
    """
    held = [part for source in data.held_out.sources for part in _parts(source, True)]
    return held + [part for source in data.train for part in _parts(source, False)]


def _parts(source: Source, held_out: bool) -> list[Part]:
    name = source_name(source)
    scheme = urlsplit(source.path).scheme if "://" in source.path else ""
    if scheme == "s3":
        found = [item for item in remote.s3_objects(source.path) if _wanted(item.key.rsplit("/", 1)[-1])]
        if not found:
            raise DataError(f"{source.path}: no data file below it", f"data files end in {known_suffixes()}")
        return [Part(name, source, held_out, f"s3://{item.bucket}/{item.key}", "s3", item) for item in found]
    if scheme in ("hf", "lab"):
        remote.hf_dataset(source.path) if scheme == "hf" else lab_asked(source.path)
        return [Part(name, source, held_out, source.path, scheme)]
    if scheme not in ("", "file"):
        raise DataError(
            f"{source.path}: the scheme `{scheme}` is not known", "known are s3://, hf://, lab://, and paths"
        )
    if not scheme and looks_like_dataset_id(source.path):
        return [Part(name, source, held_out, source.path, "hf")]
    path = Path(source.path.removeprefix("file://"))
    return [Part(name, source, held_out, str(file), "file") for file in _files(path)]


def _wanted(name: str) -> bool:
    return container(name) is not None and not name.startswith(".")


def _files(path: Path) -> list[Path]:
    """The file itself, or the data files below a folder, sorted; hidden files and folders are passed over."""
    if not path.exists():
        raise DataError(
            f"{path}: there is no such file or folder",
            "check the path, under `data` in the spec or on the command line",
        )
    if path.is_dir():
        visible = (
            file for file in path.rglob("*") if not any(part.startswith(".") for part in file.relative_to(path).parts)
        )
        found = sorted(file for file in visible if _wanted(file.name) and file.is_file())
        if not found:
            raise DataError(f"{path}: no data file below it", f"data files end in {known_suffixes()}")
    else:
        found = [path]
    for file in found:
        if not os.access(file, os.R_OK):
            raise DataError(f"{file}: cannot be read: permission denied", "check the rights of the file")
        if container(file.name) is None:
            raise DataError(f"{file}: its suffix tells no known container", f"data files end in {known_suffixes()}")
    return found


def read_part(part: Part, data: DataSpec, seed: int) -> Iterator[Chunk]:
    """The rows of a part in chunks.

    Raises:
        DataError: If it cannot be read.
    """
    if part.kind == "hf":
        yield from remote.hf_chunks(part.shown)
    elif part.kind == "lab":
        yield from lab_chunks(part.shown, seed, data.held_out.fraction)
    elif part.item is not None:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "object"
            remote.s3_download(part.item, target)
            yield from read_chunks(target, part.shown)
    else:
        yield from read_chunks(Path(part.shown), part.shown)


def fingerprint(data: DataSpec, seed: int, required: Required | None = None, beside: str = "") -> str:
    """Digest of everything that determines what `prepare` makes of the same arguments.

    The content counts, not where it lies: a moved file keeps its key, as long as its source keeps its name (which
    stands in the examples). A data set of the hub counts by id, revision, configuration and split; without a
    revision also by its latest commit, unless the hub cannot be reached: then its changes go unseen.

    Args:
        data: The spec's sources, paths absolute or with a scheme.
        seed: The data seed.
        required: What a row must have, of a phase's data.
        beside: The key of the run's data, whose held-out part a phase's data leave out.

    Raises:
        DataError: If a source does not exist or cannot be read.
    """
    parts = [[part.source, part.spec.format, part.spec.weight, part.held_out, _content(part)] for part in resolve(data)]
    options = [data.held_out.fraction, data.max_rejected, data.deduplicate]
    made: dict[str, Any] = {"version": PREPARING_VERSION, "seed": seed, "options": options, "parts": parts}
    if required is not None:
        made |= {"required": required.content, "beside": beside}
    return digest(made)


def _content(part: Part) -> Any:
    if part.item is not None:
        return ["s3", *_packing(part), part.item.etag, part.item.size]
    if part.kind == "lab":
        return ["lab", repr(lab_asked(part.shown)), _lab_digest()]
    if part.kind == "hf":
        name, parameters = remote.hf_dataset(part.shown)
        folder = Path(name)
        inside = [digest_file(file) for file in sorted(folder.rglob("*")) if file.is_file()] if folder.is_dir() else []
        commit = None if folder.is_dir() or "revision" in parameters else remote.hf_commit(name)
        return ["hf", name, sorted(parameters.items()), inside, commit]
    try:
        return ["file", *_packing(part), digest_file(Path(part.shown))]
    except OSError as error:
        raise DataError(f"{part.shown}: cannot be read: {error.strerror}", "check the file and its rights") from error


def _packing(part: Part) -> tuple[str | None, bool]:
    """What the name tells about how the content is read."""
    return container(part.shown), part.shown.lower().endswith(".gz")


def _lab_digest() -> str:
    """Digest of the sources of the lab's generator: its module and those of the lab that it imports, and so on."""
    import components.lab

    folder = Path(components.lab.__path__[0])
    texts: dict[str, str] = {}
    waiting = ["generator"]
    while waiting:
        name = waiting.pop()
        if name not in texts:
            texts[name] = (folder / f"{name}.py").read_text(encoding="utf-8")
            waiting += re.findall(r"^from components\.lab\.(\w+) import", texts[name], re.MULTILINE)
    return digest(sorted(texts.items()))
