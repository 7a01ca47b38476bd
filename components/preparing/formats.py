"""The formats: each is one function from a row to its drafts.

A function returns a draft for every example of the row, and a `Malformed` in the place of one that cannot be used;
it raises `Malformed` where the whole row cannot be used.
"""

import re
from collections.abc import Callable
from typing import Any

from components.common.verifiers import VERIFIERS
from components.preparing.conversations import transcript, tree_paths, turns
from components.preparing.drafts import Draft, Malformed, Turn, items, kind, number, optional_text, scalars, text

Converter = Callable[[dict[str, Any]], list[Draft | Malformed]]

_SOLUTION_END = re.compile(r"^####\s*\$?\s*([-+]?[\d,]*\d(?:\.\d+)?)\s*%?\s*$", re.MULTILINE)
_EXTRA = frozenset({"group", "answer", "verifier", "slice", "held_out", "difficulty", "rejected"})


def _with_context(instruction: str, context: str) -> str:
    return f"{instruction}\n{context}" if context else instruction


_ALPACA = frozenset({"instruction", "input", "output"})


def alpaca(row: dict[str, Any]) -> list[Draft | Malformed]:
    """`instruction`, `input` (may be empty or absent), `output` (Stanford Alpaca)."""
    asked = _with_context(text(row, "instruction"), optional_text(row, "input"))
    return [Draft((("user", asked), ("assistant", text(row, "output"))), fields=scalars(row, _ALPACA))]


_DOLLY = frozenset({"instruction", "context", "response"})


def dolly(row: dict[str, Any]) -> list[Draft | Malformed]:
    """`instruction`, `context` (may be empty or absent), `response` (Databricks Dolly); `category` is a field."""
    asked = _with_context(text(row, "instruction"), optional_text(row, "context"))
    return [Draft((("user", asked), ("assistant", text(row, "response"))), fields=scalars(row, _DOLLY))]


_SHAREGPT = frozenset({"conversations", "system"})


def sharegpt(row: dict[str, Any]) -> list[Draft | Malformed]:
    """`conversations`: turns with `from` and `value`; an optional `system` beside them."""
    found = turns(items(row, "conversations"), "conversations")
    system = optional_text(row, "system")
    if system and found[0][0] != "system":
        found = (("system", system), *found)
    return [Draft(found, fields=scalars(row, _SHAREGPT))]


_OPENORCA = frozenset({"system_prompt", "question", "response"})


def openorca(row: dict[str, Any]) -> list[Draft | Malformed]:
    """`system_prompt` (may be empty or absent), `question`, `response` (OpenOrca)."""
    found: tuple[Turn, ...] = (("user", text(row, "question")), ("assistant", text(row, "response")))
    system = optional_text(row, "system_prompt")
    return [Draft((("system", system), *found) if system else found, fields=scalars(row, _OPENORCA))]


_OASST = frozenset({"prompt"})


def oasst(row: dict[str, Any]) -> list[Draft | Malformed]:
    """A message tree: `prompt` with nested `replies` (Open Assistant); every path to a last reply is an example.

    The tree is the group: its paths share their first turns, so they must not stand on both sides of the held-out
    part.
    """
    root = row.get("prompt")
    if not isinstance(root, dict):
        raise Malformed(f"`prompt` is {kind(root)}, not a message with `replies`")
    if root.get("deleted"):
        raise Malformed("the first message of the tree is deleted")
    name = row.get("message_tree_id") or root.get("message_id")
    group = str(name) if name else None
    fields = scalars(row, _OASST)
    if isinstance(root.get("lang"), str):
        fields["lang"] = root["lang"]
    found: list[Draft | Malformed] = []
    for path in tree_paths(root):
        chat = [{"role": message.get("role"), "content": message.get("text")} for message in path]
        try:
            found.append(Draft(turns(chat, "replies"), group=group, fields=dict(fields)))
        except Malformed as reason:
            found.append(reason)
    if not found:
        raise Malformed("the tree has no reply of the assistant")
    return found


_PROMPT_COLUMNS = (
    ("prompt", "completion"),
    ("inputs", "targets"),
    ("inputs_pretokenized", "targets_pretokenized"),
)


def flan(row: dict[str, Any]) -> list[Draft | Malformed]:
    """`prompt` and `completion`, or `inputs` and `targets` (FLAN, T0); both may be chat lists."""
    # P3 ships token ids as `inputs` beside the text as `inputs_pretokenized`.
    order = _PROMPT_COLUMNS[::-1] if "inputs_pretokenized" in row else _PROMPT_COLUMNS
    asked, replied = next((pair for pair in order if pair[0] in row or pair[1] in row), order[0])
    prompt, completion = row.get(asked), row.get(replied)
    if isinstance(prompt, list) and isinstance(completion, list):
        found = turns([*prompt, *completion], asked)
    else:
        found = (("user", text(row, asked)), ("assistant", text(row, replied)))
    return [_with_extras(row, found, _EXTRA | {asked, replied})]


def messages(row: dict[str, Any]) -> list[Draft | Malformed]:
    """`messages`: turns with `role` and `content` (OpenAI); an optional `rejected` last reply."""
    return [_with_extras(row, turns(items(row, "messages"), "messages"), _EXTRA | {"messages"})]


