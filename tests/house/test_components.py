"""component.py is shipped as source text and runs elsewhere: what compiles here may be a NameError there."""

from __future__ import annotations

import ast

import pytest


def component_files(sources):
    return [source for source in sources if source.path.endswith("/component.py")]


def functions(source) -> list[ast.FunctionDef]:
    return [node for node in source.tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list]


def defined_outside(tree: ast.Module) -> set[str]:
    """Names that a module gives itself; a component's body cannot see them when it runs."""
    names = set()
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        else:
            names |= {
                part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
            }
    return names


def faults(source) -> list[str]:
    own = source.name.rsplit(".", 1)[0]
    found = [f"{source.path}:{line}: {name}" for line, name in source.imports() if name.startswith("__future__")]
    outside = defined_outside(source.tree)
    for function in functions(source):
        body = ast.Module(function.body, [])
        for line, name in source.imports(body):
            if name.split(".")[0] in ("components", "pipelines") and not name.startswith(own + "."):
                found.append(f"{source.path}:{line}: the body imports {name}, not of its own folder")
        parts = [part for part in ast.walk(body) if isinstance(part, ast.Name)]
        local = {part.id for part in parts if isinstance(part.ctx, ast.Store)} | {
            (alias.asname or alias.name).split(".")[0]
            for node in ast.walk(body)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        parameters = {argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)}
        for part in parts:
            if isinstance(part.ctx, ast.Load) and part.id in outside - local - parameters:
                found.append(f"{source.path}:{part.lineno}: the body uses {part.id}, which is not shipped with it")
    return found


def test_components_ship_whole(product):
    assert component_files(product)
    assert not [fault for source in component_files(product) for fault in faults(source)]


def test_every_stage_is_a_component(root):
    stages = [folder for folder in (root / "components").iterdir() if (folder / "__init__.py").exists()]
    assert not [
        stage.name for stage in stages if stage.name not in ("common", "lab") and not (stage / "component.py").exists()
    ]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (
            "from kfp import dsl\n@dsl.component\ndef c(a: str):\n    from components.scoring.x import run\n    run(a)",
            0,
        ),
        ("from __future__ import annotations\n", 1),
        ("from kfp import dsl\n@dsl.component\ndef c():\n    from components.common.store import open_store", 1),
        ("from kfp import dsl\nLIMIT = 3\n@dsl.component\ndef c():\n    print(LIMIT)", 1),
    ],
)
def test_the_rule_bites(source_of, text, count):
    assert len(faults(source_of("components/scoring/component.py", text))) == count
