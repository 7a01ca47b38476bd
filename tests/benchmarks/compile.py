"""How long a spec takes to compile for a cluster, and how large it becomes: specs/cluster.yaml with twelve phases."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SPEC = Path(__file__).resolve().parents[2] / "pipelines" / "specs" / "cluster.yaml"
TWELVE = ("--set", "splitting={tiers: 10}", "--set", "controls=[one_off, random_tiers, one_off_restarts]")
RUNS = 5
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
    """Print the medians: of compiling with its imports in a new process, and of the whole command."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pipeline.yaml"
        changes = ";".join(TWELVE[1::2])
        command = [sys.executable, "-c", MEASURED, str(SPEC), str(file), changes]
        seconds = [
            float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(RUNS)
        ]
        print(f"12 phases, 3 controls: compiled in {statistics.median(seconds):.2f} s (imports included)")
        print(f"from {min(seconds):.2f} to {max(seconds):.2f} s; {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
