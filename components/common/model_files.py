"""What a model's folder may hold beside weights: its JSON is checked here before transformers obeys it.

The folder may be somebody else's. transformers opens whatever an index or a configuration names, and an adapter that
lies beside the weights it puts on them, so folders that ask for such things are refused. Nothing here loads weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.common.errors import UserError
from components.common.names import plain_name
from components.common.objects_json import json_object

ADAPTER = "adapter_config.json"
INDEX = "model.safetensors.index.json"
LONGEST_HEADER = 100_000_000
"""Bytes of a header that safetensors itself still reads."""
_LONGEST_REASON = 300
"""Characters of a library's message: it may hold a value that the file gives."""


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a model's folder.

    Raises:
        UserError: If there is none in it, or one nested too deep to be read.
    """
    try:
        return json_object(file.read_bytes())
    except ValueError as error:
        raise UserError(
            f"the model folder {file.parent} has a damaged {file.name}: {error}",
            "copy the model again, or save it with `save_pretrained`",
        ) from None


def refuse_damaged(folder: Path, names: Iterable[str]) -> None:
    """Refuse a folder where one of these files is there and holds no JSON object.

    Raises:
        UserError: If there is one.
    """
    for name in names:
        if (folder / name).is_file():
            read_object(folder / name)


def index_parts(index: Path) -> set[str]:
    """The files that hold the weights, by their index.

    Raises:
        UserError: If the index is damaged, or names other than safetensors of its own folder: a pickle, or a file
            elsewhere that the model's digest does not cover.
    """
    try:
        parts = {plain_name(name) for name in json_object(index.read_bytes())["weight_map"].values()}
        for name in parts:
            if not name.endswith(".safetensors"):
                raise ValueError(f"{name!r} is no safetensors file")
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"the model's index {index} is damaged: {error!r}",
            "copy the model again, or save it with `save_pretrained`",
        ) from None
    return parts


def refuse_adapter(names: Iterable[str], model: str) -> None:
    """Refuse an adapter beside the weights of a base model.

    transformers would put it on them, of whatever kind it is: some open pickles, in folders that they name.

    Args:
        names: Of the files directly in the model's folder.
        model: What the user calls it.

    Raises:
        UserError: If there is one.
    """
    if ADAPTER in names:
        raise UserError(
            f"the model {model} has an adapter ({ADAPTER}) beside its weights",
            "merge it into the weights, or remove that file; an adapter of your own is trained by `model.adapter`",
        )


def refuse_foreign_parts(folder: Path) -> None:
    """Refuse a base model that brings an adapter, or an index that names other than safetensors of its folder.

    Raises:
        UserError: If it does.
    """
    refuse_adapter({ADAPTER} if (folder / ADAPTER).is_file() else (), str(folder))
    for index in folder.glob("*.safetensors.index.json"):  # a configuration may name any of them
        index_parts(index)


def refuse_named_weights(config: Any) -> None:
    """Refuse a configuration that names a pickle, or a file in another folder, as the weights.

    The loaded one is looked at, not its file: there, `attribute_map` gives attributes other names.

    Args:
        config: transformers' configuration of a model; of one within it (of a text model, say) the same is asked.

    Raises:
        ValueError: If it does.
    """
    for one in (config, *vars(config).values()):
        name = getattr(one, "transformers_weights", None)  # as transformers asks
        if name is not None and not (
            isinstance(name, str) and "/" not in name and name.endswith((".safetensors", ".safetensors.index.json"))
        ):
            raise ValueError(f"its configuration names {name!r} as the weights")


def header_length(begin: bytes, size: int) -> int:
    """Bytes of the JSON header of a safetensors file, which follows the eight bytes (little-endian) that give it.

    Args:
        begin: The file's first eight bytes.
        size: Of the file, bytes.

    Raises:
        ValueError: If the header cannot be as long as they say: nobody should fetch or read so much.
    """
    length = int.from_bytes(begin, "little")
    if length > LONGEST_HEADER:
        raise ValueError("the header is longer than safetensors allows")
    if 8 + length > size:
        raise ValueError("the header is longer than the file")
    return length


@contextmanager
def unusable(message: str, remedy: str) -> Iterator[None]:
    """Say in one message what a library finds wrong with files of a model or an adapter.

    Only for calls of a library that is given a folder and settings of ours: what it raises then, be it a `TypeError`,
    is about the files, whose values libraries use before they look at them.

    Args:
        message: What cannot be done with which folder; the reason follows.
        remedy: What to do about it.

    Raises:
        UserError: If the library raises.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except (
        OSError,  # files that are missing, or are none of that kind
        ValueError,  # values that the library has looked at; JSON and UTF-8 that are none
        StrictDataclassError,
        SafetensorError,
        RuntimeError,  # shapes that torch refuses, and RecursionError
        ImportError,  # packages that a configuration asks for
        TypeError,  # from here on: values that the library just used
        AttributeError,
        LookupError,
        ArithmeticError,
        AssertionError,
    ) as error:
        raise UserError(f"{message}: {_reason(error)}", remedy) from None
    except BaseException as error:
        # tokenizers, written in Rust, raises `Exception` itself, or a panic that no Python class stands for.
        if type(error) is not Exception and type(error).__module__ != "pyo3_runtime":
            raise
        raise UserError(f"{message}: {_reason(error)}", remedy) from None


def _reason(error: BaseException) -> str:
    """A library's message in one line: the first that says something, with the next where that ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [repr(error)]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:_LONGEST_REASON]
