"""Packed batches: examples share the rows of a micro-batch, kept apart by their position ids.

Packing here is within a micro-batch: an optimizer step trains on exactly the examples that it would train on padded,
so the promised order stands. Rows are as long as the longest example, so attention costs no more than padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_CLOSE = 1e-4
"""How far log-probabilities may differ; leaking examples differ by far more, rounding (bfloat16 aside) by far less."""


def bins(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Places of the lengths in as few rows of a length as best-fit decreasing finds.

    Args:
        lengths: Tokens of each example, none longer than `room`.
        room: Tokens of a row.
    """
    rows: list[list[int]] = []
    left: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda one: (-lengths[one], one)):
        fitting = [row for row in range(len(rows)) if left[row] >= lengths[place]]
        if fitting:
            row = min(fitting, key=lambda one: (left[one], one))
            rows[row].append(place)
            left[row] -= lengths[place]
        else:
            rows.append([place])
            left.append(room - lengths[place])
    return rows


class PackedCollator:
    """Makes one micro-batch of examples: `input_ids`, `labels`, `position_ids`, each (rows, longest example).

    An example's first token has no label, whoever stands before it. Padding at a row's end restarts the positions
    with every token, so that it belongs to no example.
    """

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Pack examples of `input_ids` and `labels`."""
        import torch

        lengths = [len(example["input_ids"]) for example in examples]
        room = max(lengths)
        rows = bins(lengths, room)
        ids = torch.full((len(rows), room), self._pad)
        labels = torch.full((len(rows), room), -100)
        positions = torch.zeros((len(rows), room), dtype=torch.long)
        for row, places in enumerate(rows):
            start = 0
            for place in places:
                end = start + lengths[place]
                ids[row, start:end] = torch.as_tensor(examples[place]["input_ids"])
                labels[row, start + 1 : end] = torch.as_tensor(examples[place]["labels"][1:])
                positions[row, start:end] = torch.arange(lengths[place])
                start = end
        return {"input_ids": ids, "labels": labels, "position_ids": positions}


def keeps_apart(model: PreTrainedModel) -> bool:
    """Whether a model is seen to keep packed examples apart: two packed into a row score as each alone."""
    import torch

    tokens = max(2, min(1000, int(model.get_input_embeddings().num_embeddings)))
    first, second = [(7 * place + 3) % tokens for place in range(9)], [(5 * place + 1) % tokens for place in range(6)]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            alone = [model(input_ids=_row(one, model), use_cache=False).logits[0] for one in (first, second)]
            positions = _row([*range(len(first)), *range(len(second))], model)
            together = model(input_ids=_row(first + second, model), position_ids=positions, use_cache=False).logits[0]
    except (TypeError, ValueError, RuntimeError, IndexError):  # a model that takes no position ids, say
        return False
    finally:
        model.train(was_training)
    close = 0.05 if model.dtype in (torch.bfloat16, torch.float16) else _CLOSE
    apart = (together.log_softmax(-1) - torch.cat(alone).log_softmax(-1)).abs().max()
    return bool(apart < close)


def _row(ids: Sequence[int], model: PreTrainedModel) -> torch.Tensor:
    import torch

    return torch.tensor([list(ids)], device=model.device)
