"""How long a spec takes to compile for a cluster, and how large it becomes: specs/cluster.yaml with twelve phases.

Ends with an error where it takes longer than the limit.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SPEC = Path(__file__).resolve().parents[2] / "pipelines" / "specs" / "cluster.yaml"
TWELVE = ("--set", "splitting={tiers: 10}", "--set", "controls=[one_off, random_tiers, one_off_restarts]")
MEASURED = """
import sys, time
began = time.perf_counter()
from pathlib import Path
from components.common.spec_file import load_spec
from pipelines.phased import compile_pipeline
spec = load_spec(Path(sys.argv[1]), sys.argv[3].split(";"))
compile_pipeline(spec, Path(sys.argv[2]), allow_local=False)
print(time.perf_counter() - began)
"""


def main() -> None:
    """Print the median of compiling with its imports in a new process, and the size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--limit", type=float, default=3.0, help="seconds that the median may take")
    asked = parser.parse_args()
    # The checkout is looked in as with -c, also where nothing is installed.
    found = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SPEC.parents[2]), os.environ.get("PYTHONPATH", "")])}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pipeline.yaml"
        changes = ";".join(TWELVE[1::2])
        # In a file, as the command is: KFP looks at the stack for every setting of a task, and for code without a file
        # (-c) that searches all modules each time, which makes compiling take three times as long.
        program = Path(folder) / "measured.py"
        program.write_text(MEASURED, encoding="utf-8")
        command = [sys.executable, str(program), str(SPEC), str(file), changes]
        seconds = [
            float(subprocess.run(command, check=True, capture_output=True, text=True, env=found).stdout)
            for _ in range(asked.runs)
        ]
        print(f"12 phases, 3 controls: compiled in {statistics.median(seconds):.2f} s (imports included)")
        print(f"from {min(seconds):.2f} to {max(seconds):.2f} s; {file.stat().st_size / 1000:.0f} kB")
    if statistics.median(seconds) > asked.limit:
        raise SystemExit(f"compiling took more than {asked.limit:g} s")


if __name__ == "__main__":
    main()
