"""What Terraform files say, without Terraform: declarations, references, blocks; and the checks that need no provider.

A check takes a `Configuration` and returns its faults as text. What the files refer to is looked for in their
expressions as python-hcl2 writes them, so a description or a comment names nothing.
"""

from __future__ import annotations

import functools
import graphlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hcl2
from hcl2 import SerializationOptions

READING = SerializationOptions(with_comments=False, explicit_blocks=False)
META = {"count", "for_each", "depends_on", "lifecycle", "dynamic", "provider"}
"""What every resource may have, whoever provides it."""
REFERENCE = re.compile(
    r"(?<![\w.\"-])(?:(?P<simple>var|local)\.(?P<name>\w+)"
    r"|(?P<data>data\.)?(?P<type>aws_\w+)\.(?P<label>\w+)(?P<index>\[(?:[^\[\]]|\[[^\]]*\])*\])?(?:\.(?P<attribute>\w+))?)"
)


@dataclass(frozen=True)
class Block:
    """A resource or a data source."""

    kind: str
    """`resource` or `data`."""
    type: str
    label: str
    body: Mapping[str, Any]

    @property
    def address(self) -> str:
        """As other blocks refer to it."""
        return f"{'data.' if self.kind == 'data' else ''}{self.type}.{self.label}"

    @property
    def many(self) -> bool:
        """Whether there are several, so that a reference says which."""
        return "count" in self.body or "for_each" in self.body


@dataclass(frozen=True)
class Configuration:
    """The files of a folder, taken together."""

    blocks: list[Block]
    variables: dict[str, dict[str, Any]]
    local_values: dict[str, Any]
    outputs: dict[str, dict[str, Any]]
    others: list[Any]
    """The blocks `terraform` and `provider`."""

    def of_type(self, kind: str, name: str) -> list[Block]:
        """The resources (or data sources) of a type."""
        return [block for block in self.blocks if (block.kind, block.type) == (kind, name)]

    def parts(self) -> Iterator[tuple[str, Any]]:
        """Everything that may hold references, with the place that a fault names."""
        yield from ((block.address, block.body) for block in self.blocks)
        yield from ((f"local.{name}", value) for name, value in self.local_values.items())
        yield from ((f"output.{name}", value["value"]) for name, value in self.outputs.items())
        yield from ((f"var.{name}", value.get("validation", [])) for name, value in self.variables.items())
        yield from (("terraform", value) for value in self.others)


def texts_of(folder: Path) -> dict[str, str]:
    """The files of a folder, by name."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.tf"))}


@functools.cache
def _parsed(text: str) -> dict[str, Any]:
    """A file's content; nobody changes it. Kept, as a test changes one file of ten."""
    return hcl2.loads(text, serialization_options=READING)


def read(texts: Mapping[str, str]) -> Configuration:
    """Parse files.

    Raises:
        ValueError: Something is declared twice.
        lark.exceptions.UnexpectedInput: A file is not HCL.
    """
    found = Configuration([], {}, {}, {}, [])
    names: Counter[str] = Counter()
    for text in texts.values():
        content = _parsed(text)
        for kind in ("resource", "data"):
            for item in content.get(kind, []):
                for name, labels in item.items():
                    found.blocks.extend(Block(kind, bare(name), bare(label), body) for label, body in labels.items())
        for kind, place in (("variable", found.variables), ("output", found.outputs)):
            for item in content.get(kind, []):
                names.update(f"{kind} {bare(name)}" for name in item)
                place.update({bare(name): body for name, body in item.items()})
        for item in content.get("locals", []):
            names.update(f"local {name}" for name in item)
            found.local_values.update(item)
        found.others.extend(content.get("terraform", []) + content.get("provider", []))
    names.update(block.address for block in found.blocks)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(f"declared twice: {twice}")
    return found


def bare(text: str) -> str:
    """A string literal without its quotes."""
    return text.strip('"')


