"""Preference pairs made on the spot: replies of the phase's own model, told apart by a verifier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.common.digests import seed_for
from components.common.errors import DataError
from components.common.examples import Example, write_rows
from components.common.generation import sample
from components.common.progress import Progress
from components.common.rewards import check_answers
from components.common.verifiers import verify
from components.training.tokens import wanted

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Prompt = tuple[tuple[str, str], ...]


def make_pairs(
    job: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    files: Mapping[int, Path],
    ids: set[str],
    context: int,
    out: Path,
) -> dict[str, int]:
    """Make pairs of the model's own replies: the first that the verifier accepts, and the first that it does not.

    Args:
        job: Of the phase, see `fit`.
        tokenizer: The model's.
        model: The phase's start, in evaluation mode.
        files: Parquet files of examples by tier.
        ids: The examples whose prompts are asked.
        context: Tokens that a prompt with its reply may have.
        out: The file of examples to write: each has the id of the example whose prompt it answers.

    Raises:
        DataError: If an example has no verifier, or no prompt gave a pair.

    Returns:
        `examples`, `prompts` (distinct ones), `replies`, `accepted` (replies), `all_accepted` and `none_accepted`
        (examples dropped as no pair could be made), and `pairs`.
    """
    settings = job["plan"]["generate"]
    examples = [example for batch in wanted(files, ids) for example in batch]
    verifiers = _verifiers(examples, settings["verifier"])
    prompts = list(dict.fromkeys(example.prompt for example in examples))
    progress = Progress(f"{job['label']}: replies", len(prompts) * settings["samples"], "replies")
    sampled = sample(
        model,
        tokenizer,
        prompts,
        settings["samples"],
        settings["temperature"],
        settings["max_new_tokens"],
        job["evaluation"]["batch_tokens"],
        context,
        seed_for(job["training_seed"], "preference pairs"),
        progress.update,
    )
    told, pairs = _paired(examples, verifiers, dict(zip(prompts, sampled, strict=True)))
    told["pairs"] = write_rows(out, (pair.to_row() for pair in pairs))
    if not pairs:
        raise DataError(
            f"no preference pair could be made of {len(examples)} example(s): the verifier accepted all replies to "
            f"{told['all_accepted']} and none to {told['none_accepted']}",
            "raise `generate.samples` or `generate.temperature`, or take prompts that the model answers rightly now "
            "and then",
        )
    return told


def _paired(
    examples: Sequence[Example], verifiers: Sequence[str], replies: Mapping[Prompt, Sequence[str]]
) -> tuple[dict[str, int], list[Example]]:
    """The pairs that replies give, and counts of what became of the examples."""
    counts: Counter[str] = Counter({"examples": len(examples), "prompts": len(replies)})
    pairs: list[Example] = []
    for example, verifier in zip(examples, verifiers, strict=True):
        given = replies[example.prompt]
        accepted = [verify(verifier, reply, example.answer or "") for reply in given]
        counts.update(replies=len(given), accepted=sum(accepted))
        if all(accepted) or not any(accepted):
            counts["all_accepted" if accepted[0] else "none_accepted"] += 1
            continue
        good, bad = given[accepted.index(True)], given[accepted.index(False)]
        pairs.append(replace(example, messages=(*example.prompt, ("assistant", good)), rejected=bad))
    names = ("examples", "prompts", "replies", "accepted", "all_accepted", "none_accepted")
    return {name: counts[name] for name in names}, pairs


def _verifiers(examples: Sequence[Example], named: str | None) -> list[str]:
    """The verifier of every example.

    Raises:
        DataError: If one has none, or nothing to compare with.
        UserError: If a verifier is not known, or has no use for an answer.
    """
    missing = [e.id for e in examples if e.answer is None or (named is None and e.verifier is None)]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(examples)} example(s) have no answer{'' if named else ' or no verifier'}, "
            f"e.g. {missing[0]}",
            "pairs are made by verifying replies: give the data an `answer`"
            + ("" if named else " and a `verifier`, or name one as `generate.verifier`"),
        )
    names = [named or str(example.verifier) for example in examples]
    for name in sorted(set(names)):  # before anything is drawn
        answers = sorted({example.answer or "" for example, own in zip(examples, names, strict=True) if own == name})
        verify(name, "", answers[0])
        check_answers(name, answers)
    return names
