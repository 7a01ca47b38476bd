"""One rendering of a conversation into tokens, through the model's chat template.

Training, scoring, evaluation and generation all go through `encode`, so they agree on every token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from components.common.errors import DataError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Encoded:
    """A conversation as tokens.

    Attributes:
        input_ids: All tokens.
        response_mask: True where the token belongs to a reply (its end token included): where the loss is taken.
        truncated: Tokens cut off at the end.
    """

    input_ids: list[int]
    response_mask: list[bool]
    truncated: int = 0

    @property
    def labels(self) -> list[int]:
        """The tokens to predict, -100 outside the replies."""
        return [token if kept else -100 for token, kept in zip(self.input_ids, self.response_mask, strict=True)]

    @property
    def response_tokens(self) -> int:
        """Tokens that count in the loss."""
        return sum(self.response_mask)


def _render(tokenizer: PreTrainedTokenizerBase, messages: Messages, add_generation_prompt: bool) -> str:
    turns = [{"role": role, "content": content} for role, content in messages]
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
    except Exception as error:  # a template divides by 0, loops beyond what the sandbox allows, includes a file
        roles = ", ".join(role for role, _ in messages) or "(none)"
        raise UserError(
            f"the model's chat template refuses the turns {roles}: {error}",
            "take these turns out of the data, or set another chat_template in the model's folder",
        ) from None
    return text


def _segments(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[tuple[str, bool]]:
    """The rendered conversation cut where replies begin and end, as (text, is it a reply)."""
    segments: list[tuple[str, bool]] = []
    done = ""
    for place, (role, _) in enumerate(messages):
        if role != "assistant":
            continue
        before, through = _render(tokenizer, messages[:place], True), _render(tokenizer, messages[: place + 1], False)
        if not (before.startswith(done) and through.startswith(before)):
            raise UserError(
                "the model's chat template rewrites earlier turns, so replies cannot be told from prompts",
                "set a chat_template in which each turn only appends (e.g. ChatML) in the model's folder",
            )
        segments += [(before[len(done) :], False), (through[len(before) :], True)]
        done = through
    return segments


def _end(reply: list[int], eos: int) -> int:
    """Tokens of a reply up to its end token; all where it has none."""
    return len(reply) - reply[::-1].index(eos) if eos in reply else len(reply)


def _assemble(tokens: list[tuple[list[int], bool]], eos: int, max_length: int | None) -> Encoded:
    ids = list(tokens[-1][0])
    # The last reply ends with its end token: what a template writes after it is never generated, so never learnt.
    ids = ids[: _end(ids, eos)] if eos in ids else [*ids, eos]
    whole: list[int] = []
    mask: list[bool] = []
    for part, reply in [*tokens[:-1], (ids, True)]:
        learnt = _end(part, eos) if reply else 0
        whole += part
        mask += [True] * learnt + [False] * (len(part) - learnt)
    limit = len(whole) if max_length is None else max_length
    return Encoded(whole[:limit], mask[:limit], max(0, len(whole) - limit))


def encode(
    tokenizer: PreTrainedTokenizerBase, conversations: Iterable[Messages], max_length: int | None = None
) -> list[Encoded]:
    """Conversations as tokens, with the replies marked.

    Prompts and replies are tokenized apart and joined, so that a reply's tokens never depend on whether it is being
    trained on or generated.

    Args:
        tokenizer: The model's tokenizer.
        conversations: Each ends with an assistant turn.
        max_length: Tokens to keep of each; the rest is cut and counted.
    """
    cut = [_segments(tokenizer, messages) for messages in conversations]
    texts = [text for segments in cut for text, _ in segments]
    if not texts:
        return []
    ids = iter(tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"])
    eos = int(tokenizer.eos_token_id)
    return [_assemble([(next(ids), reply) for _, reply in segments], eos, max_length) for segments in cut]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Messages]) -> list[list[int]]:
    """Prompts as tokens, ready for a reply: exactly the prefix that `encode` gives them."""
    ids: list[list[int]] = []
    for prompt in prompts:
        segments = _segments(tokenizer, [*prompt, ("assistant", "")])
        texts = [text for text, _ in segments[:-1]]
        parts = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        ids.append([token for part in parts for token in part])
    return ids


def reply_header(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that the chat template writes to open a reply; the end token where it writes nothing."""
    turns = [("user", "x")]
    header = _render(tokenizer, turns, True)[len(_render(tokenizer, turns, False)) :]
    ids = tokenizer(header, add_special_tokens=False)["input_ids"] if header else []
    return [int(token) for token in ids] or [int(tokenizer.eos_token_id)]


def refuse_long_prompts(encoded: Sequence[tuple[str, Encoded]], limit: int) -> None:
    """Raise where a prompt fills the whole context, so that nothing of the reply is left.

    Args:
        encoded: (example id, tokens cut at `limit`).
        limit: Tokens of context.
    """
    bad = [name for name, item in encoded if item.response_tokens == 0]
    if bad:
        raise DataError(
            f"{len(bad)} example(s) have a prompt that fills the whole context of {limit} tokens, e.g. {bad[0]}",
            "shorten or remove them, raise `max_length` (`curriculum.sft.max_length`, or the phase's), or take a model "
            "with a longer context",
        )
