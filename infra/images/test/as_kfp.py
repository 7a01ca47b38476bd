"""Runs the first tasks of a compiled pipeline as Kubeflow's launcher does: the container's command, in a new process.

Called inside the image as `python as_kfp.py SPEC TASK...`, the tasks in the order of their edges. It reads the command,
the arguments and the inputs of each task from the compiled YAML, so it needs to know nothing of what the tasks do. It
is no launcher: artifacts, conditions and loops it does not know.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml


def value_of(given: dict[str, Any], made: dict[str, str]) -> Any:
    """An input parameter's value: a constant, or what an earlier task returned."""
    if "runtimeValue" in given:
        constant = given["runtimeValue"]["constant"]
        if isinstance(constant, str):
            return constant.replace("{{$.pipeline_job_uuid}}", "0").replace("{{$.pipeline_job_name}}", "image-test")
        return int(constant) if isinstance(constant, float) and constant.is_integer() else constant
    return made[given["taskOutputParameter"]["producerTask"]]


def run_task(ir: dict[str, Any], task: dict[str, Any], made: dict[str, str], folder: Path) -> str:
    """Run a task's container command; what it returns is its `Output`."""
    component = ir["components"][task["componentRef"]["name"]]
    container = ir["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
    output = folder / "executor_output.json"
    values = {name: value_of(given, made) for name, given in task["inputs"]["parameters"].items()}
    executor_input = {
        "inputs": {"parameterValues": values},
        "outputs": {"parameters": {"Output": {"outputFile": str(folder / "Output")}}, "outputFile": str(output)},
    }
    arguments = [text.replace("{{$}}", json.dumps(executor_input)) for text in container["args"]]
    subprocess.run([*container["command"], *arguments], check=True, cwd=folder)
    returned: str = json.loads(output.read_text(encoding="utf-8"))["parameterValues"]["Output"]
    return returned


def main(spec: str, names: list[str]) -> None:
    """Compile the spec, run the named tasks, print what each returned."""
    place = Path(tempfile.mkdtemp())
    compiled = place / "pipeline.yaml"
    subprocess.run(["phasetune", "compile", spec, "--out", str(compiled), "--allow-local"], check=True)
    ir = next(iter(yaml.safe_load_all(compiled.read_text(encoding="utf-8"))))
    # The tasks may stand below an exit handler, in a graph of their own; their names are the pipeline's all the same.
    graphs = [place["dag"]["tasks"] for place in (ir["root"], *ir["components"].values()) if "dag" in place]
    tasks = {name: task for graph in graphs for name, task in graph.items()}
    made: dict[str, str] = {}
    for name in names:
        folder = place / name
        folder.mkdir()
        made[name] = run_task(ir, tasks[name], made, folder)
        print(f"{name} returned {made[name]}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
