"""docs/security.md: every row of its tables names tests, and they exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def rows(text: str) -> list[str]:
    """The rows of the tables that have a column of tests, without the heads."""
    found, inside = [], False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
        elif line.rstrip().endswith("| tests |"):
            inside = True
        elif inside and not line.startswith("| ---"):
            found.append(line)
    return found


def faults(text: str, tests: Path) -> list[str]:
    """Rows without a test, and tests that are not there or can never run."""
    found = [f"no test: {row}" for row in rows(text) if not NAMED.search(row.split("|")[-2])]
    for file, name in sorted(set(NAMED.findall(text))):
        path = tests / file
        if not path.is_file():
            found.append(f"no file: {file}")
            continue
        functions = {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        if name not in functions:
            found.append(f"no function: {file}::{name}")
        elif any("mark.skip" in ast.unparse(item) for item in functions[name].decorator_list):
            found.append(f"skipped: {file}::{name}")
    return found


def test_every_row_names_tests_that_exist():
    text = (ROOT / "docs" / "security.md").read_text()
    assert len(rows(text)) > 35
    assert faults(text, ROOT / "tests") == []


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("| a | b | nothing |", "no test"),
        ("| a | b | `nowhere/test_a.py::test_b` |", "no file"),
        ("| a | b | `security/test_page.py::test_that_is_not_there` |", "no function"),
        ("| a | `security/test_page.py::rows` | |", "no test"),
    ],
)
def test_a_bad_row_is_found(row, fault):
    (found,) = faults(f"| who | what | tests |\n| --- | --- | --- |\n{row}\n", ROOT / "tests")
    assert found.startswith(fault)
