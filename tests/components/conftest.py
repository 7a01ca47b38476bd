"""The tiny models, as fixtures: test modules import no neighbours."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module `tiny_models`."""
    found = importlib.util.spec_from_file_location("tiny_models", Path(__file__).with_name("tiny_models.py"))
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def lab_tokenizer() -> Any:
    from components.common.models import load_tokenizer, model_folder

    return load_tokenizer(model_folder("lab"))


@pytest.fixture(scope="session")
def lab_weights() -> Any:
    from components.common.models import load_model, model_folder
    from components.common.spec import ModelSpec

    return load_model(model_folder("lab"), ModelSpec())
