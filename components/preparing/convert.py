"""Converts one chunk: rows -> drafts -> columns and digests. Pure: it may run in any process.

What needs to know of other rows (duplicates, held-out membership) is decided afterwards, from the digests.
"""

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from components.common.digests import digest, unit_hash
from components.common.examples import SCHEMA
from components.common.phase_data import NOTHING, Required
from components.preparing.chunks import Broken, Chunk
from components.preparing.drafts import Draft, Malformed, kind
from components.preparing.extras import lacking
from components.preparing.formats import CONVERTERS
from components.preparing.text_keys import exact_turns, normal_turns, normalise, short_digest

NOT_UNICODE = "the text is not valid Unicode (a byte that is not UTF-8, or half of a surrogate pair)"
HASHED, WANTED, REFUSED = 1, 2, 4
"""Bits of an example: held out by hash; by its row's or source's wish; kept in training by its row's wish."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the conversion of one file depends on.

    Attributes:
        source: Name of its source.
        format: The format, recognised already.
        weight: Share of the examples that is kept.
        fraction: Share of the examples that is held out.
        seed: The data seed.
        deduplicate: `none`, `exact` or `normalised`.
        held_out: Whether the source is held out whole.
        required: What a row must have.
    """

    source: str
    format: str
    weight: float
    fraction: float
    seed: int
    deduplicate: str
    held_out: bool
    required: Required = NOTHING


class Rejection(NamedTuple):
    """A row, or a part of one, that did not become an example."""

    line: int
    reason: str
    row: Any


@dataclass(slots=True)
class Converted:
    """The examples of one chunk, those left out by the weight not among them.

    Attributes:
        rows: Rows read.
        expanded: Surplus of rows that became several examples.
        unsampled: Examples left out by the weight.
        rejected: What was malformed.
        batch: The examples in columns (`SCHEMA`).
        contents: 16 bytes for each example: what de-duplication compares.
        prompts: 16 bytes for each example: its normalised prompt.
        groups: For each example, 16 bytes for its group, or None.
        bits: One byte for each example: `HASHED`, `WANTED`, `REFUSED`.
    """

    rows: int = 0
    expanded: int = 0
    unsampled: int = 0
    rejected: list[Rejection] = field(default_factory=list)
    batch: pa.RecordBatch = None
    contents: list[bytes] = field(default_factory=list)
    prompts: list[bytes] = field(default_factory=list)
    groups: list[bytes | None] = field(default_factory=list)
    bits: bytearray = field(default_factory=bytearray)


def convert(chunk: Chunk, settings: Settings) -> Converted:
    """The examples of a chunk in columns, with the digests that decide about them, and everything counted."""
    made = Converted()
    columns = _Columns(settings.source)
    converter = CONVERTERS[settings.format]
    for line, row in chunk.rows():
        made.rows += 1
        try:
            drafts = converter(_object(row))
        except Malformed as reason:
            drafts = [reason]
        made.expanded += len(drafts) - 1
        for draft in drafts:
            try:
                if isinstance(draft, Malformed):
                    raise draft
                _add(draft, settings, made, columns)
            except UnicodeEncodeError:
                made.rejected.append(Rejection(line, NOT_UNICODE, _whole(row)))
            except Malformed as reason:
                made.rejected.append(Rejection(line, str(reason), _whole(row)))
    made.batch = columns.batch()
    return made


def _object(row: Any) -> dict[str, Any]:
    if isinstance(row, dict):
        return row
    raise Malformed(row.reason if isinstance(row, Broken) else f"the row is {kind(row)}, not an object")


def _whole(row: Any) -> Any:
    return row.raw if isinstance(row, Broken) else row


def _add(draft: Draft, settings: Settings, made: Converted, columns: "_Columns") -> None:
    """Sample, digest and store one draft; nothing is stored before everything has been computed."""
    if (reason := lacking(draft, settings.required)) is not None:
        raise Malformed(reason)
    seed = settings.seed
    prompt = normal_turns(draft.messages[:-1])
    key = prompt if draft.group is None else draft.group
    if settings.weight < 1 and unit_hash(key, seed, f"sample:{settings.source}") >= settings.weight:
        made.unsampled += 1
        return
    bits = HASHED if unit_hash(key, seed, "held_out") < settings.fraction else 0
    if settings.held_out or draft.held_out:
        bits |= WANTED
    elif draft.held_out is False:
        bits |= REFUSED
    prompt_digest = short_digest(prompt, b"prompt")
    content = short_digest(_content(draft, prompt, settings.deduplicate), b"content")
    group = None if draft.group is None else short_digest(draft.group, b"group")
    columns.add(draft)
    made.bits.append(bits)
    made.prompts.append(prompt_digest)
    made.contents.append(content)
    made.groups.append(group)


def _content(draft: Draft, prompt: str, deduplicate: str) -> str:
    rejected = draft.rejected
    if deduplicate == "normalised":
        parts = [prompt, normalise(draft.messages[-1][1]), "" if rejected is None else normalise(rejected)]
        return "\x1d".join(parts)
    return exact_turns(draft.messages if rejected is None else (*draft.messages, ("rejected", rejected)))


class _Columns:
    """Columns in the making: a dictionary for each row would cost more than all the rest."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._plain: list[tuple[str | None, ...]] = []
        self._roles: list[str] = []
        self._contents: list[str] = []
        self._offsets = [0]

    def add(self, draft: Draft) -> None:
        """Add one row, its id included (see `Example.content_digest`)."""
        name = digest([draft.messages, draft.rejected, draft.answer, draft.verifier])
        fields = json.dumps(draft.fields, ensure_ascii=False, sort_keys=True) if draft.fields else None
        for value in (draft.group, draft.slice, fields):
            if value is not None:
                value.encode()  # Arrow would fail on half a surrogate pair; the row is to be rejected instead
        self._plain.append(
            (name, self._source, draft.group, draft.rejected, draft.answer, draft.verifier, draft.slice, fields)
        )
        for role, content in draft.messages:
            self._roles.append(role)
            self._contents.append(content)
        self._offsets.append(len(self._roles))

    def batch(self) -> pa.RecordBatch:
        """The rows as one batch with `SCHEMA`."""
        names = ("id", "source", "group", "rejected", "answer", "verifier", "slice", "fields")
        plain = zip(*self._plain, strict=True) if self._plain else ([] for _ in names)
        arrays = {name: pa.array(values, pa.string()) for name, values in zip(names, plain, strict=True)}
        turns = pa.StructArray.from_arrays(
            [pa.array(self._roles, pa.string()), pa.array(self._contents, pa.string())], names=["role", "content"]
        )
        arrays["messages"] = pa.ListArray.from_arrays(pa.array(self._offsets, pa.int32()), turns)
        return pa.RecordBatch.from_arrays([arrays[name] for name in SCHEMA.names], schema=SCHEMA)
