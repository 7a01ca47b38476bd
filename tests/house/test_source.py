"""Rules that ruff has no word for: size, dangerous calls, reasons beside exceptions, docstrings."""

from __future__ import annotations

import ast
import io
import re
import tokenize

import pytest

FILE_LINES, TEST_FILE_LINES, FUNCTION_LINES = 400, 600, 60
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"eval", "exec", "torch.load", "yaml.load", "yaml.load_all", "os.system", "os.popen"}
FORBIDDEN_ARGUMENTS = {("trust_remote_code", True), ("shell", True), ("weights_only", False), ("allow_pickle", True)}
# A code, then two spaces, `#`, and the reason.
IGNORE = re.compile(r"#\s*type:\s*ignore(\[[a-z0-9, -]+\]  # \S.*)?")
NOQA = re.compile(r"#\s*noqa(: [A-Z]+[0-9]+(, ?[A-Z]+[0-9]+)*  # \S.*)?", re.IGNORECASE)


def loads_safely(call: ast.Call, tree: ast.Module) -> bool:
    """Whether a call names YAML's safe loader, or a class of the same module made from it."""
    safe = {"yaml.SafeLoader", "yaml.CSafeLoader"}
    made = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.bases and {ast.unparse(base) for base in node.bases} <= safe
    }
    given = [*call.args[1:], *(keyword.value for keyword in call.keywords)]
    return any(ast.unparse(argument) in safe | made for argument in given)


def dangerous(source) -> list[str]:
    """Ways to run code that came with data."""
    found = [(line, name) for line, name in source.imports() if name.split(".")[0] in FORBIDDEN_MODULES]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            found += [(node.lineno, name)] if name in FORBIDDEN_CALLS and not loads_safely(node, source.tree) else []
            found += [
                (node.lineno, f"{keyword.arg}={keyword.value.value}")
                for keyword in node.keywords
                if isinstance(keyword.value, ast.Constant) and (keyword.arg, keyword.value.value) in FORBIDDEN_ARGUMENTS
            ]
    return [f"{source.path}:{line}: {what}" for line, what in found]


def too_long(source, file_lines: int, function_lines: int) -> list[str]:
    found = []
    if (lines := source.text.count("\n")) > file_lines:
        found.append(f"{source.path} has {lines} lines; {file_lines} are the limit")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > function_lines:
                found.append(
                    f"{source.path}:{node.lineno} {node.name} has {lines} lines; {function_lines} are the limit"
                )
    return found


def bare_exceptions(source) -> list[str]:
    """Comments that switch a check off without a code or without a reason."""
    found = []
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        if token.type == tokenize.COMMENT:
            for pattern in (IGNORE, NOQA):
                match = pattern.search(token.string)
                if match and not match[1]:
                    found.append(f"{source.path}:{token.start[0]}: {token.string}")
    return found


def undocumented(source) -> list[str]:
    """Public modules, classes, functions and methods without a docstring."""
    found = [] if ast.get_docstring(source.tree) else [source.path]

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith(
                "_"
            ):
                overload = any(
                    ast.unparse(item).endswith(("overload", ".setter", "override")) for item in node.decorator_list
                )
                if not ast.get_docstring(node) and not overload:
                    found.append(f"{source.path}:{node.lineno} {prefix}{node.name}")
                if isinstance(node, ast.ClassDef):
                    visit(node.body, f"{node.name}.")

    visit(source.tree.body, "")
    return found


def markup_of_others(source) -> list[str]:
    """Ways to the terminal on which a text of others is markup: a console of rich's own, a column of its bars."""
    found = [(line, name) for line, name in source.imports() if name.startswith("rich.markup")]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            plain = any(keyword.arg == "markup" and ast.unparse(keyword.value) == "False" for keyword in node.keywords)
            last = name.split(".")[-1]
            if last in ("Console", "from_markup") or (last == "TextColumn" and not plain):
                found.append((node.lineno, name))
    return [f"{source.path}:{line}: {what}" for line, what in found]


def test_nothing_runs_code_from_data(product):
    assert not [fault for source in product for fault in dangerous(source)]


def test_files_and_functions_stay_small(product, all_sources):
    faults = [fault for source in product for fault in too_long(source, FILE_LINES, FUNCTION_LINES)]
    others = [source for source in all_sources if source not in product]
    faults += [fault for source in others for fault in too_long(source, TEST_FILE_LINES, TEST_FILE_LINES)]
    assert not faults


def test_exceptions_from_checks_say_why(all_sources):
    assert not [fault for source in all_sources for fault in bare_exceptions(source)]


def test_what_is_public_is_documented(product):
    assert not [fault for source in product for fault in undocumented(source)]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("import torch\ntorch.load('a')\n", 1),
        ("from pickle import loads\n", 1),
        ("model.eval()\nload(trust_remote_code=False)\n", 0),
        ("load(trust_remote_code=True)\n", 1),
        ("import subprocess\nsubprocess.run('ls', shell=True)\n", 1),
        ("import yaml\nyaml.safe_load('a')\nyaml.load('a')\n", 1),
        ("import yaml\nyaml.load('a', yaml.Loader)\n", 1),
        ("import yaml\nclass A(yaml.SafeLoader): pass\nyaml.load('a', A)\n", 0),
        ("import yaml\nclass A(yaml.Loader): pass\nyaml.load('a', Loader=A)\n", 1),
        ("eval('1')\nexec('1')\n", 2),
    ],
)
def test_dangers_are_seen(source_of, text, count):
    assert len(dangerous(source_of("components/a.py", text))) == count


def test_texts_of_others_are_no_markup_on_the_terminal(product):
    assert not [fault for source in product for fault in markup_of_others(source)]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("import rich.console\nrich.console.Console()\n", 1),
        ("from rich.console import Console\ndef f(console: Console): pass\n", 0),
        ("from rich.markup import escape\n", 1),
        ("Text.from_markup('a')\nText('a')\n", 1),
        ("TextColumn('a')\nTextColumn('a', markup=False)\nTextColumn('a', markup=True)\n", 2),
    ],
)
def test_markup_is_seen(source_of, text, count):
    assert len(markup_of_others(source_of("pipelines/a.py", text))) == count


@pytest.mark.parametrize(
    ("comment", "count"),
    [
        ("type: " + "ignore", 1),
        ("type: " + "ignore[misc]", 1),
        ("type: " + "ignore[misc]  # trl carries no types", 0),
        ("no" + "qa", 1),
        ("no" + "qa: S105", 1),
        ("no" + "qa: S105, D100  # the variable's name", 0),
        ("the noise of a qualm", 0),
    ],
)
def test_bare_exceptions_are_seen(source_of, comment, count):
    assert len(bare_exceptions(source_of("components/a.py", f"a = 1  # {comment}\n"))) == count


def test_long_and_undocumented_are_seen(source_of):
    source = source_of("components/a.py", "def f():\n" + "    a = 1\n" * 60)
    assert too_long(source, 400, 60) == ["components/a.py:1 f has 61 lines; 60 are the limit"]
    assert len(too_long(source, 60, 61)) == 1
    assert undocumented(source) == ["components/a.py", "components/a.py:1 f"]
