"""How the steps of a run on a cluster come to know it: the first step begins the run, the others join it.

A pipeline is compiled before any run of it exists, so the context that its steps are given says neither when the run
started nor where MLflow holds it. The first step finds that out once and leaves it in the run's records, where every
later step reads it. The context of a local run is complete, and nothing is read for it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from components.common.errors import UserError
from components.common.machine import machine, versions
from components.common.records import RunInfo, RunRecords
from components.common.tracking import open_parent


def begin(info: RunInfo) -> RunInfo:
    """Open the run's records and its parent in MLflow, as its first step; a repeated first step goes on with both.

    Args:
        info: The run as the step's context gives it.

    Returns:
        The whole of it: the spec with its defaults, the start, the versions, this machine (the first step's, not that
        of the GPUs), and MLflow's ids, empty where MLflow is away.

    Raises:
        UserError: If MLflow refuses the run.
    """
    if info.started:
        return info
    records = RunRecords(info.store, info.run)
    try:
        run = records.info()
    except FileNotFoundError:
        run = replace(
            info,
            spec=info.parsed().model_dump(mode="json"),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=versions(),
            machine=machine(),
        )
        # Before MLflow is asked: a failure there must leave something that the report can be written from.
        records.open(run)
    tracking = run.parsed().tracking
    if tracking.enabled and not run.mlflow.get("run_id"):
        run = replace(run, mlflow=open_parent(tracking, run))
        records.open(run)
    return run


def joined(info: RunInfo) -> RunInfo:
    """The whole of the run that a step's context names.

    Raises:
        UserError: If the run has not begun.
    """
    if info.started:
        return info
    try:
        return RunRecords(info.store, info.run).info()
    except FileNotFoundError as error:
        raise UserError(
            f"the run {info.run} left no record in the store {info.store}: its first step, prepare, did not begin it",
            "see the log of the step prepare; the run and all its steps need the same store",
        ) from error