def strings(value: Any) -> Iterator[str]:
    """Every string below a value, keys included; not what people read."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key not in ("description", "error_message"):
                yield key
                yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def references(value: Any) -> Iterator[re.Match[str]]:
    """The references in a value's expressions."""
    for text in strings(value):
        if "${" in text:
            yield from REFERENCE.finditer(text)


def _target(match: re.Match[str]) -> str:
    if match["simple"]:
        return f"{match['simple']}.{match['name']}"
    return f"{match['data'] or ''}{match['type']}.{match['label']}"


def unresolved(files: Configuration) -> list[str]:
    """References to nothing, and to one of several (or of one) without (or with) saying which."""
    declared = {f"var.{name}" for name in files.variables} | {f"local.{name}" for name in files.local_values}
    blocks = {block.address: block for block in files.blocks}
    faults = []
    for place, value in files.parts():
        waits_for = set(strings(value.get("depends_on", []))) if isinstance(value, Mapping) else set()
        for match in references(value):
            target = _target(match)
            if target not in declared and target not in blocks:
                faults.append(f"{place} refers to {target}, which is nowhere declared")
                continue
            # depends_on names a resource as a whole.
            whole = target not in blocks or match.string in waits_for
            if not whole and blocks[target].many != bool(match["index"]):
                faults.append(f"{place} refers to {match[0]}; it is {'many' if blocks[target].many else 'one'}")
    return faults


def unused(files: Configuration) -> list[str]:
    """Variables, local values and data sources that nothing refers to."""
    used = {_target(match) for place, value in files.parts() for match in references(value) if place != _target(match)}
    declared = [f"var.{name}" for name in files.variables] + [f"local.{name}" for name in files.local_values]
    declared += [block.address for block in files.blocks if block.kind == "data"]
    return [f"{name} is not used" for name in declared if name not in used]


def circular(files: Configuration) -> list[str]:
    """What waits for itself, by references or `depends_on`."""
    waits = {place: {_target(match) for match in references(value)} - {place} for place, value in files.parts()}
    try:
        graphlib.TopologicalSorter(waits).prepare()
    except graphlib.CycleError as error:
        return [" waits for ".join(reversed(error.args[1]))]
    return []


def misplaced_iteration(files: Configuration) -> list[str]:
    """`each` and `count` in blocks that are not repeated by them."""
    faults = []
    for block in files.blocks:
        text = "\n".join(strings(block.body))
        for word, needed in (("each.", "for_each"), ("count.index", "count")):
            if re.search(rf"(?<![\w.]){re.escape(word)}", text) and needed not in block.body:
                faults.append(f"{block.address} uses {word} without {needed}")
    return faults


def unknown_arguments(files: Configuration, known: Mapping[str, Any]) -> list[str]:
    """Arguments, blocks and attributes that the provider does not know, and required ones that are missing."""
    faults = []
    for block in files.blocks:
        about = known.get(f"{block.kind}.{block.type}")
        if about is None:
            faults.append(f"{block.address}: the type is not in aws_arguments.json")
        else:
            faults += _compared(block.address, block.body, about["arguments"], META)
    for place, value in files.parts():
        for match in references(value):
            about = known.get(f"{'data' if match['data'] else 'resource'}.{match['type']}") if match["type"] else None
            if about and match["attribute"] and match["attribute"] not in about["attributes"]:
                faults.append(f"{place} reads {match[0]}, an attribute that {match['type']} does not have")
    return faults


def _compared(place: str, body: Mapping[str, Any], known: Mapping[str, Any], besides: set[str]) -> list[str]:
    dynamic = {bare(name): [item["content"]] for each in body.get("dynamic", []) for name, item in each.items()}
    given = {name: value for name, value in body.items() if name not in besides} | dynamic
    faults = [f"{place}: {name} is no argument" for name in given if name not in known]
    faults += [f"{place}: {name} is missing" for name, about in known.items() if about is True and name not in given]
    for name, value in given.items():
        if isinstance(about := known.get(name), Mapping):
            for item in _listed(value):
                for inner in _listed(item):
                    faults += _compared(f"{place}.{name}", inner, about, {"dynamic"})
    return faults


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
