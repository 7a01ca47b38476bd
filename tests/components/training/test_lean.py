"""Which of Ray Train's actors a phase of several workers does without; that it trains is seen elsewhere."""

from __future__ import annotations

import pytest

from components.common.errand import INSIDE


@pytest.fixture
def callbacks(tmp_path, monkeypatch):
    """The names of the callbacks that Ray Train would have of itself, and of those that it is given."""
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "1")
    import ray.train
    from ray.train.torch import TorchTrainer

    from components.training.lean import LeanTrainer

    def named(kind):
        settings = {"storage_path": str(tmp_path), "name": "phase"}
        trainer = kind(
            lambda: None,
            scaling_config=ray.train.ScalingConfig(num_workers=2),
            run_config=ray.train.RunConfig(**settings),
        )
        return {type(one).__name__ for one in trainer._create_default_callbacks()}

    return lambda: (named(TorchTrainer), named(LeanTrainer))


def test_on_one_machine_nobody_hands_out_datasets_or_waits_to_clean_up(callbacks):
    whole, lean = callbacks()
    assert whole - lean == {"DatasetsCallback", "PlacementGroupCleanerCallback"}
    assert "BackendSetupCallback" in lean


def test_in_a_cluster_what_a_lost_controller_reserved_is_freed(callbacks, monkeypatch):
    monkeypatch.setenv(INSIDE, "1")
    whole, lean = callbacks()
    assert whole - lean == {"DatasetsCallback"}