def _with_extras(row: dict[str, Any], found: tuple[Turn, ...], used: frozenset[str]) -> Draft:
    """The draft with the optional columns of our own forms."""
    draft = Draft(found, fields=scalars(row, used))
    if not _EXTRA.isdisjoint(row):
        draft.group = _name(row, "group")
        draft.answer = _name(row, "answer")
        draft.verifier = _name(row, "verifier")
        draft.slice = _name(row, "slice")
        draft.held_out = _flag(row.get("held_out"))
        draft.rejected = _rejected_reply(row.get("rejected"))
        if row.get("difficulty") not in (None, ""):
            draft.fields["difficulty"] = number(row["difficulty"], "difficulty")
    if draft.verifier is not None:
        if draft.verifier not in VERIFIERS:
            raise Malformed(f"`verifier` is {draft.verifier[:40]!a}; known are {', '.join(VERIFIERS)}")
        if draft.answer is None:
            raise Malformed("`verifier` is given, but `answer` is not")
    return draft


def _name(row: dict[str, Any], key: str) -> str | None:
    value = row.get(key)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Malformed(f"`{key}` is {kind(value)}, not a string")
    return str(value)


def _flag(value: Any) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    # CSV has no booleans.
    known = {"": None, "true": True, "1": True, "false": False, "0": False}
    spelled = str(value).strip().lower()
    if spelled not in known:
        raise Malformed("`held_out` is neither true nor false")
    return known[spelled]


def _rejected_reply(value: Any) -> str | None:
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list) and value:
        last = value[-1]
        value = last.get("content", last.get("value")) if isinstance(last, dict) else last
    if value is None or value == []:
        return None
    return text({"rejected": value}, "rejected")


_SELF_INSTRUCT = frozenset({"instruction", "instances"})


def self_instruct(row: dict[str, Any]) -> list[Draft | Malformed]:
    """`instruction` and nested `instances` of `input` and `output` (Self-Instruct): an example for each instance."""
    instruction = text(row, "instruction")
    fields = scalars(row, _SELF_INSTRUCT)
    found: list[Draft | Malformed] = []
    for place, instance in enumerate(items(row, "instances"), start=1):
        try:
            if not isinstance(instance, dict):
                raise Malformed(f"it is {kind(instance)}, not an object")
            asked = _with_context(instruction, optional_text(instance, "input"))
            found.append(Draft((("user", asked), ("assistant", text(instance, "output"))), fields=dict(fields)))
        except Malformed as reason:
            found.append(Malformed(f"instance {place}: {reason}"))
    return found


def evol_instruct(row: dict[str, Any]) -> list[Draft | Malformed]:
    """`instruction` and `output`, or `conversations` (WizardLM Evol-Instruct)."""
    return sharegpt(row) if "conversations" in row else alpaca(row)


_HH = frozenset({"prompt", "chosen", "rejected"})


def hh(row: dict[str, Any]) -> list[Draft | Malformed]:
    """`chosen` and `rejected`: transcripts (Anthropic HH), chat lists, or plain replies to a `prompt` beside them."""
    chosen, rejected = _preferred(row, "chosen"), _preferred(row, "rejected")
    if chosen[:-1] != rejected[:-1]:
        raise Malformed("`chosen` and `rejected` do not answer the same prompt")
    if chosen[-1] == rejected[-1]:
        raise Malformed("`chosen` and `rejected` are the same")
    return [Draft(chosen, rejected=rejected[-1][1], fields=scalars(row, _HH))]


def _preferred(row: dict[str, Any], key: str) -> tuple[Turn, ...]:
    value, prompt = row.get(key), row.get("prompt")
    if isinstance(value, list):
        before = prompt if isinstance(prompt, list) else []
        # A reply alone follows the prompt; a list that holds the user's turn is the whole conversation.
        only_reply = not any(isinstance(turn, dict) and turn.get("role") == "user" for turn in value)
        if only_reply and isinstance(prompt, str):
            before = [{"role": "user", "content": prompt}]
        return turns([*before, *value] if only_reply else value, key)
    said = text(row, key)
    if isinstance(prompt, str) and prompt.strip():
        if prompt.lstrip().startswith(("Human:", "Assistant:")):
            return transcript(prompt + said, key)
        return ("user", prompt), ("assistant", said)
    return transcript(said, key)


_GSM8K = frozenset({"question", "answer"})


def gsm8k(row: dict[str, Any]) -> list[Draft | Malformed]:
    """`question` and `answer`: a solution that ends in `#### NUMBER` (GSM8K); its lines are the difficulty."""
    asked, solution = text(row, "question"), text(row, "answer")
    ends = list(_SOLUTION_END.finditer(solution))
    if not ends:
        raise Malformed("`answer` has no line `#### NUMBER`")
    end = ends[-1]
    lines = sum(1 for line in solution[: end.start()].splitlines() if line.strip())
    return [
        Draft(
            (("user", asked), ("assistant", solution)),
            answer=end.group(1).replace(",", ""),
            verifier="last_number",
            fields={**scalars(row, _GSM8K), "difficulty": lines},
        )
    ]


_PHASED = frozenset({"score", "data"})


def phased_ift(row: dict[str, Any]) -> list[Draft | Malformed]:
    """`score` (a string, often with newlines after it) and `data` = [instruction, output] (Phased IFT)."""
    pair = items(row, "data")
    if len(pair) != 2:
        raise Malformed("`data` is not a list of the instruction and the output")
    named = {"data[0]": pair[0], "data[1]": pair[1]}
    found = (("user", text(named, "data[0]")), ("assistant", text(named, "data[1]")))
    difficulty = number(row.get("score"), "score")
    return [Draft(found, fields={**scalars(row, _PHASED), "difficulty": difficulty})]


CONVERTERS: dict[str, Converter] = {
    "alpaca": alpaca,
    "dolly": dolly,
    "sharegpt": sharegpt,
    "openorca": openorca,
    "oasst": oasst,
    "flan": flan,
    "self_instruct": self_instruct,
    "evol_instruct": evol_instruct,
    "hh": hh,
    "gsm8k": gsm8k,
    "phased_ift": phased_ift,
    "messages": messages,
}
"""The function of every format that a spec can name."""
