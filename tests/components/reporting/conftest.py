"""The builder of finished runs, as a fixture: test modules here import no neighbours."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def runs() -> ModuleType:
    """The module `build_run`."""
    found = importlib.util.spec_from_file_location("build_run", Path(__file__).with_name("build_run.py"))
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module
