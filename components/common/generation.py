"""Greedy generation in batches of like length, through the same rendering as training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from components.common.likelihood import batches_by_length
from components.common.models import Messages, encode_prompts

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

    Returns:
        Replies without special tokens and surrounding white space, in the order of the prompts.
    """
    import torch

    ids = encode_prompts(tokenizer, prompts)
    replies = [""] * len(ids)
    done = 0
    with torch.inference_mode():
        for batch in batches_by_length([len(item) + max_new_tokens for item in ids], batch_tokens):
            longest = max(len(ids[index]) for index in batch)
            rows = [[int(tokenizer.pad_token_id)] * (longest - len(ids[i])) + ids[i] for i in batch]
            seen = [[0] * (longest - len(ids[i])) + [1] * len(ids[i]) for i in batch]
            output = model.generate(
                input_ids=torch.tensor(rows, device=model.device),
                attention_mask=torch.tensor(seen, device=model.device),
                max_new_tokens=max(1, min(max_new_tokens, context - longest)),
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
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
