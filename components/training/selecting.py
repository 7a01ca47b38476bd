"""What a phase's checkpoints are compared on: half of the held-out part, which evaluation leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.common.errors import DataError
from components.common.examples import Example, read_rows
from components.common.generation import generate, rooms_of
from components.common.likelihood import response_nll
from components.common.models import context_length, load_tokenizer
from components.common.rendering import encode, encode_prompts, refuse_long_prompts
from components.common.rewards import check_answers
from components.common.selection import for_selection
from components.common.verifiers import verify


def check_selection(job: dict[str, Any], tokenizer: Any, limit: int) -> None:
    """See before a phase begins that its checkpoints can be compared; nothing where it leaves the last one.

    Args:
        job: Of the phase, see `fit`.
        tokenizer: The model's.
        limit: Tokens of an example that the phase reads.

    Raises:
        DataError: If there is no example to compare on, or a prompt leaves its reply no room.
        UserError: If a verifier cannot use an answer, or lacks what it needs.
    """
    wanted = job["plan"]["settings"]["select"]
    if wanted == "last":
        return
    examples = _examples(job)
    if not examples:
        raise DataError(
            f"`select: {wanted}` finds no held-out example to select on",
            "raise `data.held_out.fraction`, or take `select: last`",
        )
    if wanted == "best(loss)":
        encoded = encode(tokenizer, [example.messages for example in examples], limit)
        refuse_long_prompts([(e.id, item) for e, item in zip(examples, encoded, strict=True)], limit)
        return
    prompts = encode_prompts(tokenizer, [example.prompt for example in examples])
    rooms_of(prompts, job["evaluation"]["max_new_tokens"], context_length(Path(job["model"])))
    for verifier in sorted({str(example.verifier) for example in examples}):
        check_answers(verifier, [e.answer or "" for e in examples if e.verifier == verifier])


def _examples(job: dict[str, Any]) -> list[Example]:
    """The examples for selection; for `best(accuracy)` those that can be verified."""
    rows = (Example.from_row(row) for row in read_rows(Path(job["selection"])))
    verified = job["plan"]["settings"]["select"] == "best(accuracy)"
    return [e for e in rows if for_selection(e) and not (verified and e.verifier is None)]


def measure(job: dict[str, Any], model: Any) -> float:
    """The model's value on the examples for selection.

    Args:
        job: Of the phase; `selection` names the held-out file, `evaluation` the settings.
        model: In training; left as it was found.

    Returns:
        For `best(loss)` the mean negative log-likelihood of the replies, nats per token; for `best(accuracy)` the
        share of greedy answers that their verifier accepts.
    """
    wanted, settings = job["plan"]["settings"]["select"], job["evaluation"]
    examples, folder = _examples(job), Path(job["model"])
    tokenizer, context = load_tokenizer(folder), context_length(folder)
    training = model.training
    model.eval()
    try:
        if wanted == "best(loss)":
            limit = min(job["plan"]["settings"]["max_length"], context)
            encoded = encode(tokenizer, [example.messages for example in examples], limit)
            nll = response_nll(model, encoded, settings["batch_tokens"])
            return float(sum(nll)) / sum(item.response_tokens for item in encoded)
        prompts = [example.prompt for example in examples]
        replies = generate(model, tokenizer, prompts, settings["max_new_tokens"], settings["batch_tokens"], context)
        accepted = [verify(str(e.verifier), reply, e.answer or "") for e, reply in zip(examples, replies, strict=True)]
        return sum(accepted) / len(accepted)
    finally:
        model.train(training)
