"""SIGTERM, as before a machine is taken away, and Ctrl-C: a checkpoint now, and on from exactly that step."""

from __future__ import annotations

import os
import signal

import pytest

pytestmark = pytest.mark.proof
NEVER = {"checkpoint_every": 100_000}
"""So the only checkpoint is the one that the stop asks for."""
STOPPED = "error: stopped\nremedy: finished phases are in the store: the same command goes on from there\n"


def until_training(place, process):
    """Wait until the disturbed phase has made some steps."""

    def far():
        return any(str(one.get("label", "")).startswith("train main 2") and one["done"] >= 3 for one in place.events())

    place.until(process, far, "the third step")


@pytest.mark.parametrize(
    ("method", "workers", "number", "code"),
    [
        ("sft", 1, signal.SIGTERM, 143),
        pytest.param("grpo", 1, signal.SIGTERM, 143, marks=pytest.mark.soak),
        pytest.param("grpo", 1, signal.SIGINT, 130, marks=pytest.mark.soak),
        pytest.param("sft", 2, signal.SIGINT, 130, marks=pytest.mark.soak),
    ],
)
def test_a_stop_saves_the_phase_first(ready, calm, method, workers, number, code):
    place = ready(method, workers, compute={"threads": workers, "workers": workers, **NEVER})
    process = place.start()
    until_training(place, process)
    # A scheduler tells the command alone; a terminal tells every process of its group.
    (os.kill if number == signal.SIGTERM else os.killpg)(process.pid, number)
    _, err = place.ended(process, code)
    assert err == STOPPED
    kept, unfinished = place.checkpoints()["kept"], place.checkpoints()["unfinished"]
    assert (len(kept), unfinished) == (1, [])
    assert list(place.store.glob(".staging/*")) == []
    place.again()
    assert place.resumed() == kept[0]["step"] >= 3
    assert place.weights() == calm(method, workers).weights()
