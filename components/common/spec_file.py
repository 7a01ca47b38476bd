"""Reading a spec: YAML, `--set`, absolute paths, and errors that name file, key, value and what is allowed."""

from __future__ import annotations

import difflib
import re
import reprlib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from components.common.digests import digest
from components.common.errors import SpecError
from components.common.spec import Spec
from components.common.spec_base import Source
from components.common.spec_phases import PhaseSpec

_SCHEME = re.compile(r"^[a-z][a-z0-9+]*://")
_DATASET_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_DATA_FILES = (".json", ".jsonl", ".csv", ".parquet", ".gz")
_HUB_ID = re.compile(r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?$")
# A value may be huge (aliases multiply), so an error shows only its beginning.
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxstring, _SHORT.maxother = 2, 6, 120, 120


class _Loader(yaml.SafeLoader):
    """Plain YAML values only, and no key twice in one mapping: the first would be lost without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"the key {key.value!r} appears twice in one mapping"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return node


def _parse(text: str) -> Any:
    """Values of a YAML text.

    Raises:
        yaml.YAMLError: If it is not YAML, or a value is none (a 13th month), or it nests too deeply.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader
    except (ValueError, RecursionError) as error:
        raise yaml.YAMLError(str(error)) from None


def load_spec(path: Path, overrides: Sequence[str] = ()) -> Spec:
    """Read, override and check a spec.

    Args:
        path: The YAML file. Relative inputs in it are relative to its folder.
        overrides: `key.path=value`; the value is YAML.

    Raises:
        SpecError: If the file cannot be read or is not a valid spec.
    """
    values = read_yaml(path)
    for item in overrides:
        override(values, item)
    return spec_from(values, f"the spec {path}", path.parent)


def spec_from(values: dict[str, Any], what: str, folder: Path) -> Spec:
    """The spec that values describe.

    Args:
        values: As read from YAML.
        what: What an error calls them.
        folder: Relative inputs are relative to it.

    Raises:
        SpecError: If they are not a valid spec.
    """
    try:
        spec = Spec.model_validate(values)
    except ValidationError as error:
        raise SpecError(
            check(what, values, error), "`phasetune validate SPEC` checks a spec; docs/spec.md lists every key"
        ) from None
    return _absolute(spec, folder.resolve())


def spec_digest(spec: Spec) -> str:
    """Digest of the resolved spec."""
    return digest(spec.model_dump(mode="json"))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        SpecError: If there is none.
    """
    try:
        values = _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [item.name for item in path.parent.glob("*.y*ml")], n=1)
        hint = f"did you mean {path.parent / near[0]}?" if near else "give the path of a YAML file"
        raise SpecError(f"there is no spec at {path}", hint) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"the spec {path} cannot be read: {error}", "give the path of a YAML file") from None
    except yaml.YAMLError as error:
        raise SpecError(f"the spec {path} is not YAML: {' '.join(str(error).split())}", "mend the line named") from None
    if not isinstance(values, dict):
        raise SpecError(f"the spec {path} is not a mapping of keys", "start from pipelines/specs/quickstart.yaml")
    return values


_WRITTEN = object()


def override(values: dict[str, Any], item: str, value: Any = _WRITTEN) -> None:
    """Put a value at a key's path, as `--set` does.

    Args:
        values: A spec's values, which are changed.
        item: `key.path=value` with the value in YAML, or the path alone.
        value: The value, where the item is the path alone.

    Raises:
        SpecError: If the item is neither, or there is no such place.
    """
    key = item
    if value is _WRITTEN:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise SpecError(f"--set {item!r} is not KEY.PATH=VALUE", "e.g. --set curriculum.order=descending")
        try:
            value = _parse(text)
        except yaml.YAMLError:
            raise SpecError(f"--set {item!r}: the value is not YAML", "quote it") from None
    *parents, last = key.split(".")
    place: Any = values
    for done, name in enumerate(parents):
        child = _child(place, name, item)
        if child is None:
            child = {}
            _put(place, name, child)
        if not isinstance(child, dict | list):
            raise SpecError(
                f"--set {item!r}: {'.'.join(parents[: done + 1])} is {child!r}, not a mapping",
                "set that key itself, or correct the path",
            )
        place = child
    _child(place, last, item)
    _put(place, last, value)


def _put(place: Any, name: str, value: Any) -> None:
    place[int(name) if isinstance(place, list) else name] = value


def _child(place: Any, name: str, item: str) -> Any:
    if isinstance(place, list):
        if not re.fullmatch("[0-9]+", name) or int(name) >= len(place):
            raise SpecError(
                f"--set {item!r}: there is no item {name!r} in a list of {len(place)}", "items count from 0"
            )
        return place[int(name)]
    return place.get(name)


def check(what: str, values: dict[str, Any], error: ValidationError, model: type[BaseModel] = Spec) -> str:
    """The errors of a spec's values in words: key path, value, what is allowed, and the nearest key."""
    lines: dict[str, list[str]] = {}
    every = _every_key(model)
    for item in error.errors():
        keys = [part for part in item["loc"] if _is_key(part, values, item["loc"], every)]
        # A mapping or list given to a choice of words and mappings was meant as the latter; those errors say more.
        elsewhere = len(keys) < len(item["loc"])
        if item["type"] == "literal_error" and isinstance(item["input"], dict | list) and elsewhere:
            continue
        # In turn, a number given to a choice of numbers and lists was meant as a number.
        if item["type"] == "list_type" and isinstance(item["input"], int | float) and elsewhere:
            continue
        where = ".".join(str(part) for part in keys) or "(the whole spec)"
        lines.setdefault(where, []).append(_one_error(keys, item, model))
    problems = [f"  {where}: {'; or '.join(dict.fromkeys(what))}" for where, what in lines.items()]
    return f"{what} has {len(problems)} error{'s' if len(problems) > 1 else ''}:\n" + "\n".join(problems)


def _is_key(part: int | str, values: Any, loc: tuple[int | str, ...], every: set[str]) -> bool:
    """Whether a part of pydantic's location is a key of the spec, rather than the name of a union's branch."""
    here = values
    for step in loc:
        inside = (isinstance(here, dict) and step in here) or (
            isinstance(here, list) and isinstance(step, int) and step < len(here)
        )
        if inside:
            here = here[step]
        if step is part:
            return inside or part in every
    return False


def _one_error(keys: list[int | str], item: Any, model: type[BaseModel]) -> str:
    kind, given, context = item["type"], item.get("input"), item.get("ctx", {})
    if kind == "extra_forbidden":
        allowed = allowed_keys(keys[:-1], model)
        near = difflib.get_close_matches(str(keys[-1]), allowed, n=1) if keys else []
        hint = f"did you mean `{near[0]}`? " if near else ""
        return f"unknown key; {hint}allowed: {', '.join(allowed)}"
    if kind == "missing":
        absent_item = isinstance(item["loc"][-1], int)
        return f"{_SHORT.repr(given)} has too few values" if absent_item else "required, but absent"
    if kind == "model_type":
        return (
            f"{_SHORT.repr(given)} is not allowed: allowed: a mapping of {', '.join(allowed_keys(item['loc'], model))}"
        )
    if kind in ("value_error", "assertion_error"):
        return str(context.get("error", item["msg"]))
    message = item["msg"][0].lower() + item["msg"][1:]
    if kind == "literal_error":
        words = re.findall(r"'([^']*)'", context["expected"])
        near = difflib.get_close_matches(given, words, n=1) if isinstance(given, str) else []
        message = f"allowed: {context['expected']}" + (f"; did you mean {near[0]!r}?" if near else "")
    return f"{_SHORT.repr(given)} is not allowed: {message}"


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation can hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.UnionType) or typing.get_args(annotation):
        return [model for part in typing.get_args(annotation) for model in _models_in(part)]
    return []


