"""A sweep of 200 trials on a real MLflow server, in a real browser: its pages must stay usable.

Nothing is trained: phases are made up, and recorded by the tracking that a sweep has. Pictures lie where those of
`test_sweep_mlflow.py` do.
"""

from __future__ import annotations

import json
import time
from urllib.parse import quote

import pytest

from tests.integration.test_sweep_mlflow import Browser, browser
from tests.integration.test_tracking_server import free_port, serve
from tests.pipelines import sweep_world
from tests.pipelines.sweep_tracked import Tracked

__all__ = ["browser"]
pytestmark = [pytest.mark.proof, pytest.mark.timeout(900)]
TRIALS = 200
SPACE = {
    "splitting.tiers": [1, 2, 3],
    "curriculum.order": "permutations",
    "curriculum.sft.learning_rate": {"log_uniform": [1.0e-4, 3.0e-3]},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server's URI."""
    yield from serve(tmp_path_factory.mktemp("server"), free_port())


@pytest.fixture(scope="module")
def many(server, tmp_path_factory):
    """MLflow's runs of the trials, the best first, and those of the phases."""
    from mlflow import MlflowClient

    tracked = Tracked(sweep_world.World(tmp_path_factory.mktemp("many")), server)
    tracked.hands.skill = lambda order, spec, seed: min(1.0, 0.2 + 200 * spec.curriculum.sft.learning_rate)
    began = time.monotonic()
    tracked.run(tracked.sweep(SPACE, search={"method": "random", "trials": TRIALS}))
    print(f"recorded in {time.monotonic() - began:.0f} s")
    assert "warning" not in tracked.said
    client = MlflowClient(server)
    (experiment,) = client.search_experiments(filter_string="name = 'x'")

    def runs(kind):
        told = f"tags.`phasetune.kind` = '{kind}'"
        return client.search_runs(
            [experiment.experiment_id], told, max_results=1000, order_by=["metrics.`verifiable.accuracy` DESC"]
        )

    return runs("sweep"), runs("trial"), runs("phase")


def test_200_trials_are_all_there_and_their_names_begin_with_their_numbers(many):
    sweeps, trials, phases = many
    assert (len(sweeps), len(trials)) == (1, TRIALS)
    assert len(phases) > TRIALS
    assert sorted(int(trial.info.run_name.split(":")[0]) for trial in trials) == list(range(1, TRIALS + 1))
    assert {trial.data.params["trial"] for trial in trials} == {str(number) for number in range(1, TRIALS + 1)}


def shown(browser, what, url, *texts, **more):
    began = time.monotonic()
    browser.open(url, *texts, **more)
    print(f"{what}: {time.monotonic() - began:.1f} s")


def test_the_experiments_page(many, server, browser, screenshots):
    (sweep,) = many[0]
    shown(browser, "experiment", f"{server}/#/experiments/{sweep.info.experiment_id}/runs", sweep.info.run_name)
    assert browser.picture(screenshots / "mlflow-200-experiment.png") > 50


def test_the_sweeps_page(many, server, browser, screenshots):
    (sweep,) = many[0]
    shown(
        browser, "sweep", f"{server}/#/experiments/{sweep.info.experiment_id}/runs/{sweep.info.run_id}", "Description"
    )
    assert browser.picture(screenshots / "mlflow-200-sweep.png") > 50


def compared(server, trials):
    runs, experiments = [run.info.run_id for run in trials], [trials[0].info.experiment_id]
    return f"{server}/#/compare-runs?runs={quote(json.dumps(runs))}&experiments={quote(json.dumps(experiments))}"


@pytest.mark.parametrize("count", [20, TRIALS])
def test_trials_are_compared_in_parallel_coordinates_and_in_a_scatter_plot(many, server, browser, screenshots, count):
    url = compared(server, many[1][:count])
    shown(browser, f"compare {count}", url, f"Comparing {count} Runs", "Parallel Coordinates Plot", plots=1)
    titles = browser.ask("[...document.querySelectorAll('.js-plotly-plot .axis-title')].map(e => e.textContent)")
    print(titles)
    assert titles[-1] == "verifiable.accuracy"
    assert browser.picture(screenshots / f"mlflow-200-coordinates-{count}.png") > 50
    began = time.monotonic()
    browser.ask("[...document.querySelectorAll('[role=tab]')].find(e => e.textContent === 'Scatter Plot').click()")
    drawn = "document.querySelectorAll('.js-plotly-plot .scatterlayer path.point').length"
    Browser.wait(lambda: browser.ask(drawn) == count, "the points")
    print(f"scatter {count}: {time.monotonic() - began:.1f} s")
    assert browser.picture(screenshots / f"mlflow-200-scatter-{count}.png") > 50


def test_one_phases_curves(many, server, browser, screenshots):
    phase = many[2][0]
    url = f"{server}/#/experiments/{phase.info.experiment_id}/runs/{phase.info.run_id}/model-metrics"
    shown(browser, "phase", url, phase.info.run_name, "loss", plots=1)
    assert browser.picture(screenshots / "mlflow-200-phase.png") > 50
