"""A sweep on a real MLflow server, and MLflow's pages of it in a real browser.

The pictures lie in SCREENSHOTS where that names a folder, else in build/screenshots.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from urllib.parse import quote

import psutil
import pytest
import yaml

from tests.integration.test_tracking_server import free_port, serve

pytestmark = [pytest.mark.proof, pytest.mark.timeout(900)]
SPACE = {"splitting.tiers": [1, 2], "curriculum.order": "permutations"}
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1400,1100",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--remote-debugging-port=0",
]  # fmt: skip
PATIENCE = 180


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server's URI."""
    yield from serve(tmp_path_factory.mktemp("server"), free_port())


def sweep_file(place, uri, **more):
    place.spec({"tracking": {"uri": uri, "experiment": "sweeps"}}, "base")
    values = {"name": "orders", "base": "base.yaml", "space": SPACE, "slots": 2, **more}
    (place.folder / "sweep.yaml").write_text(yaml.safe_dump(values))
    return "sweep.yaml"


@pytest.fixture(scope="module")
def swept(server, new_place):
    """The place of a sweep that was run, and MLflow's runs of it by kind."""
    from mlflow import MlflowClient

    place = new_place("swept")
    said = place.run("sweep", sweep_file(place, server)).stdout
    assert "warning" not in said
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("sweeps").experiment_id
    runs = client.search_runs([experiment], order_by=["start_time ASC"])
    kinds = {kind: [run for run in runs if run.data.tags["phasetune.kind"] == kind]
             for kind in ("sweep", "trial", "phase")}  # fmt: skip
    return place, client, kinds


def test_the_server_holds_the_sweep_its_trials_and_the_phases_that_it_trained(swept):
    place, client, kinds = swept
    written = json.loads((place.folder / "runs" / "orders" / "sweep.json").read_text())
    (sweep,) = kinds["sweep"]
    assert (len(kinds["trial"]), len(kinds["phase"])) == (3, written["phases_trained"]) == (3, 5)
    assert {run.info.status for runs in kinds.values() for run in runs} == {"FINISHED"}
    assert sweep.data.tags["phasetune.verdict"] == written["verdict"]
    files = {item.path for item in client.list_artifacts(sweep.info.run_id)}
    assert files == {"sweep.json", "sweep.html", "trials.json"}
    by_trial = {row["trial"]: row["metrics"] for row in written["table"]}
    for trial in kinds["trial"]:
        metrics = by_trial[int(trial.data.params["trial"])]
        assert {name: trial.data.metrics[name] for name in metrics} == metrics


def test_the_server_holds_every_point_of_the_curves_once(swept):
    _, client, kinds = swept
    for phase in kinds["phase"]:
        steps = [point.step for point in client.get_metric_history(phase.info.run_id, "train/loss")]
        assert sorted(steps) == list(range(1, int(phase.data.metrics["phase.steps"]) + 1))


