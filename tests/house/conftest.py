"""The repository's files, read once: the house's rules look at sources, they run none of the product."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Source:
    """One Python file: its path in the repository (`/` between folders), its text, and its syntax tree."""

    path: str
    text: str = field(repr=False)
    tree: ast.Module = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> Source:
        text = path.read_text(encoding="utf-8")
        return cls(path.relative_to(ROOT).as_posix(), text, ast.parse(text, str(path)))

    @property
    def name(self) -> str:
        """The module's dotted name."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def imports(self, below: ast.AST | None = None) -> Iterator[tuple[int, str]]:
        """Line and dotted name of every import, also inside functions; `from a import b` gives `a.b`."""
        package = self.name.split(".") if self.path.endswith("__init__.py") else self.name.split(".")[:-1]
        for node in ast.walk(below or self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = package[: len(package) - node.level + 1] if node.level else []
                start = [*base, *([node.module] if node.module else [])]
                yield from ((node.lineno, ".".join([*start, alias.name])) for alias in node.names)
            elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
                "import_module",
                "__import__",
            ):
                yield from (
                    (node.lineno, argument.value)
                    for argument in node.args[:1]
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
                )


def _sources(*folders: str) -> list[Source]:
    return [Source.read(path) for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def product() -> list[Source]:
    """Every module of components and pipelines."""
    return _sources("components", "pipelines")


@pytest.fixture(scope="session")
def all_sources(product: list[Source]) -> list[Source]:
    """The product, its tests, and the scripts of infra."""
    return [*product, *_sources("tests", "infra")]


@pytest.fixture(scope="session")
def source_of():
    """Makes a Source of a snippet, to show that a rule bites."""
    return lambda path, text: Source(path, text, ast.parse(text))


@pytest.fixture(scope="session")
def tracked(root: Path) -> list[Path]:
    """The files that git tracks, as far as they are there."""
    if not (root / ".git").exists():
        pytest.skip("this is no git checkout")
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"git does not list the files here: {error}")
    return [root / name for name in listed.stdout.decode().split("\0") if name and (root / name).is_file()]
