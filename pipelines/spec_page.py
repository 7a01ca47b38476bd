"""The page that lists every key of the spec, made from the models: `python -m pipelines.spec_page > docs/spec.md`."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from components.common.spec import Spec
from components.common.spec_phases import SETTINGS, Divergence, PhaseSpec, Selection

_FORMS = {Selection: "`last`, `best(loss)`, `best(accuracy)`", Divergence: "`fail`, `rollback(FACTOR)`"}
"""Texts of a form that a pattern gives."""
_HEAD = """# The spec, key by key

Made from the models in `components/common/spec.py` and `spec_phases.py` by `make docs`; do not edit. Inputs are
relative to the spec's file, outputs to the working directory. `--set key.path=value` overrides any key; the value is
YAML.

| key | allowed | default | meaning |
| --- | --- | --- | --- |"""


def page() -> str:
    """The page, in Markdown."""
    return "\n".join([_HEAD, *rows_of(Spec, "")]) + "\n"


def rows_of(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """The rows of a model's keys, in Markdown; the keys begin with the prefix."""
    for name, field in model.model_fields.items():
        inner, many = _inner(field.annotation)
        key = f"{prefix}{name}"
        if model is PhaseSpec and name in _HYPERPARAMETERS:
            yield _override(key, name, field)
            continue
        meaning = " ".join((field.description or (inner.__doc__ if inner else "") or "").split()).replace("|", "\\|")
        if inner is PhaseSpec and name == "then":
            meaning += " The keys are those of `curriculum.phases[]`."
        yield f"| `{key}` | {_allowed(field)} | {_default(field)} | {meaning} |"
        if inner is not None and inner.__name__ != "OnlyControl" and not (inner is PhaseSpec and name == "then"):
            yield from rows_of(
                inner, f"{key}[]." if many == "list" else f"{key}.NAME." if many == "dict" else f"{key}."
            )


_HYPERPARAMETERS = {name for settings in SETTINGS.values() for name in settings.model_fields}


def _override(key: str, name: str, field: FieldInfo) -> str:
    """The row of a hyperparameter that a phase sets itself."""
    methods = [method for method, settings in SETTINGS.items() if name in settings.model_fields]
    where = "<method>" if len(methods) == len(SETTINGS) else methods[0] if len(methods) == 1 else "<method>"
    only = "" if len(methods) == len(SETTINGS) else f", of {' and '.join(methods)} only"
    return f"| `{key}` | {_allowed(field)} | the method's | As `curriculum.{where}.{name}`{only}. |"


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
    if annotation in _FORMS:
        return _FORMS[annotation]
    if origin is typing.Annotated:
        return _words(parts[0]) + _limits([m for part in parts[1:] for m in getattr(part, "metadata", [part])])
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


def _limits(metadata: Sequence[object]) -> str:
    """The bounds among an annotation's metadata, in words."""
    limits = [
        f"{sign} {getattr(item, name)}"
        for item in metadata
        for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤"))
        if getattr(item, name, None) is not None
    ]
    return f" ({', '.join(limits)})" if limits else ""


def _allowed(field: FieldInfo) -> str:
    patterns = {getattr(item, "pattern", None) for item in field.metadata} - {None}
    for form, words in _FORMS.items():
        if patterns & {getattr(item, "pattern", None) for item in typing.get_args(form)[1].metadata}:
            return words
    return _words(field.annotation) + _limits(field.metadata)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if isinstance(value, BaseModel):
        return "see below"
    return "" if value is PydanticUndefined else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    print(page(), end="")