class Browser:
    """Chromium, driven by its own protocol."""

    def __init__(self, program, folder):
        import websocket

        command = [program, *FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        told = folder / "profile" / "DevToolsActivePort"
        self.wait(lambda: told.is_file() and "\n" in told.read_text(), "the browser")
        port = told.read_text().split("\n")[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=60) as answer:
            page = next(one for one in json.load(answer) if one["type"] == "page")
        self._socket = websocket.create_connection(page["webSocketDebuggerUrl"], suppress_origin=True, timeout=120)
        self._count = 0

    @staticmethod
    def wait(there, what):
        until = time.monotonic() + PATIENCE
        while not there():
            assert time.monotonic() < until, f"{what} did not come"
            time.sleep(0.2)

    def call(self, method, **params):
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": params}))
        while (answer := json.loads(self._socket.recv())).get("id") != self._count:
            pass
        return answer["result"]

    def ask(self, script):
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def open(self, url, *texts, plots=0):
        """Open a page and wait until it shows the texts and so many plots."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        try:
            self.wait(lambda: all(text in self.text() for text in texts) and self.plots() >= plots, f"{texts}")
        except AssertionError:
            raise AssertionError(f"the page does not show {texts} and {plots} plots, but:\n{self.text()}") from None

    def text(self):
        return self.ask("document.body ? document.body.innerText : ''") or ""

    def plots(self):
        return self.ask("document.querySelectorAll('.js-plotly-plot').length")

    def picture(self, file):
        """Write a picture of the page; returns the number of its colours."""
        import matplotlib.image
        import numpy as np

        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        pixels = (matplotlib.image.imread(file)[..., :3] * 255).astype(np.uint8)
        return len(np.unique(pixels.reshape(-1, 3), axis=0))

    def close(self):
        self._socket.close()
        below = psutil.Process(self._process.pid).children(recursive=True)
        for one in [*below, psutil.Process(self._process.pid)]:
            one.kill()
        self._process.wait()
        psutil.wait_procs(below, timeout=10)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine")
    opened = Browser(program, tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()


def test_the_experiments_page_lists_the_sweep(swept, server, browser, screenshots):
    (sweep,) = swept[2]["sweep"]
    browser.open(f"{server}/#/experiments/{sweep.info.experiment_id}/runs", "orders", "9 matching runs")
    assert browser.picture(screenshots / "mlflow-experiment.png") > 50


def test_the_sweeps_page_shows_its_verdict_and_its_trials(swept, server, browser, screenshots):
    (sweep,) = swept[2]["sweep"]
    verdict = sweep.data.tags["phasetune.verdict"].split(":")[0]
    names = [trial.info.run_name for trial in swept[2]["trial"]]
    browser.open(
        f"{server}/#/experiments/{sweep.info.experiment_id}/runs/{sweep.info.run_id}", "Description", verdict, *names
    )
    assert browser.picture(screenshots / "mlflow-sweep.png") > 50


def test_the_comparison_draws_the_trials_as_parallel_coordinates_of_what_decides(swept, server, browser, screenshots):
    trials = swept[2]["trial"]
    runs, experiments = ([run.info.run_id for run in trials], [trials[0].info.experiment_id])
    url = f"{server}/#/compare-runs?runs={quote(json.dumps(runs))}&experiments={quote(json.dumps(experiments))}"
    browser.open(url, "Comparing 3 Runs", "Parallel Coordinates Plot", "1-2", "2-1", plots=1)
    titles = browser.ask("[...document.querySelectorAll('.js-plotly-plot .axis-title')].map(e => e.textContent)")
    assert "order" in titles
    assert titles[-1] == "verifiable.accuracy"
    assert browser.picture(screenshots / "mlflow-comparison.png") > 50


def test_a_phases_page_draws_its_curves(swept, server, browser, screenshots):
    phase = swept[2]["phase"][0]
    url = f"{server}/#/experiments/{phase.info.experiment_id}/runs/{phase.info.run_id}/model-metrics"
    browser.open(url, phase.info.run_name, "loss", "learning_rate", plots=4)
    drawn = "document.querySelectorAll('.js-plotly-plot .scatterlayer .trace path.js-line').length"
    browser.wait(lambda: browser.ask(drawn) >= 4, "the curves")
    assert browser.picture(screenshots / "mlflow-phase.png") > 50


def test_a_sweep_that_was_killed_goes_on_in_its_run(server, new_place):
    from mlflow import MlflowClient

    place = new_place("killed")
    place.spec({"tracking": {"uri": server, "experiment": "killed"}}, "base")
    values = {"name": "orders", "base": "base.yaml", "space": {"curriculum.order": ["ascending", "descending"]}}
    (place.folder / "sweep.yaml").write_text(yaml.safe_dump(values))
    client, started = MlflowClient(server), place.start("sweep", "sweep.yaml")

    def phases(status):
        found = client.get_experiment_by_name("killed")
        tags = f"tags.`phasetune.kind` = 'phase' and attributes.status = '{status}'"
        return client.search_runs([found.experiment_id], tags) if found else []

    try:
        Browser.wait(lambda: phases("FINISHED") or started.poll() is not None, "a phase")
    finally:
        below = psutil.Process(started.pid).children(recursive=True)
        started.kill()
    started.communicate()
    psutil.wait_procs(below, timeout=60)
    assert started.returncode == -9
    place.run("sweep", "sweep.yaml")
    runs = client.search_runs([client.get_experiment_by_name("killed").experiment_id])
    kinds = [run.data.tags["phasetune.kind"] for run in runs]
    assert (kinds.count("sweep"), kinds.count("trial"), kinds.count("phase")) == (1, 2, 6)
    assert {run.info.status for run in runs} == {"FINISHED"}
    keys = [run.data.tags["phasetune.key"] for run in runs if run.data.tags["phasetune.kind"] == "phase"]
    assert len(set(keys)) == 6
