"""Small phases, trained for real: the job that `fit` is asked to do, on a few of the lab's examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from components.common.checkpoints import CheckpointPlace
from components.common.curriculum import MAIN, PhasePlan, Portion
from components.common.models import model_folder
from components.common.spec import Spec
from components.common.spec_phases import SftSettings
from components.preparing.prepare import prepare
from components.training.step import fit_job

Train = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 96 examples of the lab."""
    out = tmp_path_factory.mktemp("examples")
    prepare(spec_of().data, 3, out)
    return out / "train.parquet"


def spec_of(**more: Any) -> Spec:
    data = {"train": [{"path": "lab://instructions?count=96"}], "held_out": {"fraction": 0.0}}
    return Spec.model_validate({"name": "small", "seed": 3, "data": data, **more})


@pytest.fixture
def make_job(examples: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Makes the job of a supervised phase; `settings` over those of a small one, `more` over the job's values."""

    def make(
        name: str, settings: dict[str, Any] | None = None, model: Path | None = None, key: str = "", **more: Any
    ) -> dict[str, Any]:
        changed, files = more.pop("plan", {}), more.pop("files", {1: examples})
        small = {"epochs": 1, "learning_rate": 1e-3, "batch_size": 16, "max_length": 256, **(settings or {})}
        spec = spec_of(**more.pop("spec", {}))
        plan = PhasePlan(
            MAIN, 1, name, "sft", (Portion((1,), small["epochs"]),), "tiers", SftSettings.model_validate(small)
        )
        plan = replace(plan, **changed)
        out = tmp_path / name
        out.mkdir()
        job = fit_job(spec, plan, files, spec.seed, model or model_folder("lab"))
        place = asdict(CheckpointPlace(str(tmp_path / "store"), key, 1)) if key else None
        return {**job, "out": str(out), "checkpoints": place, "threads": 1, **more}

    return make