def allowed_keys(keys: Sequence[int | str], model: type[BaseModel] = Spec) -> list[str]:
    """The keys allowed at a place of the spec; none where there is no mapping of known keys."""
    models: list[type[BaseModel]] = [model]
    for key in keys:
        if isinstance(key, int):
            continue
        fields = [model.model_fields[key] for model in models if key in model.model_fields]
        if fields:  # else it is a name of the user's own, as of a secret, or of a union's branch
            models = [model for field in fields for model in _models_in(field.annotation)]
    return sorted({name for model in models for name in model.model_fields})


def _every_key(model: type[BaseModel]) -> set[str]:
    found: set[str] = set()
    waiting: list[type[BaseModel]] = [model]
    while waiting:
        model = waiting.pop()
        found |= set(model.model_fields)
        waiting += [m for field in model.model_fields.values() for m in _models_in(field.annotation)]
    return found


def resolve_model(path: str, folder: Path) -> str:
    """A model's path as the steps get it: `lab`, a URI and a hub id stay, a folder becomes absolute.

    Raises:
        SpecError: If it looks like a folder and is none.
    """
    if path == "lab" or _SCHEME.match(path):
        return path
    place = _place(path, folder)
    if place.exists():
        return str(place)
    if _HUB_ID.match(path) and not path.startswith("."):
        return path
    raise SpecError(f"model.path: there is no folder {place}", "give a folder, a Hugging Face id or `lab`")


def _place(path: str, folder: Path) -> Path:
    """Where a path written in the spec lies."""
    try:
        return (folder / Path(path).expanduser()).resolve()
    except (RuntimeError, ValueError, OSError) as error:  # an unknown ~user, a zero byte, a loop of links
        raise SpecError(f"{path!r} is not a path: {error}", "give a file or a folder") from None


def source_path(path: str, folder: Path) -> str:
    """A source's path as the steps get it: URIs and dataset ids stay, files become absolute."""
    if _SCHEME.match(path):
        return path
    place = _place(path, folder)
    # A bare `org/name` that is no local file is a Hugging Face dataset id; one that ends like a data file is a file.
    is_id = _DATASET_ID.fullmatch(path) and not path.lower().endswith(_DATA_FILES) and not place.exists()
    return path if is_id else str(place)


def _absolute(spec: Spec, folder: Path) -> Spec:
    data, curriculum = spec.data, spec.curriculum

    def placed(sources: Sequence[Source]) -> list[Source]:
        return [source.model_copy(update={"path": source_path(source.path, folder)}) for source in sources]

    def with_data(phases: Sequence[PhaseSpec]) -> list[PhaseSpec]:
        return [phase.model_copy(update={"data": placed(phase.data)}) for phase in phases]

    scorer = None if spec.scoring.model is None else resolve_model(spec.scoring.model, folder)
    store = spec.store if _SCHEME.match(spec.store) else str(_place(spec.store, Path.cwd()))
    held_out = data.held_out.model_copy(update={"sources": placed(data.held_out.sources)})
    phases = None if curriculum.phases is None else with_data(curriculum.phases)
    return spec.model_copy(
        update={
            "model": spec.model.model_copy(update={"path": resolve_model(spec.model.path, folder)}),
            "scoring": spec.scoring.model_copy(update={"model": scorer}),
            "data": data.model_copy(update={"train": placed(data.train), "held_out": held_out}),
            "curriculum": curriculum.model_copy(update={"phases": phases, "then": with_data(curriculum.then)}),
            "store": store,
        }
    )
