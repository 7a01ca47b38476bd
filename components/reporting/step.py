"""The reporting step of a run: from its records to report.html, summary.json and MLflow."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from components.common.joining import joined
from components.common.leaving import release_unfinished
from components.common.progress import Progress
from components.common.records import RunInfo, RunRecords, StepRecord, step_name
from components.common.step import errors_said, process_started
from components.common.tracking import end_parent, sync
from components.reporting.report import write_report

_PAUSES = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
"""Seconds between attempts to reach MLflow at the end of a run on a cluster: its server may be about to start anew."""


def send(info: RunInfo, records: RunRecords, summary: dict[str, Any], out: Path) -> bool:
    """Make MLflow hold what the report does; False, after a warning, where it is away."""
    if not info.mlflow.get("uri"):
        return True
    artifacts = [out / "report.html", out / "summary.json", *sorted((out / "plots").glob("*.png"))]
    return sync(info, records, summary if summary["complete"] else None, artifacts)


def _see_to_the_end(sent: bool, info: RunInfo, records: RunRecords, summary: dict[str, Any], out: Path) -> None:
    """On a cluster nobody asks for the report a second time, and nobody else sees that a run has failed."""
    for pause in _PAUSES:
        if sent:
            break
        time.sleep(pause)
        sent = send(info, records, summary, out)
    if not summary["complete"]:
        end_parent(info, "FAILED")


@errors_said
def run(context: str) -> str:
    """Write the report of a run, also of one that did not finish; returns the path of summary.json.

    A run that names no output folder (on a cluster) gets a temporary one: KFP keeps the page, MLflow all of it.
    """
    started = process_started()
    info = joined(RunInfo.from_json(context))
    if info.on_cluster and "rayjob" in info.parsed().compute.places:
        release_unfinished()  # first: whatever becomes of the report, no GPU works on
    records = RunRecords(info.store, info.run)
    out = Path(info.output_dir or tempfile.mkdtemp(prefix="phasetune-report-"))
    began = time.time()
    Progress("report", 0, "")
    summary = write_report(records, out, started)
    sent = send(info, records, summary, out)
    if info.on_cluster:
        _see_to_the_end(sent, info, records, summary, out)
    seconds, work = time.time() - started, time.time() - began
    step = step_name("report")
    records.write(StepRecord(step, "report", info.run, str(out), False, seconds, seconds - work, {}))
    return str(out / "summary.json")
