"""A kill in the middle of writing a checkpoint, and a disk that is full."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

pytestmark = pytest.mark.proof


@pytest.mark.parametrize("method", ["sft", "grpo"])
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


@pytest.fixture
def small_disk():
    """Puts a place's store on a disk of its own."""
    mounted = []

    def move(place):
        aside = place.store.rename(place.store.with_name("aside"))
        place.store.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(place.store)]
        if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("a small disk can be mounted only by a privileged user")
        mounted.append(place.store)
        subprocess.run(["cp", "-a", f"{aside}/.", str(place.store)], check=True)
        subprocess.run(["rm", "-r", str(aside)], check=True)

    yield move
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_the_disk_is_full(ready, calm, small_disk):
    """Others fill the disk while a phase trains; space is made, and the phase goes on from its last checkpoint."""
    place = ready()
    small_disk(place)
    process = place.start()
    step = place.until_step(process, 10)
    ballast = place.store / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while process.poll() is None:
            try:
                file.write(b"x" * 2**20)
            except OSError:  # full; what the run frees is taken too
                time.sleep(0.01)
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
