"""The specs that ship: each loads, and the paper's says what the paper says."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.common.curriculum import expand
from components.common.spec_file import load_spec
from pipelines.phased import compile_pipeline

SPECS = Path(__file__).resolve().parents[2] / "pipelines" / "specs"


@pytest.fixture(scope="module")
def paper():
    return load_spec(SPECS / "phased_ift_paper.yaml")


@pytest.mark.parametrize("name", ["quickstart.yaml", "gsm8k.yaml", "phased_ift_paper.yaml"])
def test_every_spec_loads_and_expands(name):
    spec = load_spec(SPECS / name)
    assert [curriculum.name for curriculum in expand(spec, spec.seed)][:3] == ["main", "one_off", "random_tiers"]


def test_the_paper_cuts_its_ratings_at_its_thresholds(paper):
    assert (paper.scoring.method, paper.splitting.cut) == ("column", "thresholds")
    assert paper.splitting.thresholds == [1.5, 3.5]


def test_the_paper_trains_every_phase_with_its_hyperparameters(paper):
    main = expand(paper, paper.seed)[0]
    assert [phase.tiers for phase in main.phases] == [[1], [2], [3]]
    for phase in main.phases:
        settings = phase.settings
        assert (settings.learning_rate, settings.epochs, settings.weight_decay) == (5e-6, 2, 0.1)
        assert (settings.warmup_ratio, settings.schedule, settings.adam_betas) == (0.1, "cosine", (0.9, 0.95))
        assert settings.max_length == 2048
    assert paper.model.dtype == "bfloat16"


def test_the_paper_has_its_baseline_and_controls(paper):
    names = [curriculum.name for curriculum in expand(paper, paper.seed)]
    assert names == ["main", "one_off", "random_tiers", "hardest_only", "only_1_2", "one_off_restarts"]


def test_the_paper_compiles(paper, tmp_path):
    compile_pipeline(paper, tmp_path / "paper.yaml", allow_local=True)
    assert (tmp_path / "paper.yaml").stat().st_size < 1_000_000
