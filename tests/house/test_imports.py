"""Imports run one way: pipelines -> components/<stage> -> components/common -> components/lab, never back."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest

HEAVY = ("torch", "transformers", "trl", "ray", "mlflow", "kfp", "matplotlib", "pandas", "scipy")
# The package that an import of another name belongs to, or that fixes the one it belongs to.
PACKAGES = {"yaml": "pyyaml", "botocore": "boto3", "pydantic_core": "pydantic"}
BESIDE = {
    "sqlalchemy": "mlflow",
    "huggingface_hub": "transformers",
    "nltk": "lm_eval",
    "langdetect": "lm_eval",
    "referencing": "jsonschema",
    "kfp_server_api": "kfp",
    "urllib3": "kfp",
}
"""Packages imported only to speak to the one that brings them, in whatever version it brings."""


def allowed(importer: str, imported: str) -> bool:
    """Whether one of our modules may import another name of ours."""
    if imported in ("components", "pipelines") or importer.startswith("pipelines") or importer == "components":
        return True
    own, other = (name.split(".")[1] for name in (importer, imported + "."))
    return imported.startswith("components") and other in {
        "lab": {"lab"},
        "common": {"common", "lab"},
    }.get(own, {own, "common", "lab"})


def backward(sources) -> list[str]:
    return [
        f"{source.path}:{line} imports {name}"
        for source in sources
        for line, name in source.imports()
        if name.split(".")[0] in ("components", "pipelines") and not allowed(source.name, name)
    ]


def test_imports_run_one_way(product):
    assert not backward(product)


@pytest.mark.parametrize(
    ("path", "text", "fine"),
    [
        ("pipelines/cli.py", "from components.training.sft import fit", True),
        ("components/training/sft.py", "from components.common import models", True),
        ("components/training/sft.py", "from .tokens import encode", True),
        ("components/training/sft.py", "def f():\n    from components.scoring import score", False),
        ("components/training/sft.py", "from ..scoring import score", False),
        ("components/training/sft.py", "from components import scoring", False),
        ("components/common/spec.py", "import components.training", False),
        ("components/common/spec.py", "from components.lab import MODEL_FOLDER", True),
        ("components/lab/__init__.py", "from components.common.spec import Spec", False),
        ("components/scoring/__init__.py", "from pipelines import phased", False),
        ("components/common/a.py", "import importlib\nimportlib.import_module('pipelines.phased')", False),
    ],
)
def test_the_guard_bites(source_of, path, text, fine):
    assert (not backward([source_of(path, text)])) == fine


def test_what_is_imported_is_declared(root, product):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    items = [*project["dependencies"], *project["optional-dependencies"]["ifeval"]]
    declared = {re.match(r"[A-Za-z0-9_-]+", item)[0].lower().replace("-", "_") for item in items}
    known = declared | sys.stdlib_module_names | {"components", "pipelines"}
    used = [(source.path, line, name.split(".")[0]) for source in product for line, name in source.imports()]
    assert set(BESIDE.values()) <= declared
    assert not [use for use in used if PACKAGES.get(use[2], use[2]) not in known and use[2] not in BESIDE]


def test_the_command_starts_light(root):
    code = f"import sys, pipelines.cli; print(*(name for name in {HEAVY} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [], "imported with pipelines.cli; import them where they are used"
