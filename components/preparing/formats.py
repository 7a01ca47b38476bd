"""The formats: each is one function from a row to its drafts.

A function returns a draft for every example of the row, and a `Malformed` in the place of one that cannot be used;
it raises `Malformed` where the whole row cannot be used. What any row may have besides is in `extras.py`.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from components.preparing.conversations import tree_paths, turns
from components.preparing.drafts import Draft, Malformed, Turn, items, kind, number, optional_text, text
from components.preparing.extras import EXTRAS, drafted
from components.preparing.preferences import hh, rejected_reply

Converter = Callable[[dict[str, Any]], list[Draft | Malformed]]

_SOLUTION_END = re.compile(r"^####\s*\$?\s*([-+]?[\d,]*\d(?:\.\d+)?)\s*%?\s*$", re.MULTILINE)


def _with_context(instruction: str, context: str) -> str:
    return f"{instruction}\n{context}" if context else instruction


_ALPACA = EXTRAS | {"instruction", "input", "output"}


def alpaca(row: dict[str, Any]) -> list[Draft | Malformed]:
    """`instruction`, `input` (may be empty or absent), `output` (Stanford Alpaca)."""
    asked = _with_context(text(row, "instruction"), optional_text(row, "input"))
    return [drafted(row, (("user", asked), ("assistant", text(row, "output"))), _ALPACA)]


_DOLLY = EXTRAS | {"instruction", "context", "response"}


def dolly(row: dict[str, Any]) -> list[Draft | Malformed]:
    """`instruction`, `context` (may be empty or absent), `response` (Databricks Dolly); `category` is a field."""
    asked = _with_context(text(row, "instruction"), optional_text(row, "context"))
    return [drafted(row, (("user", asked), ("assistant", text(row, "response"))), _DOLLY)]


_SHAREGPT = EXTRAS | {"conversations", "system"}


def sharegpt(row: dict[str, Any]) -> list[Draft | Malformed]:
    """`conversations`: turns with `from` and `value`; an optional `system` beside them."""
    found = turns(items(row, "conversations"), "conversations")
    system = optional_text(row, "system")
    if system and found[0][0] != "system":
        found = (("system", system), *found)
    return [drafted(row, found, _SHAREGPT)]


_OPENORCA = EXTRAS | {"system_prompt", "question", "response"}


def openorca(row: dict[str, Any]) -> list[Draft | Malformed]:
    """`system_prompt` (may be empty or absent), `question`, `response` (OpenOrca)."""
    found: tuple[Turn, ...] = (("user", text(row, "question")), ("assistant", text(row, "response")))
    system = optional_text(row, "system_prompt")
    return [drafted(row, (("system", system), *found) if system else found, _OPENORCA)]


_OASST = EXTRAS | {"prompt"}


def oasst(row: dict[str, Any]) -> list[Draft | Malformed]:
    """A message tree: `prompt` with nested `replies` (Open Assistant); every path to a last reply is an example.

    The tree is the group: its paths share their first turns, so they must not stand on both sides of the held-out
    part. A row's own `group`, which may span trees, takes its place.
    """
    root = row.get("prompt")
    if not isinstance(root, dict):
        raise Malformed(f"`prompt` is {kind(root)}, not a message with `replies`")
    if root.get("deleted"):
        raise Malformed("the first message of the tree is deleted")
    name = row.get("message_tree_id") or root.get("message_id")
    every = drafted(row, (), _OASST)
    if every.group is None and name:
        every.group = str(name)
    if isinstance(root.get("lang"), str):
        every.fields["lang"] = root["lang"]
    found: list[Draft | Malformed] = []
    for path in tree_paths(root):
        chat = [{"role": message.get("role"), "content": message.get("text")} for message in path]
        try:
            found.append(replace(every, messages=turns(chat, "replies"), fields=dict(every.fields)))
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
    """`prompt` and `completion`, or `inputs` and `targets` (FLAN, T0); both may be chat lists.

    A `prompt` with an `answer` and no completion, as data for reinforcement learning have, is answered by that.
    """
    # P3 ships token ids as `inputs` beside the text as `inputs_pretokenized`.
    order = _PROMPT_COLUMNS[::-1] if "inputs_pretokenized" in row else _PROMPT_COLUMNS
    asked, replied = next((pair for pair in order if pair[0] in row or pair[1] in row), order[0])
    prompt, completion = row.get(asked), row.get(replied)
    if completion is None and replied == "completion" and row.get("answer") is not None:
        completion = text({"answer": str(row["answer"])}, "answer")
    if isinstance(prompt, list) and isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    if isinstance(prompt, list) and isinstance(completion, list):
        found = turns([*prompt, *completion], asked)
    else:
        found = (("user", text(row, asked)), ("assistant", text({replied: completion}, replied)))
    return [_with_rejected(row, drafted(row, found, EXTRAS | {asked, replied, "rejected"}))]


_MESSAGES = EXTRAS | {"messages", "rejected"}


def messages(row: dict[str, Any]) -> list[Draft | Malformed]:
    """`messages`: turns with `role` and `content` (OpenAI); an optional `rejected` last reply.

    Where the user's turn is the last and there is an `answer`, it is answered by that.
    """
    chat = items(row, "messages")
    last = chat[-1].get("role", chat[-1].get("from")) if isinstance(chat[-1], dict) else None
    if last in ("user", "human") and row.get("answer") is not None:
        chat = [*chat, {"role": "assistant", "content": text({"answer": str(row["answer"])}, "answer")}]
    return [_with_rejected(row, drafted(row, turns(chat, "messages"), _MESSAGES))]


def _with_rejected(row: dict[str, Any], draft: Draft) -> Draft:
    draft.rejected = rejected_reply(row.get("rejected"))
    return draft


_SELF_INSTRUCT = EXTRAS | {"instruction", "instances"}


def self_instruct(row: dict[str, Any]) -> list[Draft | Malformed]:
    """`instruction` and nested `instances` of `input` and `output` (Self-Instruct): an example for each instance.

    The optional columns stand in the row, for all of its instances.
    """
    instruction = text(row, "instruction")
    every = drafted(row, (), _SELF_INSTRUCT)
    found: list[Draft | Malformed] = []
    for place, instance in enumerate(items(row, "instances"), start=1):
        try:
            if not isinstance(instance, dict):
                raise Malformed(f"it is {kind(instance)}, not an object")
            asked = _with_context(instruction, optional_text(instance, "input"))
            pair = (("user", asked), ("assistant", text(instance, "output")))
            found.append(replace(every, messages=pair, fields=dict(every.fields)))
        except Malformed as reason:
            found.append(Malformed(f"instance {place}: {reason}"))
    return found


def evol_instruct(row: dict[str, Any]) -> list[Draft | Malformed]:
    """`instruction` and `output`, or `conversations` (WizardLM Evol-Instruct)."""
    return sharegpt(row) if "conversations" in row else alpaca(row)


_GSM8K = EXTRAS | {"question", "answer"}


def gsm8k(row: dict[str, Any]) -> list[Draft | Malformed]:
    """`question` and `answer`: a solution that ends in `#### NUMBER` (GSM8K).

    The number is the answer, whatever `verifier` the row has; the lines are the difficulty where it gives none.
    """
    asked, solution = text(row, "question"), text(row, "answer")
    ends = list(_SOLUTION_END.finditer(solution))
    if not ends:
        raise Malformed("`answer` has no line `#### NUMBER`")
    end = ends[-1]
    lines = sum(1 for line in solution[: end.start()].splitlines() if line.strip())
    optional = {key: value for key, value in row.items() if key not in ("answer", "verifier")}
    draft = drafted(optional, (("user", asked), ("assistant", solution)), _GSM8K)
    draft.answer, draft.verifier = end.group(1).replace(",", ""), "last_number"
    draft.fields.setdefault("difficulty", lines)
    return [draft]


_PHASED = EXTRAS | {"score", "data"}


def phased_ift(row: dict[str, Any]) -> list[Draft | Malformed]:
    """`score` (a string, often with newlines after it) and `data` = [instruction, output] (Phased IFT).

    The score is the difficulty where the row gives none of its own.
    """
    pair = items(row, "data")
    if len(pair) != 2:
        raise Malformed("`data` is not a list of the instruction and the output")
    named = {"data[0]": pair[0], "data[1]": pair[1]}
    found = (("user", text(named, "data[0]")), ("assistant", text(named, "data[1]")))
    draft = drafted(row, found, _PHASED)
    draft.fields.setdefault("difficulty", number(row.get("score"), "score"))
    return [draft]


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
