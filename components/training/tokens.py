"""A phase's examples as tokens, once each, in a memory-mapped Arrow file that every worker reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from components.common.errors import DataError
from components.common.examples import Example, read_examples
from components.common.rendering import encode, refuse_long_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])
_BATCH = 2048


@dataclass(frozen=True, slots=True)
class Tokenized:
    """What a phase trains on.

    Attributes:
        rows: Row numbers of the file in the promised order, epochs laid end to end.
        filler: The row without a label (see `batches`).
        tokens: Tokens seen in training, repeats counted.
        response_tokens: Of these, the ones that the loss is taken on.
        truncated: Examples whose end was cut off.
        examples: Distinct examples.
        ids: The example's id, by row number.
        lengths: Its tokens, by row number; the filler's last.
    """

    rows: list[int]
    filler: int
    tokens: int
    response_tokens: int
    truncated: int
    examples: int
    ids: list[str]
    lengths: list[int]


def wanted(files: Mapping[int, Path], ids: set[str]) -> Iterator[list[Example]]:
    """The examples of these ids, in batches, in the order of the files."""
    examples = (example for tier in sorted(files) for example in read_examples(files[tier]) if example.id in ids)
    while batch := list(islice(examples, _BATCH)):
        yield batch


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    files: Mapping[int, Path],
    sequence: Sequence[str],
    max_length: int,
    out: Path,
) -> Tokenized:
    """Write the examples of a sequence as tokens.

    Args:
        tokenizer: The model's.
        files: Parquet files of examples by tier.
        sequence: Example ids in the promised order.
        max_length: Tokens of an example that are kept.
        out: The Arrow stream file to write.

    Raises:
        DataError: If a prompt fills the context, or the sequence is empty.
    """
    if not sequence:
        raise DataError("the phase has no example", "give it tiers that are not empty")
    times = Counter(sequence)
    place: dict[str, int] = {}
    lengths: list[int] = []
    tokens = response_tokens = truncated = 0
    with pa.OSFile(str(out), "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as writer:
        for batch in wanted(files, set(times)):
            encoded = encode(tokenizer, [example.messages for example in batch], max_length)
            refuse_long_prompts([(e.id, item) for e, item in zip(batch, encoded, strict=True)], max_length)
            for example, item in zip(batch, encoded, strict=True):
                place[example.id] = len(place)
                lengths.append(len(item.input_ids))
                tokens += times[example.id] * len(item.input_ids)
                response_tokens += times[example.id] * item.response_tokens
                truncated += item.truncated > 0
            rows = [{"input_ids": item.input_ids, "labels": item.labels} for item in encoded]
            writer.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))
        filler = {"input_ids": [int(tokenizer.eos_token_id)], "labels": [-100]}
        writer.write_table(pa.Table.from_pylist([filler], schema=_SCHEMA))
    rows_in_order = [place[item] for item in sequence]
    return Tokenized(
        rows_in_order, len(place), tokens, response_tokens, truncated, len(place), list(place), [*lengths, 1]
    )
