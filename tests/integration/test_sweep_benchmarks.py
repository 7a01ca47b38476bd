"""The benchmarks of sweeps in small: they run, train what they should, and come to the same metrics."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import sweep_simulation as simulation

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.proof
@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_sweep_trains_the_distinct_phases_only_and_is_a_plain_one_to_the_last_digit(tmp_path):
    """The script itself ends with an error where a metric differs."""
    command = [sys.executable, str(BENCHMARKS / "sweep.py"), "--small", "--out", str(tmp_path / "out.json")]
    command += ["--measured", str(tmp_path / "measured.json")]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=800).stdout
    orders, followed = json.loads((tmp_path / "out.json").read_text())
    assert [orders[name] for name in ("trials", "asked", "distinct", "trained", "trained_again")] == [7, 19, 16, 16, 0]
    assert [followed[name] for name in ("trials", "asked", "distinct", "trained", "trained_again")] == [4, 12, 8, 8, 0]
    assert said.count("the same metrics to the last digit") == 2
    assert len(json.loads((tmp_path / "measured.json").read_text())["ratios"]) == 16


@pytest.mark.parametrize("losses", [0.0, 0.01, 0.5])
def test_nothing_is_lost_or_trained_twice_and_the_makespan_is_near_its_bound(losses):
    """Work / workers is more than ten times the longest path."""
    found = simulation.simulate(200, 10, losses=losses)
    assert found.work / found.workers > 10 * found.longest
    assert found.makespan <= 1.1 * found.bound
    assert (found.losses > 0) == (losses > 0)


def test_few_trials_on_many_workers_take_as_long_as_the_longest_path():
    found = simulation.simulate(10, 1000, losses=0.0)
    assert found.makespan == pytest.approx(found.longest)


def test_a_plot_is_written(tmp_path):
    simulation.plot([simulation.simulate(20, 4), simulation.simulate(40, 4)], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
