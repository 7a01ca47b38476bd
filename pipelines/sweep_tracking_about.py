"""A sweep and its trials as MLflow shows them: names, parameters, the table, and how they ended."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from components.common.curriculum import MAIN, expand
from components.common.digests import digest
from components.common.tracking_runs import flat_parameters
from components.common.tracking_sweep import Status, SweepAbout, SweepEnd, TrialAbout
from pipelines.sweep_run import Trial
from pipelines.sweep_screen import described

if TYPE_CHECKING:
    from pipelines.sweep import Sweeping

_COUNTS = (
    "trials",
    "merged_trials",
    "phases_requested",
    "phases_distinct",
    "phases_trained",
    "phases_reused",
    "seconds",
    "slot_seconds",
)
_SETTINGS = {"learning_rate": "lr", "epochs": "epochs", "batch_size": "batch_size"}
_SHORT = {
    "splitting.tiers",
    "splitting.cut",
    "curriculum.order",
    "scoring.method",
    *(f"curriculum.sft.{name}" for name in _SETTINGS),
}
"""Keys that have a short name: twice in MLflow's parallel coordinates, they would leave no room for the others."""


def sweep_about(sweeping: Sweeping) -> SweepAbout:
    """What identifies the sweep, and its parameters."""
    spec = sweeping.sweep.spec
    return SweepAbout(
        spec.name,
        sweeping.run_id,
        sweep_digest(sweeping),
        sweeping.base.tracking.experiment,
        flat_parameters(spec.model_dump(mode="json", exclude={"name"})),
    )


def sweep_digest(sweeping: Sweeping) -> str:
    """Of what determines the trials: a sweep whose budget or slots were changed goes on with the same."""
    sweep = sweeping.sweep.spec.model_dump(mode="json", exclude={"budget", "slots"})
    return digest({"sweep": sweep, "base": sweeping.base.model_dump(mode="json", exclude={"tracking"})})


def trial_about(trial: Trial, seed: int) -> TrialAbout:
    """A trial's name and parameters: what curricula differ in, by short names, and what this sweep varies.

    Args:
        trial: The trial.
        seed: The base spec's; the name of a trial with another one tells it.
    """
    main = next(one for one in expand(trial.spec, trial.seed) if one.name == MAIN)
    settings = [plan.settings.model_dump(mode="json") for plan in main.phases]
    params = {
        "trial": str(trial.number),
        "seed": str(trial.seed),
        "tiers": str(trial.spec.splitting.tiers),
        "order": "-".join("+".join(map(str, plan.tiers)) or plan.method for plan in main.phases),
        "scorer": trial.spec.scoring.method,
        "cut": trial.spec.splitting.cut,
        "methods": "+".join(dict.fromkeys(plan.method for plan in main.phases)),
    }
    for name, short in _SETTINGS.items():
        values = dict.fromkeys(json.dumps(one[name]) for one in settings if one.get(name) is not None)
        params[short] = ", ".join(values)
    varied = {key: value for key, value in trial.params.items() if key not in _SHORT}
    return TrialAbout(trial.info, trial_name(trial, seed), {**params, **flat_parameters(varied)})


def trial_name(trial: Trial, seed: int) -> str:
    """What MLflow's list of runs shows of a trial: `3: tiers 2, order 2-1`, of a repetition also its seed."""
    other = "" if trial.seed == seed else f" (seed {trial.seed})"
    return f"{trial.number}: {described(trial.params)}"[:230] + other


def _row(row: dict[str, Any], objective: str) -> dict[str, Any]:
    """A trial in the table of the sweep's page in MLflow."""
    metrics = row["metrics"]
    values = {name: metrics.get(name) for name in (objective, f"{objective}.low", f"{objective}.high")}
    return {
        "trial": row["trial"],
        **flat_parameters(row["params"]),
        **values,
        "tokens": row["tokens"],
        "state": row["state"],
    }


def _counted(written: dict[str, Any]) -> str:
    return (
        f"{written['trials']} trials, {written['merged_trials']} merged into others; {written['phases_requested']} "
        f"phases asked for, {written['phases_distinct']} distinct, {written['phases_trained']} trained."
    )


def sweep_end(
    sweeping: Sweeping, written: dict[str, Any], states: Sequence[str], error: BaseException | None
) -> SweepEnd:
    """What the sweep's run in MLflow shows at its end.

    Args:
        sweeping: The sweep.
        written: What sweep.json holds; nothing where it was not written.
        states: Of its trials.
        error: What ended it early.
    """
    status: Status = "FINISHED"
    if error is not None:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
    elif "running" in states:
        status = "KILLED"  # its budget ended it, and another run goes on with it
    elif "done" not in states:
        status = "FAILED"
    folder = sweeping.folder
    if not written:
        return SweepEnd(status, {})
    objective = sweeping.sweep.spec.objective.name
    counts = {name: float(written[name]) for name in _COUNTS}
    if (compared := written["contest"]) is not None:  # as the verdict says, so without the seed that chose
        counts[objective] = next(one["value"] for one in compared["candidates"] if one["trial"] == compared["leader"])
    files = [path for path in (folder / "sweep.json", folder / "sweep.html") if path.is_file()]
    rows = [_row(row, objective) for row in written["table"]]
    note = "\n\n".join([*written["sentences"], _counted(written)])
    return SweepEnd(status, counts, written["verdict"], note, rows, files)
