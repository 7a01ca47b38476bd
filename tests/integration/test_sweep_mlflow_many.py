"""A sweep of 200 trials on a real MLflow server, in a real browser: its pages must stay usable.

Nothing is trained: phases are made up, and recorded by the tracking that a sweep has. Pictures lie where those of
`test_sweep_mlflow.py` do.
"""

from __future__ import annotations

import json
import re
from urllib.parse import quote

import pytest

from tests.integration.test_sweep_mlflow import browser
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
    tracked.run(tracked.sweep(SPACE, search={"method": "random", "trials": TRIALS}))
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


def test_the_experiments_page_lists_trials(many, server, browser, screenshots):
    (sweep,) = many[0]
    browser.open(f"{server}/#/experiments/{sweep.info.experiment_id}/runs", "matching runs")
    browser.wait(lambda: re.search(r"[1-9]\d* matching runs", browser.text()), "the list")
    assert browser.picture(screenshots / "mlflow-200-experiment.png") > 50


def test_the_sweeps_page_is_there(many, server, browser, screenshots):
    (sweep,) = many[0]
    place = f"{server}/#/experiments/{sweep.info.experiment_id}/runs/{sweep.info.run_id}"
    browser.open(place, "Description", "No winner at this budget")
    assert browser.picture(screenshots / "mlflow-200-sweep.png") > 50


PRESS = """
(name => [...document.querySelectorAll('[role=tab]')].find(one => one.textContent === name)
  .dispatchEvent(new MouseEvent('mousedown', {bubbles: true, button: 0})))
"""
"""Opens a tab of the page, which hears of the button and not of the click."""
POINTS = """
[...document.querySelectorAll('.js-plotly-plot')]
  .flatMap(plot => plot.data || []).filter(trace => trace.type === 'scattergl').map(trace => trace.x.length)[0] || 0
"""


def test_200_trials_are_compared_in_parallel_coordinates_and_in_a_scatter_plot(many, server, browser, screenshots):
    trials = many[1]
    runs, experiments = [run.info.run_id for run in trials], [trials[0].info.experiment_id]
    url = f"{server}/#/compare-runs?runs={quote(json.dumps(runs))}&experiments={quote(json.dumps(experiments))}"
    browser.open(url, f"Comparing {TRIALS} Runs", "Parallel Coordinates Plot", plots=1)
    titles = browser.ask("[...document.querySelectorAll('.js-plotly-plot .axis-title')].map(e => e.textContent)")
    assert {"tiers", "lr"} <= set(titles)
    assert titles[-1] == "verifiable.accuracy"
    assert browser.picture(screenshots / "mlflow-200-coordinates.png") > 50
    browser.ask(f"{PRESS}('Scatter Plot')")
    browser.wait(lambda: browser.ask(POINTS) == TRIALS, "a point for every trial")
    assert browser.picture(screenshots / "mlflow-200-scatter.png") > 50
