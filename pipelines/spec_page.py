"""The page that lists every key of the spec, made from the models: `python -m pipelines.spec_page > docs/spec.md`."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from components.common.spec import Spec

_HEAD = """# The spec, key by key

Made from the models in `components/common/spec.py` by `make docs`; do not edit. Inputs are relative to the spec's
file, outputs to the working directory. `--set key.path=value` overrides any key; the value is YAML.

| key | allowed | default | meaning |
| --- | --- | --- | --- |"""


def page() -> str:
    """The page, in Markdown."""
    return "\n".join([_HEAD, *_rows(Spec, "")]) + "\n"


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner, many = _inner(field.annotation)
        key = f"{prefix}{name}"
        meaning = " ".join((field.description or (inner.__doc__ if inner else "") or "").split()).replace("|", "\\|")
        yield f"| `{key}` | {_allowed(field)} | {_default(field)} | {meaning} |"
        if inner is not None and inner.__name__ not in ("PhaseSpec", "OnlyControl"):
            yield from _rows(inner, f"{key}[]." if many == "list" else f"{key}.NAME." if many == "dict" else f"{key}.")
        elif inner is not None and inner.__name__ == "PhaseSpec" and name == "phases":
            yield from _rows(inner, f"{key}[].")


def _inner(annotation: Any) -> tuple[type[BaseModel] | None, str]:
    """The model inside an annotation, and whether it stands in a list or a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, ""
    origin = typing.get_origin(annotation)
    for part in typing.get_args(annotation):
        found, many = _inner(part)
        if found is not None:
            return found, {list: "list", dict: "dict"}.get(origin, many)
    return None, ""


def _words(annotation: Any) -> str:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin is typing.Annotated:
        return _words(parts[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(part) for part in parts if part is not type(None))
    if origin is list:
        return f"a list of {_words(parts[0])}"
    if origin is dict:
        return "a mapping"
    if origin is tuple:
        return "two numbers"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "`only: [tiers]`" if annotation.__name__ == "OnlyControl" else "a mapping"
    return {str: "text", int: "a whole number", float: "a number", bool: "true, false"}.get(annotation, str(annotation))


def _allowed(field: FieldInfo) -> str:
    limits = [
        f"{sign} {getattr(item, name)}"
        for item in field.metadata
        for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if getattr(item, name, None) is not None
    ]
    return _words(field.annotation) + (f" ({', '.join(limits)})" if limits else "")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, BaseModel):
        return "see below"
    return "" if value is PydanticUndefined else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    print(page(), end="")
