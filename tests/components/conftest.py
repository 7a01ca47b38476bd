"""The lab's tokenizer and model, loaded once."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def lab_tokenizer() -> Any:
    from components.common.models import load_tokenizer, model_folder

    return load_tokenizer(model_folder("lab"))


@pytest.fixture(scope="session")
def lab_weights() -> Any:
    from components.common.models import load_model, model_folder
    from components.common.spec import ModelSpec

    return load_model(model_folder("lab"), ModelSpec())
