"""Greedy generation in batches of like length, through the same rendering as training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from components.common.errors import DataError
from components.common.likelihood import batches_by_length
from components.common.rendering import Messages, encode_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages],
    max_new_tokens: int,
    batch_tokens: int,
    context: int,
    on_done: Callable[[int], None] | None = None,
) -> list[str]:
    """The model's greedy replies.

    Args:
        model: In evaluation mode.
        tokenizer: Its tokenizer.
        prompts: Conversations that wait for a reply.
        max_new_tokens: Longest reply, tokens; less where the context leaves less.
        batch_tokens: Tokens of a batch, replies included.
        context: Tokens that the model's positions allow.
        on_done: Told the number of prompts done.

    Raises:
        DataError: If a prompt fills the whole context.

    Returns:
        Replies without special tokens and surrounding white space, in the order of the prompts.
    """
    import torch

    ids = encode_prompts(tokenizer, prompts)
    rooms = [min(max_new_tokens, context - len(item)) for item in ids]
    if rooms and min(rooms) < 1:
        raise DataError(
            f"{sum(room < 1 for room in rooms)} prompt(s) fill the whole context of {context} tokens",
            "shorten or remove them, or take a model with a longer context",
        )
    replies = [""] * len(ids)
    done = 0
    with torch.inference_mode(), _plain(model):
        for room, batch in _batches(ids, rooms, batch_tokens):
            longest = max(len(ids[index]) for index in batch)
            rows = [[int(tokenizer.pad_token_id)] * (longest - len(ids[i])) + ids[i] for i in batch]
            seen = [[0] * (longest - len(ids[i])) + [1] * len(ids[i]) for i in batch]
            output = model.generate(
                input_ids=torch.tensor(rows, device=model.device),
                attention_mask=torch.tensor(seen, device=model.device),
                max_new_tokens=room,
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
            texts = tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
            for index, text in zip(batch, texts, strict=True):
                replies[index] = text.strip()
            done += len(batch)
            if on_done is not None:
                on_done(done)
    return replies


def _batches(ids: list[list[int]], rooms: list[int], batch_tokens: int) -> Iterator[tuple[int, list[int]]]:
    """Batches whose prompts leave the same room for a reply, so that no reply depends on its neighbours."""
    for room in sorted(set(rooms)):
        alike = [index for index, item in enumerate(rooms) if item == room]
        for batch in batches_by_length([len(ids[index]) + room for index in alike], batch_tokens):
            yield room, [alike[place] for place in batch]


@contextmanager
def _plain(model: PreTrainedModel) -> Iterator[None]:
    """Set aside the generation settings that came with the model: a repetition penalty, say, is not greedy."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
