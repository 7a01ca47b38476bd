"""What the key of a phase leaves out because the weights do not depend on it, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.common.digests import digest_file
from components.training.fit import fit

WEIGHTS = {"full": "model.safetensors", "adapter": "adapter-0/adapter_model.safetensors"}
MODELS = {"full": {}, "adapter": {"adapter": {"rank": 4, "dropout": 0.1}, "dtype": "bfloat16"}}


@pytest.mark.parametrize("kind", ["full", "adapter"])
def test_gradient_checkpointing_and_the_interval_of_checkpoints_leave_the_weights_as_they_are(make_job, kind):
    trained = {}
    asked = {"plain": {}, "recomputed": {"gradient_checkpointing": True, "checkpoint_every": 2}, "other": {}}
    for name, compute in asked.items():
        settings = {"batch_size": 32, "learning_rate": 2e-3 if name == "other" else 1e-3}
        key = f"{kind}-{name}" if compute else ""
        job = make_job(name, settings, key=key, spec={"compute": compute, "model": MODELS[kind]})
        fit(job)
        trained[name] = digest_file(Path(job["out"]) / "model" / WEIGHTS[kind])
    assert trained["plain"] == trained["recomputed"] != trained["other"]
