"""What a step costs that finds its result in an S3 store: a real `train` and `evaluate`, each in a new process.

The S3 server is moto's, in a process of its own. The process's cache is empty each time, as a pod's is. Told are the
seconds of the process from its start to its end, and those that the step itself records. It ends with an error where a
step's own time is longer than the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STORE = "s3://bench/store"
SPEC: dict[str, Any] = {
    "name": "reused",
    "seed": 1,
    "data": {"train": [{"path": "lab://instructions?count=600"}], "held_out": {"fraction": 0.2}},
    "scoring": {"method": "length"},
    "splitting": {"tiers": 2},
    "curriculum": {"sft": {"epochs": 1, "batch_size": 32, "max_length": 256}},
    "controls": [],
    "evaluation": {"suites": ["loss"], "resamples": 100},
    "tracking": {"enabled": False},
    "compute": {"threads": 2},
    "store": STORE,
}
CALL = """
import json, sys
from kfp import dsl
from components.{stage}.component import {name} as component
given = json.loads(sys.argv[1])
kinds = {{"checkpoint": dsl.Model, "metrics": dsl.Metrics}}
for key, kind in kinds.items():
    if key in component.python_func.__annotations__:
        given[key] = kind(name=key, uri="memory", metadata={{}})
print(component.python_func(**given))
"""


def call(stage: str, name: str, folder: Path, **given: Any) -> tuple[str, float]:
    """Call a component in a new process with an empty cache; returns its output and the process's seconds."""
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        command = [sys.executable, "-c", CALL.format(stage=stage, name=name), json.dumps(given)]
        began = time.perf_counter()
        ended = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "PHASETUNE_CACHE": cache}
        )
        return ended.stdout.strip().splitlines()[-1], time.perf_counter() - began


def one_run(run: str, folder: Path) -> dict[str, float]:
    """The seconds of each step of a run, by the process's clock."""
    from components.common.records import RunInfo
    from components.common.spec import Spec
    from components.common.spec_file import spec_digest

    spec = Spec.model_validate(SPEC)
    info = RunInfo(run, spec.name, spec.model_dump(mode="json"), spec_digest(spec), STORE, "", "2026-01-01")
    context, where = info.to_json(), {"curriculum": "main", "index": 1, "seed": spec.seed}
    seconds: dict[str, float] = {}
    prepared, seconds["prepare"] = call("preparing", "prepare", folder, context=context)
    scored, seconds["score"] = call("scoring", "score", folder, context=context, prepared=prepared)
    tiers, seconds["split"] = call("splitting", "split", folder, context=context, scores=scored, seed=spec.seed)
    phase, seconds["train"] = call(
        "training", "train", folder, context=context, split=tiers, parent="", data="", **where
    )
    _, seconds["evaluate"] = call("evaluation", "evaluate", folder, context=context, split=tiers, phase=phase, **where)
    return seconds


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


def tell(step: str, times: list[float]) -> float:
    """Print what a step took in each of the runs that found its result; returns the median by its own record."""
    from components.common.records import RunRecords

    record = f"{step}.main.1.s1" if step in ("train", "evaluate") else f"{step}.s1" if step == "split" else step
    told = [RunRecords(STORE, f"again-{number}").read(record) for number in range(len(times))]
    assert all(one is not None and one.reused for one in told)
    own = statistics.median(one.seconds for one in told if one is not None)
    print(
        f"{step:8}  reused: process {statistics.median(times):.2f} s "
        f"({min(times):.2f} to {max(times):.2f}), by its own record {own:.2f} s"
    )
    return own


def main() -> None:
    """Make everything once, then measure runs that find it all."""
    import boto3

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--limit", type=float, default=5.0, help="seconds that the median of a step's own time may be")
    asked = parser.parse_args()
    port = free_port()
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_DEFAULT_REGION": "us-east-1",
        "HF_HUB_OFFLINE": "1",
    }
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        boto3.client("s3").create_bucket(Bucket="bench")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            one_run("first", folder)
            found = [one_run(f"again-{number}", folder) for number in range(asked.runs)]
        longest = max(tell(step, [seconds[step] for seconds in found]) for step in found[0])
    finally:
        server.terminate()
        server.wait()
    if longest > asked.limit:
        raise SystemExit(f"a reused step took more than {asked.limit:g} s of its own")


if __name__ == "__main__":
    main()
