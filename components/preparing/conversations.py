"""Conversations in their many spellings -> turns that end with the assistant's reply.

Chat lists (`role`/`content` or `from`/`value`), transcripts (paragraphs that start with `Human:` or `Assistant:`), and
trees of messages (Open Assistant), of which every path to a last reply of the assistant is a conversation.
"""

import re
from collections.abc import Iterator
from typing import Any

from components.preparing.drafts import Malformed, Turn, kind

ROLE_NAMES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
}
_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant): ?")


def turns(entries: list[Any], column: str) -> tuple[Turn, ...]:
    """The turns of a chat list, cut back to the last reply of the assistant.

    Empty system turns are left out: several data sets write one in every row.

    Raises:
        Malformed: If a turn is empty or of no known role, or if there is no reply to a user's turn.
    """
    found = []
    for place, entry in enumerate(entries, start=1):
        role, content = _turn(entry, f"turn {place} of `{column}`")
        if content and not content.isspace():
            found.append((role, content))
        elif role != "system":
            found.append((role, ""))
    return to_last_reply(found, column)


def to_last_reply(found: list[Turn], column: str) -> tuple[Turn, ...]:
    """Cut a conversation back to the last reply of the assistant, and check what is left.

    Raises:
        Malformed: If there is no reply, no user's turn before it, or a turn without text.
    """
    end = len(found)
    while end and found[end - 1][0] != "assistant":
        end -= 1
    kept = tuple(found[:end])
    if not kept:
        raise Malformed(f"`{column}` has no turn of the assistant")
    if not any(role == "user" for role, _ in kept):
        raise Malformed(f"`{column}` has no turn of the user before the assistant's reply")
    if not kept[-1][1]:
        raise Malformed(f"the last reply of `{column}` is empty")
    for place, (_, content) in enumerate(kept, start=1):
        if not content:
            raise Malformed(f"turn {place} of `{column}` is empty")
    return kept


def _turn(entry: Any, where: str) -> Turn:
    if not isinstance(entry, dict):
        raise Malformed(f"{where} is {kind(entry)}, not an object")
    name = entry.get("role", entry.get("from"))
    role = ROLE_NAMES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        shown = f"{name[:40]!a}" if isinstance(name, str) else kind(name)
        raise Malformed(f"{where} has the role {shown}; known are {', '.join(ROLE_NAMES)}")
    content = entry["content"] if "content" in entry else entry.get("value")
    if isinstance(content, list):
        content = _parts(content, where)
    if not isinstance(content, str):
        raise Malformed(f"the text of {where} is {kind(content)}, not a string")
    return role, content


def _parts(parts: list[Any], where: str) -> str:
    """The text of content given as a list of parts; images and sounds cannot be trained on here."""
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise Malformed(f"{where} has a part that is not text")
    return "".join(part["text"] for part in parts)


def transcript(value: str, column: str) -> tuple[Turn, ...]:
    """The turns of a transcript with `Human:` and `Assistant:` at the start of its paragraphs.

    Raises:
        Malformed: If it has no such speakers, or as `to_last_reply`.
    """
    pieces = _SPEAKER.split(value)
    if len(pieces) < 3 or pieces[0].strip():
        raise Malformed(f"`{column}` is no transcript: it does not start with `Human:` or `Assistant:`")
    roles = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(pieces[1::2], pieces[2::2], strict=True)
    return to_last_reply([(roles[speaker], said.strip()) for speaker, said in pairs], column)


def tree_paths(root: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """The paths of a message tree that end with a reply of the assistant below which there is no further one.

    The walk keeps its own stack: a damaged file can be deeper than Python's. Deleted messages end their branch.
    """
    stack: list[list[dict[str, Any]]] = [[root]]
    while stack:
        path = stack.pop()
        replies = _replies(path[-1])
        if _is_reply(path[-1]) and not any(_leads_to_reply(reply) for reply in replies):
            yield path
        stack.extend([*path, reply] for reply in reversed(replies))


def _replies(node: dict[str, Any]) -> list[dict[str, Any]]:
    replies = node.get("replies") or []
    if not isinstance(replies, list):
        raise Malformed(f"`replies` is {kind(replies)}, not a list")
    return [reply for reply in replies if isinstance(reply, dict) and not reply.get("deleted")]


def _is_reply(node: dict[str, Any]) -> bool:
    return node.get("role") == "assistant"


def _leads_to_reply(node: dict[str, Any]) -> bool:
    stack = [node]
    while stack:
        node = stack.pop()
        if _is_reply(node):
            return True
        stack.extend(_replies(node))
    return False
