"""A kill in the middle of writing a checkpoint, and a disk that is full."""

from __future__ import annotations

import os
import signal

import pytest

pytestmark = pytest.mark.proof


@pytest.mark.parametrize("method", ["sft", pytest.param("grpo", marks=pytest.mark.soak)])
def test_a_kill_while_a_checkpoint_is_written(ready, calm, method):
    """Everything is frozen to look whether a checkpoint is half-written, and killed if so."""
    place = ready(method)
    process = place.start()
    place.until_step(process, 10)

    def frozen():
        if not place.checkpoints()["unfinished"]:
            return None
        trainer = place.trainer()
        trainer.suspend()
        state = place.checkpoints()
        folders = [f"/{item['name']}/" for item in state["unfinished"]]
        if any(folder in name for folder in folders for name in place.names("checkpoints")):
            return state
        trainer.resume()
        return None

    state = place.until(process, frozen, "a checkpoint that is being written")
    os.killpg(process.pid, signal.SIGKILL)
    place.ended(process, -9)
    assert place.checkpoints() == state
    place.again()
    assert place.resumed() == state["kept"][0]["step"]
    assert place.weights() == calm(method).weights()


@pytest.mark.soak  # test_bad_input.py has a full disk too
def test_the_disk_is_full(ready, calm, small_disk):
    """Others fill the disk while a phase trains; space is made, and the phase goes on from its last checkpoint."""
    place = ready()
    small_disk(place, "200m")
    process = place.start()
    step = place.until_step(process, 10)
    ballast = place.fill_disk(process)
    _, err = place.ended(process, 1)
    assert [line.partition(" ")[0] for line in err.splitlines()] == ["error:", "remedy:"]
    assert "is full" in err
    assert "free some space" in err
    assert len(place.weights()) == 1
    assert list(place.store.glob(".staging/*")) == []
    ballast.unlink()
    place.again()
    assert place.resumed() >= step
    assert place.weights() == calm().weights()
