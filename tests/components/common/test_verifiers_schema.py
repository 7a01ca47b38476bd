"""JSON by a schema."""

import json

import pytest

from components.common.judging import Judge
from components.common.verifiers import fault, verify

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"$ref": "#/$defs/count"}},
        "required": ["name"],
        "additionalProperties": False,
        "$defs": {"count": {"type": "integer", "minimum": 0}},
    }
)


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ('{"name": "Ann", "age": 3}', True),
        (' \n{"name": "Ann"}\n', True),
        ('Here it is:\n```json\n{"name": "Ann"}\n```\nThat is all.', True),
        ('```\n{"name": "Ann"}\n```', True),
        ('```json {"name": "Ann"}```', True),
        ('{"name": "three ``` marks"}', True),
        ('{"name": "Ann", "age": -1}', False),
        ('{"name": "Ann", "more": 1}', False),
        ('{"name": "Ann", "age": NaN}', False),
        ('{"name": "Ann"} as you asked', False),
        ('```json\n{"name": "Ann"}\n```\nor\n```json\n{"name": "Bo"}\n```', False),
        ('```json\n{"name": "Ann"}', False),
        ("{'name': 'Ann'}", False),
        ("[" * 100_000 + "]" * 100_000, False),
        ('{"name": "Ann", "age": ' + "9" * 10_000 + "}", False),
        ("", False),
    ],
)
def test_json_schema(response, right):
    assert verify("json_schema", response, SCHEMA) is right


@pytest.mark.timeout(60)
def test_a_pattern_that_takes_for_ever_ends():
    schema = '{"type": "string", "pattern": "^(a+)+$"}'
    child = Judge("json_schema", seconds=1)
    assert [child.ask(json.dumps("a" * 60 + "!"), schema), child.ask('"aaa"', schema)] == [False, True]
    child.close()


def test_a_schema_that_refers_to_itself_without_end_ends():
    assert verify("json_schema", "1", '{"$ref": "#"}') is False


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("{", "it is not JSON, so it is no JSON schema"),
        ("3", "it is no JSON schema, which is an object"),
        ('{"type": "text"}', "it is no JSON schema: 'text' is not valid under any of the given schemas"),
        ('{"pattern": "("}', "it is no JSON schema: '(' is not a 'regex'"),
        (
            '{"properties": {"a": {"$ref": "http://127.0.0.1:1/a"}}}',
            "the schema refers to 'http://127.0.0.1:1/a'; it may refer only to parts of itself ('#...')",
        ),
        ("[" * 100_000, "the schema is too deep"),
        ('"' + "a" * 200_000 + '"', "the schema has 200,002 characters; 131,072 are the limit"),
    ],
)
def test_schemas_of_no_use(schema, reason):
    assert fault("json_schema", schema) == reason
