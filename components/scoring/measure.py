"""Measure the difficulty of examples. Heavy: runs behind the launcher.

| method | difficulty | source |
| --- | --- | --- |
| `length` | tokens of the response, its end token included | |
| `loss` | mean negative log-likelihood of the response given the prompt, nats per token | |
| `ifd` | mean loss(A|Q) / mean loss(A) | Cherry LLM, arXiv 2308.12032, equation 3 |
| `column` | a number that the data carries | |

The response is the last reply. For `ifd`, loss(A) is taken with only the header that opens a reply before it (the
source takes the bare text): a chat model has never seen a reply begin otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.common.errors import DataError
from components.common.examples import SCORED_SCHEMA, Example, read_examples
from components.common.models import context_length, load_tokenizer, model_folder, quiet
from components.common.rendering import Encoded, encode, refuse_long_prompts

SCORER = "phasetune.scorer"
"""The Parquet metadata that says which scorer, model and settings made a file of scores."""
_BATCH = 4096


def last_reply(item: Encoded) -> Encoded:
    """The conversation with only its last reply marked: of one that was cut, the last that is still there."""
    mask = item.response_mask
    end = len(mask) - mask[::-1].index(True)
    start = end - mask[:end][::-1].index(False) if False in mask[:end] else 0
    return Encoded(item.input_ids, [start <= place < end for place in range(len(mask))], item.truncated)


def alone(item: Encoded, header: list[int]) -> Encoded:
    """The last reply with only the header before it."""
    reply = [token for token, kept in zip(item.input_ids, item.response_mask, strict=True) if kept]
    return Encoded([*header, *reply], [False] * len(header) + [True] * len(reply))


def difficulty_of(method: str, given: np.ndarray, bare: np.ndarray | None, tokens: np.ndarray) -> np.ndarray:
    """Difficulty from likelihoods: `loss` = nats(A|Q) / tokens, `ifd` = nats(A|Q) / nats(A) of the same tokens.

    Args:
        method: `loss` or `ifd`.
        given: Nats of each response given its prompt, shape (examples,).
        bare: Nats of each response without its prompt, for `ifd`.
        tokens: Tokens of each response.

    Returns:
        Shape (examples,); not finite where it is undefined.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        result: np.ndarray = given / (tokens if bare is None or method == "loss" else bare)
    return result


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Score files of examples.

    Args:
        job: JSON values: `files` ({"scores": examples file, "held_out_scores": ...}; results are named by the keys),
            `out` (folder), `scoring` (a ScoringSpec's values), `base` and `scorer` (models), `max_length`,
            `model_spec`, `gpus`, `threads`, `for_training` (whether the base model will be trained on the examples, so
            that its context binds also a method that asks no model), `about` (what the files say of their scorer).

    Returns:
        `examples`, `truncated`, and `overhead_seconds` of the time taken.

    Raises:
        DataError: If a prompt fills the context, a column is absent, or a difficulty is not a number.
    """
    quiet()
    folder = model_folder(job["base"])
    limit = min(job["max_length"], context_length(folder))
    tokenizer = load_tokenizer(folder)
    counts = {"examples": 0, "truncated": 0}
    overhead = 0.0
    out = Path(job["out"])
    schema = SCORED_SCHEMA.with_metadata({SCORER: json.dumps(job["about"], sort_keys=True)})
    asks = job["scoring"]["method"] in ("loss", "ifd")
    binding = asks or job["for_training"]
    if asks:
        from components.scoring.likelihoods import score_with_model

        values, overhead = score_with_model(job, limit)
    for name, path in job["files"].items():
        with pq.ParquetWriter(out / f"{name}.parquet", schema, compression="zstd") as writer:
            for batch in _batches(Path(path)):
                encoded = encode(tokenizer, [example.messages for example in batch], limit if binding else None)
                if binding:
                    refuse_long_prompts([(e.id, item) for e, item in zip(batch, encoded, strict=True)], limit)
                if asks:
                    difficulty = np.array([values[example.id] for example in batch])
                else:
                    difficulty = np.array(_given(job["scoring"], batch, encoded))
                _refuse_nonsense(batch, difficulty, job["scoring"]["method"])
                writer.write_table(_table(batch, encoded, difficulty).replace_schema_metadata(schema.metadata))
                counts["examples"] += len(batch)
                counts["truncated"] += sum(item.truncated > 0 for item in encoded)
    return {**counts, "overhead_seconds": overhead}


def _batches(path: Path) -> Iterator[list[Example]]:
    examples = read_examples(path)
    while batch := list(islice(examples, _BATCH)):
        yield batch


def _given(scoring: dict[str, Any], batch: list[Example], encoded: list[Encoded]) -> list[float]:
    if scoring["method"] == "length":
        return [float(sum(last_reply(item).response_mask)) for item in encoded]
    return [_column(example, scoring["column"]) for example in batch]


def _column(example: Example, column: str) -> float:
    value = example.fields.get(column)
    try:
        return float(value)  # type: ignore[arg-type]  # None raises the error that is caught
    except (TypeError, ValueError):
        known = ", ".join(sorted(example.fields)) or "none"
        raise DataError(
            f"scoring.column: example {example.id} of {example.source} has no number in `{column}` (it has {value!r})",
            f"name one of the data's columns: {known}",
        ) from None


def _refuse_nonsense(batch: list[Example], difficulty: np.ndarray, method: str) -> None:
    bad = np.flatnonzero(~np.isfinite(difficulty))
    if len(bad):
        raise DataError(
            f"`{method}` gives {difficulty[bad[0]]} for {len(bad)} example(s), e.g. {batch[bad[0]].id}",
            "remove the example, or score with another method",
        )


def _table(batch: list[Example], encoded: list[Encoded], difficulty: np.ndarray) -> pa.Table:
    rows = [
        {
            **example.to_row(),
            "difficulty": float(value),
            "tokens": len(item.input_ids) + item.truncated,
            "response_tokens": item.response_tokens,
        }
        for example, item, value in zip(batch, encoded, difficulty, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=SCORED_SCHEMA)
