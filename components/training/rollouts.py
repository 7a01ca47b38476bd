"""Rewards of a phase of reinforcement learning, its prompts as tokens, and the sample of rollouts that is kept."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.common.errors import DataError, UserError
from components.common.examples import Example
from components.common.rendering import encode_prompts
from components.common.rewards import check_answers, check_reward, reward
from components.common.verifiers import VERIFIERS
from components.training.tokens import wanted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OWN_VERIFIER = "verifier"
"""The name under which each example's own verifier is logged."""
KEPT, TIMES = 10, 8
"""Rollouts that are kept of a step, and how many evenly spaced steps they are kept of; the last step is one more."""
_SCHEMA = pa.schema([("prompt", pa.list_(pa.int32())), ("answer", pa.string()), ("verifier", pa.string())])


@dataclass(frozen=True, slots=True)
class TokenizedPrompts:
    """What a phase of reinforcement learning trains on.

    Attributes:
        ids: The example's id, by row number.
        lengths: Tokens of its prompt, by row number.
    """

    ids: list[str]
    lengths: list[int]


def tokenize_prompts(
    tokenizer: PreTrainedTokenizerBase,
    files: Mapping[int, Path],
    sequence: Iterable[str],
    limit: int,
    rewards: Sequence[str],
    out: Path,
) -> TokenizedPrompts:
    """Write the prompts of a phase as tokens, with what their rewards compare with.

    Args:
        tokenizer: The model's.
        files: Parquet files of examples by tier.
        sequence: Example ids.
        limit: Tokens of a prompt with its completion.
        rewards: Names of the rewards; empty: each example's own verifier.
        out: The Arrow stream file to write.

    Raises:
        DataError: If an example lacks what a reward needs, a prompt leaves no room, or there is no example.
        UserError: If a reward cannot be given.
    """
    ids = set(sequence)
    if not ids:
        raise DataError("the phase has no prompt", "give it data that is not empty")
    _check_rewards(rewards, (e for batch in wanted(files, ids) for e in batch))
    names: list[str] = []
    lengths: list[int] = []
    with pa.OSFile(str(out), "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as writer:
        for batch in wanted(files, ids):
            prompts = encode_prompts(tokenizer, [example.prompt for example in batch])
            names += [example.id for example in batch]
            lengths += map(len, prompts)
            rows = [
                {"prompt": prompt, "answer": example.answer or "", "verifier": example.verifier}
                for example, prompt in zip(batch, prompts, strict=True)
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))
    long = [name for name, length in zip(names, lengths, strict=True) if length >= limit]
    if long:
        raise DataError(
            f"{len(long)} example(s) have a prompt that fills the whole context of {limit} tokens, e.g. {long[0]}",
            "shorten or remove them, raise the phase's `max_length`, or take a model with a longer context",
        )
    return TokenizedPrompts(names, lengths)


def _check_rewards(rewards: Sequence[str], examples: Iterable[Example]) -> None:
    """See before training that every example can be rewarded."""
    for name in rewards:
        check_reward(name)
    count, missing = 0, []
    answers: dict[str, set[str]] = {}
    for example in examples:
        count += 1
        names: list[str | None] = [*rewards] or [example.verifier]
        if None in names or (example.answer is None and any(one in VERIFIERS for one in names)):
            missing.append(example.id)
            continue
        for needed in names:
            answers.setdefault(str(needed), set()).add(example.answer or "")
    if missing:
        raise DataError(
            f"{len(missing)} of {count} example(s) have no answer{'' if rewards else ' or no verifier'}, "
            f"e.g. {missing[0]}",
            "a grpo phase rewards verified completions: give the data an `answer`"
            + ("" if rewards else " and a `verifier`, or name the phase's `rewards`"),
        )
    for name, given in answers.items():
        if not rewards:
            check_reward(name)
        check_answers(name, sorted(given))


def reward_functions(names: Sequence[str]) -> list[Callable[..., list[float]]]:
    """The rewards as functions that TRL calls: completions with the columns `answer` and `verifier` to numbers.

    Completions are judged as evaluation judges replies, without the white space around them.

    Args:
        names: Of the rewards; empty: each example's own verifier.
    """
    return [_named(name) for name in names] or [_own]


def _named(name: str) -> Callable[..., list[float]]:
    def rewards(completions: list[str], answer: list[str], **more: Any) -> list[float]:
        return [reward(name, text.strip(), gold) for text, gold in zip(completions, answer, strict=True)]

    rewards.__name__ = name.replace(":", ".")  # what it is logged as, and trackers allow no colon
    return rewards


def _own(completions: list[str], answer: list[str], verifier: list[str], **more: Any) -> list[float]:
    rows = zip(verifier, completions, answer, strict=True)
    return [reward(name, text.strip(), gold) for name, text, gold in rows]


_own.__name__ = OWN_VERIFIER


class RolloutTable:
    """A few rollouts of evenly spaced steps, to look at.

    Args:
        steps: Of the whole phase.
        rows: Those kept so far.
        file: Where the table is written, anew whenever rows are added; None keeps it in memory only.
    """

    def __init__(self, steps: int, rows: list[dict[str, Any]], file: Path | None) -> None:
        self._due = {1 + steps * time // TIMES for time in range(TIMES)} | {steps}
        self.rows = list(rows)
        self._file = file
        self._write()

    def due(self, step: int) -> bool:
        """Whether rollouts of this step are kept."""
        return step in self._due

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Keep some: `step`, `prompt`, `completion`, a column for each reward, and `advantage`."""
        self.rows += rows
        self._write()

    def _write(self) -> None:
        if self._file is not None and self.rows:
            partial = self._file.with_suffix(".partial")
            pq.write_table(pa.Table.from_pylist(self.rows), partial, compression="zstd")
            partial.replace(self._file)


def uses_vllm(job: dict[str, Any]) -> bool:
    """Whether completions are generated by vLLM.

    Raises:
        UserError: If they should be and cannot.
    """
    asked, installed = job["plan"]["settings"]["generator"], importlib.util.find_spec("vllm") is not None
    possible = bool(job["gpus_per_worker"]) and installed
    if asked == "vllm" and not possible:
        why = "vllm is not installed" if job["gpus_per_worker"] else "there is no GPU to run it on"
        raise UserError(
            f"`generator: vllm` cannot be used: {why}",
            "take `generator: transformers` or `auto`, or install vllm where each worker has a GPU",
        )
    return asked != "transformers" and possible


def times_read(rows: Sequence[int], lengths: Sequence[int]) -> int:
    """Tokens of all rows that are read, repeats counted."""
    return sum(lengths[row] * times for row, times in Counter(rows).items())
