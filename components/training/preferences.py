"""Preference pairs as tokens, with their log-probabilities under the reference.

The reference is the model that the phase starts from. Its log-probabilities are worked out once, before training, so
that they are the same after a resume and no second model is kept in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from components.common.errors import DataError
from components.common.examples import Example
from components.common.likelihood import response_nll
from components.common.rendering import Encoded, encode, encode_prompts, refuse_long_prompts
from components.training.tokens import wanted

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_IDS = pa.list_(pa.int32())
_SCHEMA = pa.schema(
    [
        ("prompt_ids", _IDS),
        ("chosen_ids", _IDS),
        ("rejected_ids", _IDS),
        ("ref_chosen_logps", pa.float32()),
        ("ref_rejected_logps", pa.float32()),
    ]
)


@dataclass(frozen=True, slots=True)
class TokenizedPairs:
    """What a preference phase trains on.

    Attributes:
        ids: The example's id, by row number.
        lengths: Tokens of both sides, prompts included, by row number.
        response_tokens: Tokens of both replies, by row number.
        truncated: Pairs in which the end of a reply was cut off.
        filler: The row without a reply, which adds nothing to the loss.
    """

    ids: list[str]
    lengths: list[int]
    response_tokens: list[int]
    truncated: int
    filler: int


@contextmanager
def start_model(job: dict[str, Any]) -> Iterator[PreTrainedModel]:
    """The model as it is before the phase's first step, in evaluation mode, on the device that trains; use it inside.

    Args:
        job: Of the phase, see `fit`.
    """
    import torch

    from components.common.reproducible import set_reproducible
    from components.common.spec import ModelSpec
    from components.training.adapters import trainable

    set_reproducible(job["threads"], job["training_seed"])
    spec = ModelSpec.model_validate(job["model_spec"])
    device = "cuda" if job["gpus_per_worker"] else "cpu"
    model: PreTrainedModel = trainable(Path(job["model"]), spec, job).to(device).eval()
    # The precision of training: what a trained model is compared with must have been rounded alike.
    with torch.autocast(device, torch.bfloat16, enabled=spec.dtype == "bfloat16"):
        yield model
    if device == "cuda":  # the workers share this GPU, and whoever asked may still hold the model
        for parameter in model.parameters():
            parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)
        torch.cuda.empty_cache()


def tokenize_pairs(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    files: Mapping[int, Path],
    ids: set[str],
    max_length: int,
    batch_tokens: int,
    out: Path,
    on_done: Callable[[int], None] | None = None,
) -> TokenizedPairs:
    """Write pairs as tokens, with the log-probabilities that the reference gives both replies (nats, summed).

    Args:
        tokenizer: The model's.
        model: The reference, in evaluation mode.
        files: Parquet files of examples by tier.
        ids: The examples that are wanted.
        max_length: Tokens of a prompt with a reply that are kept.
        batch_tokens: Tokens of a batch of the reference's.
        out: The Arrow stream file to write.
        on_done: Told the number of pairs done.

    Raises:
        DataError: If an example has no rejected reply, a prompt fills the context, or there is no example.
    """
    names: list[str] = []
    lengths: list[int] = []
    response_tokens: list[int] = []
    truncated = 0
    _refuse_single(files, ids)
    with pa.OSFile(str(out), "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as writer:
        for batch in wanted(files, ids):
            sides = _encode_sides(tokenizer, batch, max_length)
            nll = response_nll(model, [side for pair in sides for side in pair], batch_tokens)
            rows = []
            for place, (example, pair) in enumerate(zip(batch, sides, strict=True)):
                names.append(example.id)
                lengths.append(sum(len(side.input_ids) for side in pair))
                response_tokens.append(sum(side.response_tokens for side in pair))
                truncated += any(side.truncated for side in pair)
                rows.append(_row(pair, -float(nll[2 * place]), -float(nll[2 * place + 1])))
            writer.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))
            if on_done is not None:
                on_done(len(names))
        # Two tokens, as a next token is looked at; no reply, so nothing of it is in the loss.
        end = [int(tokenizer.eos_token_id)] * 2
        filler = {"prompt_ids": end, "chosen_ids": [], "rejected_ids": []}
        writer.write_table(
            pa.Table.from_pylist([{**filler, "ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0}], schema=_SCHEMA)
        )
    return TokenizedPairs(names, lengths, response_tokens, truncated, len(names))


def _refuse_single(files: Mapping[int, Path], ids: set[str]) -> None:
    """Raise where an example is no pair, before anything is worked out."""
    if not ids:
        raise DataError("the phase has no preference pair", "give it data that is not empty")
    single = [e.id for batch in wanted(files, ids) for e in batch if e.rejected is None]
    if single:
        raise DataError(
            f"{len(single)} of {len(ids)} example(s) have no rejected reply, e.g. {single[0]}",
            "a dpo phase trains on preference pairs: give it data of the format `hh` or `preference`, or let it make "
            "pairs of its own with `generate`",
        )


def _encode_sides(
    tokenizer: PreTrainedTokenizerBase, batch: Sequence[Example], max_length: int
) -> list[tuple[Encoded, Encoded]]:
    """Both sides of every pair; only the last reply is marked, whatever turns are before it."""
    prompts = encode_prompts(tokenizer, [example.prompt for example in batch])
    sides: list[list[Encoded]] = []
    for replies in ([e.response for e in batch], [e.rejected or "" for e in batch]):
        talks = [[*e.prompt, ("assistant", reply)] for e, reply in zip(batch, replies, strict=True)]
        whole = encode(tokenizer, talks, max_length)
        sides.append([_last_only(item, len(p)) for item, p in zip(whole, prompts, strict=True)])
    for items in sides:
        refuse_long_prompts([(e.id, item) for e, item in zip(batch, items, strict=True)], max_length)
    return list(zip(*sides, strict=True))


def _last_only(item: Encoded, prompt: int) -> Encoded:
    size = len(item.input_ids)
    mask = [False] * min(prompt, size) + [True] * max(0, size - prompt)
    return Encoded(item.input_ids, mask, item.truncated)


def _row(pair: tuple[Encoded, Encoded], chosen_logps: float, rejected_logps: float) -> dict[str, Any]:
    chosen, rejected = pair
    prompt = len(chosen.input_ids) - chosen.response_tokens
    return {
        "prompt_ids": chosen.input_ids[:prompt],
        "chosen_ids": chosen.input_ids[prompt:],
        "rejected_ids": rejected.input_ids[prompt:],
        "ref_chosen_logps": chosen_logps,
        "ref_rejected_logps": rejected_logps,
    }
