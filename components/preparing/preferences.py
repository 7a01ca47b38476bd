"""Preference pairs: a chosen and a rejected reply to the same prompt, in the spellings that are in use."""

from __future__ import annotations

from typing import Any

from components.preparing.conversations import transcript, turns
from components.preparing.drafts import Draft, Malformed, Turn, optional_text, text
from components.preparing.extras import EXTRAS, drafted

_PROMPTS = ("prompt", "question", "instruction", "input")
_HH = EXTRAS | {*_PROMPTS, "system", "chosen", "rejected"}


def hh(row: dict[str, Any]) -> list[Draft | Malformed]:
    """`chosen` and `rejected`: transcripts (Anthropic HH), chat lists, or plain replies to a prompt beside them.

    The prompt is `prompt` (also a chat list), `question`, `instruction` or `input`, with an optional `system`.
    """
    name = next((name for name in _PROMPTS if row.get(name)), "prompt")
    prompt, system = row.get(name), optional_text(row, "system")
    chosen, rejected = (_conversation(row, key, prompt) for key in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise Malformed("`chosen` and `rejected` do not answer the same prompt")
    if chosen[-1] == rejected[-1]:
        raise Malformed("`chosen` and `rejected` are the same")
    if system and chosen[0][0] != "system":
        chosen = (("system", system), *chosen)
    draft = drafted(row, chosen, _HH)
    draft.rejected = rejected[-1][1]
    return [draft]


def _conversation(row: dict[str, Any], key: str, prompt: Any) -> tuple[Turn, ...]:
    value = row.get(key)
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        before = prompt if isinstance(prompt, list) else []
        # A reply alone follows the prompt; a list that holds the user's turn is the whole conversation.
        only_reply = not any(isinstance(turn, dict) and turn.get("role", turn.get("from")) in _ASKS for turn in value)
        if only_reply and isinstance(prompt, str):
            before = [{"role": "user", "content": prompt}]
        return turns([*before, *value] if only_reply else value, key)
    said = text(row, key)
    if isinstance(prompt, list):
        return turns([*prompt, {"role": "assistant", "content": said}], key)
    if isinstance(prompt, str) and prompt.strip():
        if prompt.lstrip().startswith(("Human:", "Assistant:")):
            return transcript(prompt + said, key)
        return ("user", prompt), ("assistant", said)
    return transcript(said, key)


_ASKS = ("user", "human", "prompter")


def rejected_reply(value: Any) -> str | None:
    """The text of a rejected reply: a string, a turn, or the last of a list of turns; None where there is none."""
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list) and value:
        last = value[-1]
        value = last.get("content", last.get("value")) if isinstance(last, dict) else last
    if value is None or value == []:
        return None
    return text({"rejected": value}, "rejected")
