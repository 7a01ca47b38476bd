"""The measure that a phase's checkpoints are compared on: half of the held-out part, which evaluation leaves out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from components.common.examples import Example, read_rows
from components.common.generation import generate
from components.common.likelihood import response_nll
from components.common.models import context_length, load_tokenizer
from components.common.rendering import encode
from components.common.selection import for_selection
from components.common.verifiers import verify


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
    rows = (Example.from_row(row) for row in read_rows(Path(job["selection"])))
    examples = [example for example in rows if for_selection(example)]
    folder = Path(job["model"])
    tokenizer, context = load_tokenizer(folder), context_length(folder)
    training = model.training
    model.eval()
    try:
        if wanted == "best(loss)":
            limit = min(job["plan"]["settings"]["max_length"], context)
            encoded = encode(tokenizer, [example.messages for example in examples], limit)
            nll = response_nll(model, encoded, settings["batch_tokens"])
            return float(sum(nll)) / sum(item.response_tokens for item in encoded)
        asked = [example for example in examples if example.verifier is not None]
        prompts = [example.prompt for example in asked]
        replies = generate(model, tokenizer, prompts, settings["max_new_tokens"], settings["batch_tokens"], context)
        accepted = [verify(str(e.verifier), reply, e.answer or "") for e, reply in zip(asked, replies, strict=True)]
        return sum(accepted) / len(accepted)
    finally:
        model.train(training)
