"""Tracked sweeps of a world, and what MLflow holds of them: for the tests of their tracking."""

from __future__ import annotations

import io
import json
import os

from components.common.tracking_connect import connect
from pipelines.sweep import Sweeping
from pipelines.sweep_results import results_of, write_results
from pipelines.sweep_run import SweepRun
from pipelines.sweep_space import trials_of
from pipelines.sweep_tracking import SweepTracking
from pipelines.terminal import Terminal
from tests.pipelines import sweep_world

SPACE = {"splitting.tiers": [1, 2], "curriculum.order": "permutations"}
POINTS = [{"step": 1.0, "time": 1.7e9, "loss": 2.0}, {"step": 2.0, "time": 1.7e9 + 3, "loss": 1.5}]


class Tracked:
    """Runs sweeps of a world, and looks at MLflow."""

    def __init__(self, world, uri):
        self.world, self.uri = world, uri
        self.folder = world.folder / "runs" / "s"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.said = ""
        self.hands = self.learning_hands()

    def learning_hands(self):
        class Learning(sweep_world.Hands):
            """Hands whose phases have a learning curve."""

            def _do(self, task, arguments):
                if task.kind != "phases":
                    super()._do(task, arguments)
                    return
                info = {"learning": POINTS, "method": "sft", "examples": 9, "tokens": 90, "steps": 2}
                with self.store.make(task.kind, task.work.key, info) as made:
                    (made / "model").write_text(task.label)
                self.contexts[task.work.key] = json.loads(arguments["context"])

        made = Learning(self.world.store, skill=sweep_world.by_order({"1": 0.2, "1-2": 0.4, "2-1": 0.8}))
        made.contexts = {}
        return made

    def sweep(self, space=SPACE, **more):
        base = {"tracking": {"uri": self.uri, "experiment": "x"}, **more.pop("base", {})}
        return self.world.sweep(space, base, **more)

    def run(self, sweep=None, phases=None):
        """One run of the sweep, as `run_sweep` goes about it but for Tune."""
        sweep = sweep or self.sweep()
        sweeping = Sweeping(sweep, self.folder, sweep.resolved({}), 2)
        sweeping.run_id = f"s-{os.urandom(4).hex()}"
        for params in trials_of(sweep):
            sweeping.new_trial(params)
        heard = io.StringIO()
        try:
            with SweepTracking(sweeping, self.world.store, Terminal(heard, 400)) as tracking:
                run = SweepRun(self.world.store, self.hands, False, tracking.event)
                run.limit(None, phases)
                tracking.begin(run)
                for trial in sweeping.trials:
                    run.ask(trial)
                try:
                    sweep_world.finish(run)
                finally:
                    tracking.results(write_results(results_of(sweep, run, sweeping.trials, []), self.folder))
        finally:
            self.said = heard.getvalue()
        return sweeping

    def runs(self, kind):
        """MLflow's runs of a kind, by name."""
        client = connect(self.uri)
        found = client.search_experiments(filter_string="name = 'x'")
        ids = [one.experiment_id for one in found]
        runs = client.search_runs(ids, f"tags.`phasetune.kind` = '{kind}'", order_by=["start_time ASC"]) if ids else []
        return {f"{run.info.run_name}#{place}" if kind == "sweep" else run.info.run_name: run
                for place, run in enumerate(runs, 1)} if kind != "phase" else runs  # fmt: skip
