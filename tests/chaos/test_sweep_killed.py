"""Sweeps in which something is killed or diverges: the same command comes to the table of an undisturbed one."""

from __future__ import annotations

import json
import os
import signal

import psutil
import pytest

pytestmark = [pytest.mark.proof, pytest.mark.timeout(900)]


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["grid", "random"])
def test_the_driver_is_killed(sweep_ready, calm_sweep, kind):
    there = sweep_ready(kind)
    process = there.start()
    there.training(process)
    process.kill()
    there.place.ended(process, -9)
    done = there.phases()
    there.finish()
    found = there.results()
    assert found["phases_reused"] >= done >= 1
    assert found["phases_trained"] + found["phases_reused"] == found["phases_distinct"]
    assert there.table() == calm_sweep(kind)


@pytest.mark.soak
def test_everything_is_killed_at_once(sweep_ready, calm_sweep):
    """As by a loss of power: not even the step that holds the lease can say goodbye."""
    there = sweep_ready("grid")
    process = there.start()
    there.training(process)
    os.killpg(process.pid, signal.SIGKILL)
    there.place.ended(process, -9)
    there.finish()
    assert there.table() == calm_sweep("grid")


@pytest.mark.parametrize("kind", ["grid", pytest.param("random", marks=pytest.mark.soak)])
def test_a_trial_is_killed(sweep_ready, calm_sweep, kind):
    """Tune's processes of all trials that it watches at this moment: Tune starts them again.

    They train nothing, so the table alone would not tell whether it does.
    """
    there = sweep_ready(kind)
    process = there.start()
    there.training(process)  # Tune's processes have begun long before
    watchers = there.place.until(process, there.watchers, "a trial of Tune")
    for watcher in watchers:
        watcher.kill()
    psutil.wait_procs(watchers, timeout=20)
    killed = {watcher.pid for watcher in watchers}
    there.place.until(process, lambda: {one.pid for one in there.watchers()} - killed, "another process of Tune's")
    there.finish(process)
    assert there.table() == calm_sweep(kind)
    # One that Tune had not started again would be among the failed.
    assert f"Ray Tune saw {there.results()['trials']} trials to their end, 0 failed" in there.log()


def test_the_process_that_holds_a_lease_is_killed(sweep_ready, calm_sweep):
    """Its phase is tried again, and goes on from its last checkpoint; the user has nothing to do.

    Its trainer, another process, ends a moment later and may write into the folder that is being cleared away.
    """
    there = sweep_ready("grid")
    process = there.start()
    holder = there.training(process)
    (staging,) = there.staged(holder.pid)
    holder.kill()
    there.place.until(process, lambda: not staging.exists(), "the removal of what the killed process was at")
    (staging / "model").mkdir(parents=True)
    out = there.finish(process)
    assert "was lost and is tried again" in out
    assert there.results()["phases_trained"] == there.results()["phases_distinct"]
    assert there.table() == calm_sweep("grid")


@pytest.mark.soak
def test_a_trial_diverges(sweep_ready):
    """Weights that a decay too large for the learning rate makes grow for ever: its trials fail, the others end."""
    there = sweep_ready("grid")
    constant = {"schedule": "constant", "warmup_ratio": 0.0}
    sft = {"epochs": 8, "learning_rate": 1.0e-3, "batch_size": 8, "max_length": 256, **constant}
    there.write(
        base={"curriculum": {"sft": sft}},
        space={"splitting.tiers": [1, 2], "curriculum.sft.weight_decay": [0.01, 3000.0]},
    )
    out = there.finish_with_failures()
    assert "failed" in out
    rows = {json.dumps(row["params"]): row for row in there.results()["table"]}
    assert len(rows) == 4
    for name, row in rows.items():
        assert row["state"] == ("failed" if "3000" in name else "done")
        assert bool(row["metrics"]) == (row["state"] == "done")
        assert (" is nan at step " in row["reason"] or " is inf at step " in row["reason"]) == (
            row["state"] == "failed"
        )
    before = there.table()
    trained = there.results()["phases_trained"]
    there.finish_with_failures()  # what failed is tried again, and fails again
    assert there.table() == before
    assert trained >= 3
    assert there.results()["phases_trained"] == 0


@pytest.mark.soak
def test_the_disk_is_full(sweep_ready, calm_sweep, small_disk):
    """Others fill it while phases train; space is made, and the same command goes on."""
    there = sweep_ready("grid")
    small_disk(there.place, "300m")  # two phases at a time, with two checkpoints each
    process = there.start()
    there.training(process)
    ballast = there.place.fill_disk(process)
    _, err = there.place.ended(process, 1)
    assert [line.partition(" ")[0] for line in err.splitlines()] == ["error:", "remedy:"]
    assert "is full" in err
    done = there.phases()
    ballast.unlink()
    there.finish()
    assert there.results()["phases_reused"] >= done
    assert there.table() == calm_sweep("grid")
