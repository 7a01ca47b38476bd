"""Likelihood of replies under a model: nats, summed over the tokens of each reply, in batches of like length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from components.common.rendering import Encoded

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices in batches of like length, the longest first (so that too large a batch fails at once).

    Args:
        lengths: Tokens of each item.
        batch_tokens: Tokens of a batch, padding included; one item may exceed it alone.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda item: (-lengths[item], item)):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def response_nll(
    model: PreTrainedModel,
    encoded: Sequence[Encoded],
    batch_tokens: int,
    on_done: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Negative log-likelihood of the replies given all before them.

    Args:
        model: In evaluation mode.
        encoded: Conversations; `response_mask` marks what counts. The first token of a conversation never counts, as
            nothing predicts it.
        batch_tokens: Tokens of a batch, padding included.
        on_done: Told the number of conversations done.

    Returns:
        Shape (conversations,), nats, summed over the tokens marked.
    """
    import torch

    result = np.zeros(len(encoded), dtype=np.float64)
    done = 0
    with torch.inference_mode():
        for batch in batches_by_length([len(item.input_ids) for item in encoded], batch_tokens):
            result[batch] = _batch_nll(model, [encoded[index] for index in batch]).cpu().numpy()
            done += len(batch)
            if on_done is not None:
                on_done(done)
    return result


def _batch_nll(model: PreTrainedModel, items: Sequence[Encoded]) -> torch.Tensor:
    import torch

    longest = max(len(item.input_ids) for item in items)
    ids = torch.zeros((len(items), longest), dtype=torch.long)
    seen = torch.zeros((len(items), longest), dtype=torch.long)
    counted = torch.zeros((len(items), longest), dtype=torch.bool)
    for row, item in enumerate(items):
        size = len(item.input_ids)
        ids[row, :size] = torch.tensor(item.input_ids)
        seen[row, :size] = 1
        counted[row, :size] = torch.tensor(item.response_mask)
    counted[:, 0] = False
    first = int(counted.any(0).to(torch.int).argmax()) if counted.any() else longest - 1
    ids, seen, counted = ids.to(model.device), seen.to(model.device), counted.to(model.device)
    # Logits are the largest tensor by far: only the positions from the first reply on are asked for.
    keep = longest - max(first - 1, 0)
    logits = model(input_ids=ids, attention_mask=seen, use_cache=False, logits_to_keep=keep).logits[:, -keep:]
    targets, mask = ids[:, -keep:][:, 1:], counted[:, -keep:][:, 1:]
    predicted = logits[:, :-1][mask].float()
    losses = torch.nn.functional.cross_entropy(predicted, targets[mask], reduction="none")
    rows = mask.nonzero()[:, 0]
    return torch.zeros(len(items), dtype=torch.float64, device=ids.device).index_add_(0, rows, losses.double())
