"""Generation in batches of like length, through the same rendering as training: greedy, or sampled from a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from components.common.digests import seed_for
from components.common.errors import DataError
from components.common.likelihood import batches_by_length
from components.common.rendering import Messages, encode_prompts

if TYPE_CHECKING:
    import torch
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
    ids = encode_prompts(tokenizer, prompts)
    replies = [""] * len(ids)
    done = 0
    for room, batch in _batches(ids, rooms_of(ids, max_new_tokens, context), batch_tokens):
        made = _continued(model, tokenizer, [ids[index] for index in batch], room)
        for index, text in zip(batch, _texts(tokenizer, made), strict=True):
            replies[index] = text
        done += len(batch)
        if on_done is not None:
            on_done(done)
    return replies


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Messages],
    samples: int,
    temperature: float,
    max_new_tokens: int,
    batch_tokens: int,
    context: int,
    seed: int,
    on_done: Callable[[int], None] | None = None,
) -> list[list[str]]:
    """Replies drawn from the model; the same arguments give the same replies.

    Args:
        model: In evaluation mode.
        tokenizer: Its tokenizer.
        prompts: Conversations that wait for a reply.
        samples: Replies to each.
        temperature: The logits are divided by it.
        max_new_tokens: Longest reply, tokens; less where the context leaves less.
        batch_tokens: Tokens of a batch, replies included.
        context: Tokens that the model's positions allow.
        seed: Of the drawing.
        on_done: Told the number of replies done.

    Raises:
        DataError: If a prompt fills the whole context.

    Returns:
        For every prompt its replies, as `generate` gives them.
    """
    ids = [item for item in encode_prompts(tokenizer, prompts) for _ in range(samples)]
    replies = [""] * len(ids)
    done = 0
    for number, (room, batch) in enumerate(_batches(ids, rooms_of(ids, max_new_tokens, context), batch_tokens)):
        of_batch = seed_for(seed, f"batch {number}")
        alike = [ids[index] for index in batch]
        made = sample_tokens(model, tokenizer, alike, [room] * len(batch), temperature, of_batch)
        for index, text in zip(batch, _texts(tokenizer, made), strict=True):
            replies[index] = text
        done += len(batch)
        if on_done is not None:
            on_done(done)
    return [replies[start : start + samples] for start in range(0, len(replies), samples)]


def sample_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[list[int]],
    rooms: Sequence[int],
    temperature: float,
    seed: int,
    part: tuple[int, int] | None = None,
    all_rooms: Iterable[int] = (),
) -> list[list[int]]:
    """One completion of each prompt, as tokens, drawn from the model.

    The most likely token after adding Gumbel noise to the tempered logits is a sample of them (Gumbel 1954). The noise
    of a row depends on the seed and the row's place only: workers that share the rows draw what one would draw.

    Args:
        model: In evaluation mode.
        tokenizer: Its tokenizer.
        ids: Prompts as tokens.
        rooms: Longest completion of each, tokens, see `rooms_of`; those with the same room are drawn together.
        temperature: The logits are divided by it.
        seed: Of the drawing.
        part: (place of the first row, rows altogether) where these rows are a part of more; None: they are all.
        all_rooms: Those of the other workers' rows, where every worker must take part in each drawing as they share
            the model's weights: one without a row of some room draws what nobody reads.

    Returns:
        Each completion up to its end token, which is included; without one where the room did not suffice.
    """
    first, whole = part or (0, len(ids))
    end = int(tokenizer.eos_token_id)
    drawn: list[list[int]] = [[] for _ in ids]
    for room in sorted({*rooms, *all_rooms}):
        alike = [place for place, item in enumerate(rooms) if item == room]
        prompts = [ids[place] for place in alike] or [[end]]
        noise = _noise(model, temperature, seed, [first + place for place in alike] or [0], whole)
        rows = _continued(model, tokenizer, prompts, room, noise).tolist()
        for place, row in zip(alike, rows, strict=False):
            drawn[place] = row[: row.index(end) + 1] if end in row else row
    return drawn


def _noise(
    model: PreTrainedModel, temperature: float, seed: int, places: list[int], whole: int
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Adds the Gumbel noise of some places among all rows to the tempered scores of their next token."""
    import torch

    source = torch.Generator(device=model.device).manual_seed(seed)

    def noisy(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        waits = torch.empty((whole, scores.shape[1]), device=scores.device).exponential_(generator=source)
        return scores / temperature - waits[places].log()

    return noisy


def _continued(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[list[int]],
    room: int,
    change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """The tokens after each prompt, (prompts, at most `room`), padded after the end token.

    Args:
        model: In evaluation mode.
        tokenizer: Its tokenizer.
        ids: Prompts as tokens.
        room: Tokens of the longest reply.
        change: Changes the scores of the next token, of which the highest is taken.
    """
    import torch

    pad, longest = int(tokenizer.pad_token_id), max(map(len, ids))
    rows = [[pad] * (longest - len(item)) + item for item in ids]
    seen = [[0] * (longest - len(item)) + [1] * len(item) for item in ids]
    with torch.inference_mode(), _plain(model):
        output: torch.Tensor = model.generate(
            input_ids=torch.tensor(rows, device=model.device),
            attention_mask=torch.tensor(seen, device=model.device),
            max_new_tokens=room,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=pad,
            logits_processor=None if change is None else [change],
        )
    return output[:, longest:]


def _texts(tokenizer: PreTrainedTokenizerBase, tokens: torch.Tensor | list[list[int]]) -> list[str]:
    return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def rooms_of(ids: Sequence[list[int]], max_new_tokens: int, context: int) -> list[int]:
    """Tokens that the context leaves each prompt for its reply.

    Raises:
        DataError: If it leaves one none.
    """
    rooms = [min(max_new_tokens, context - len(item)) for item in ids]
    if rooms and min(rooms) < 1:
        raise DataError(
            f"{sum(room < 1 for room in rooms)} prompt(s) fill the whole context of {context} tokens",
            "shorten or remove them, or take a model with a longer context",
        )
    return rooms


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
