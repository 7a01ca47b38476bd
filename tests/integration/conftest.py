"""The installed `phasetune` command, run as a user runs it, and the finished runs that many tests look at."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.integration import ray_head as rays

COMMAND = str(Path(sys.executable).with_name("phasetune"))
SMALL: dict[str, Any] = {
    "name": "small",
    "seed": 5,
    "model": {"path": "lab"},
    "data": {"train": [{"path": "lab://instructions?count=240", "name": "lab"}], "held_out": {"fraction": 0.25}},
    "scoring": {"method": "column"},
    "splitting": {"tiers": 3, "cut": "quantiles"},
    "curriculum": {
        "sft": {"epochs": 1, "learning_rate": 2.0e-3, "batch_size": 16, "weight_decay": 0.01, "max_length": 256}
    },
    "controls": [],
    "evaluation": {"max_new_tokens": 8, "resamples": 200},
    "compute": {"threads": 1},
}
"""A run of a few seconds: 240 instructions, one epoch, one thread (two processes of two threads on two cores crawl)."""


@dataclass(frozen=True)
class Place:
    """A working directory of a user."""

    folder: Path

    def spec(self, changes: dict[str, Any] | None = None, name: str = "small") -> str:
        """Write SMALL with top-level keys replaced; returns the file's name."""
        values = {**SMALL, "name": name, **(changes or {})}
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        return f"{name}.yaml"

    def run(
        self, *arguments: str | Path, code: int = 0, timeout: float = 300, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `phasetune` here to its end, which must be this exit code."""
        command = [COMMAND, *map(str, arguments)]
        ended = subprocess.run(
            command, cwd=self.folder, env={**os.environ, **variables}, capture_output=True, text=True, timeout=timeout
        )
        log = (
            "".join(path.read_text()[-3000:] for path in self.folder.glob("runs/*/run.log")) if ended.returncode else ""
        )
        assert ended.returncode == code, f"{command} ended with {ended.returncode}\n{ended.stdout}{ended.stderr}{log}"
        return ended

    def start(self, *arguments: str | Path, **variables: str) -> subprocess.Popen[str]:
        """Start `phasetune` here as a shell in a terminal does: in a process group of its own."""
        return subprocess.Popen(
            [COMMAND, *map(str, arguments)],
            cwd=self.folder,
            env={**os.environ, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def summary(self, name: str = "small") -> dict[str, Any]:
        """A run's summary.json."""
        return json.loads((self.folder / "runs" / name / "summary.json").read_text(encoding="utf-8"))

    def entries(self) -> set[str]:
        """The finished results of the store, as `kind/key`."""
        store = self.folder / "runs" / "store"
        return {path.parent.relative_to(store).as_posix() for path in store.glob("*/*/manifest.json")}

    def weights(self) -> dict[str, str]:
        """SHA-256 of every phase's weights, by the phase's key."""
        files = (self.folder / "runs" / "store" / "phases").glob("*/model/model.safetensors")
        return {path.parts[-3]: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """Where the browser tests' pictures of pages stay: the folder that SCREENSHOTS names, else build/screenshots."""
    folder = Path(os.environ.get("SCREENSHOTS") or Path(__file__).parents[2] / "build" / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The Ray cluster that drivers find themselves in, and an S3 server that its processes know."""
    folder = tmp_path_factory.mktemp("head")
    with rays.s3_server(folder) as variables:
        head = rays.Head({**variables, "PHASETUNE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"})
        try:
            head.start()
            yield head
        finally:
            head.kill()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """An empty working directory."""
    return Place(tmp_path)


@pytest.fixture(scope="session")
def new_place(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Place]:
    """Makes working directories that live as long as the session."""
    return lambda name: Place(tmp_path_factory.mktemp(name))


@pytest.fixture(scope="session")
def full(new_place: Callable[[str], Place]) -> Place:
    """A finished run with every control. Tests look at it; only its own module adds to its store."""
    place = new_place("full")
    controls = ["one_off", "random_tiers", "hardest_only", {"only": [1, 2]}, "one_off_restarts"]
    place.run("run", place.spec({"controls": controls}))
    return place


@pytest.fixture(scope="session")
def gone() -> Callable[[list[psutil.Process], float], list[str]]:
    """Waits for processes to end; returns what is left of them."""

    def wait(processes: list[psutil.Process], seconds: float) -> list[str]:
        _, left = psutil.wait_procs(processes, timeout=seconds)
        return [" ".join(process.cmdline()) for process in left if process.status() != psutil.STATUS_ZOMBIE]

    return wait
