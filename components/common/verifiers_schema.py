"""The verifier `json_schema`: JSON that a schema accepts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from components.common.judging import judge

LONGEST = 1 << 20
"""Characters of a response beyond which it is wrong unread."""
LONGEST_SCHEMA = 1 << 17
"""Characters of a schema at most."""
_LANGUAGE = re.compile(r"(?:[A-Za-z0-9_+.-]*[ \t]*\r?\n|json\b)", re.IGNORECASE)


def json_schema(response: str, answer: str) -> bool:
    """Whether a response, or its one fenced code block, is JSON that the schema accepts.

    Args:
        response: What the model wrote.
        answer: The schema, as JSON; of draft 2020-12 unless its `$schema` says another. `format` asserts nothing, and
            nothing is fetched: references point within the schema.
    """
    return len(response) <= LONGEST and judge("json_schema").ask(response, answer)


def answer_fault(answer: str) -> str | None:
    """What is wrong with a schema, None where nothing is."""
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for

    if len(answer) > LONGEST_SCHEMA:
        return f"the schema has {len(answer):,} characters; {LONGEST_SCHEMA:,} are the limit"
    try:
        schema = read(answer)
        if not isinstance(schema, dict | bool):
            return "it is no JSON schema, which is an object"
        outside = next((target for target in _references(schema) if not target.startswith("#")), None)
        if outside is not None:
            return f"the schema refers to {outside[:80]!a}; it may refer only to parts of itself ('#...')"
        kind = validator_for(schema, default=_default())
        kind.check_schema(schema, format_checker=kind.FORMAT_CHECKER)  # with it, patterns must be regular expressions
    except SchemaError as error:
        return f"it is no JSON schema: {error.message[:200]}"
    except ValueError:
        return "it is not JSON, so it is no JSON schema"
    except (RecursionError, OverflowError):
        return "the schema is too deep"
    return None


def find_json(response: str) -> Any:
    """The value of a response that is JSON as a whole, else of its one fenced code block.

    Raises:
        ValueError: If neither is JSON. `NaN` and `Infinity` are not.
        RecursionError: If it is too deep.
    """
    try:
        return read(response)
    except ValueError:
        parts = response.split("```")
        if len(parts) != 3:
            raise
    inner = parts[1]
    language = _LANGUAGE.match(inner)
    return read(inner[language.end() :] if language else inner)


def read(text: str) -> Any:
    """JSON, without the constants that Python's reader adds to it."""
    return json.loads(text, parse_constant=_refuse)


def load() -> Callable[[str, str], bool]:
    """The validation, for a process of its own: patterns can take for ever, and it has no limits but that process's."""
    from jsonschema.validators import validator_for
    from referencing import Registry

    nothing: Registry[Any] = Registry()  # the default one fetches what a reference names

    def accepted(response: str, answer: str) -> bool:
        value, schema = find_json(response), read(answer)
        return bool(validator_for(schema, default=_default())(schema, registry=nothing).is_valid(value))

    accepted("{}", '{"type": "object"}')
    return accepted


def _default() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator


def _references(schema: Any) -> Iterator[str]:
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield from (part[key] for key in ("$ref", "$dynamicRef", "$recursiveRef") if isinstance(part.get(key), str))
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
