"""A phase whose loss comes to be no number: weights that a decay too large for its learning rate makes grow for ever.

Every step multiplies the weights by 1 - learning rate x decay: by -2 here. With half of the rate it is by -0.5, so a
phase that goes back with that comes to its end.
"""

from __future__ import annotations

import re

import pytest
from safetensors import safe_open

from tests.chaos.places import spec_of

pytestmark = [pytest.mark.proof, pytest.mark.soak]
SAID = re.compile(
    r"error: train main 2 \(exploding\): the (training loss|gradient's norm) is (nan|inf) at step (\d+) "
    r"\(learning rate 0\.001\); the batch's examples: ([0-9a-f, ]+)\n"
    r"remedy: lower .*`learning_rate`.* `on_divergence: rollback\(0\.5\)`"
)


def exploding(**settings):
    constant = {"schedule": "constant", "warmup_ratio": 0.0, "weight_decay": 3000.0}
    phase = {"name": "exploding", "tiers": [2], "epochs": 8, **constant, **settings}
    return {"curriculum": {**spec_of()["curriculum"], "phases": [{"tiers": [1], "epochs": 1}, phase]}}


def finite(place):
    """Whether every number of the newest checkpoint's weights is finite."""
    name = place.checkpoints()["kept"][0]["name"]
    (file,) = (place.store / "checkpoints").glob(f"*/{name}/weights.safetensors")
    with safe_open(file, "pt") as tensors:
        return all(bool(tensors.get_tensor(key).isfinite().all()) for key in tensors.keys())  # noqa: SIM118  # no mapping


def test_a_loss_that_is_no_number_stops_the_phase(ready):
    place = ready(**exploding())
    _, err = place.ended(place.start(), 1)
    told = SAID.search(err)
    assert told is not None, err
    step, examples = int(told[3]), told[4].split(", ")
    assert len(set(examples)) == 16
    assert place.newest() == (step - 1) // 5 * 5 >= 5
    assert finite(place)
    assert len(place.weights()) == 1
    # The same again goes on from there, and comes to the same end.
    assert place.ended(place.start(), 1)[1] == err


def test_a_rollback_goes_on(ready):
    place = ready(**exploding(on_divergence="rollback(0.5)"))
    out = place.again()
    assert re.search(r"warning: train main 2 \(exploding\): .* back to the last checkpoint with 0\.5 of the", out)
    info = place.record()["info"]
    assert info["rollbacks"] == 1
    assert [point["step"] for point in info["learning"]] == list(range(1, info["steps"] + 1))
    back = [point["learning_rate"] for point in info["learning"]].index(0.0005)
    assert back % 5 == 0
    assert {point["learning_rate"] for point in info["learning"][back:]} == {0.0005}
