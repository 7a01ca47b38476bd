"""Runs that faults happen to: the real command in processes of its own, stopped at moments that the store shows."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

COMMAND = str(Path(sys.executable).with_name("phasetune"))
MARK = "PHASETUNE_TEST_CHAOS"
"""Every process of a place's runs has the variable with the place's value, also when it is orphaned."""
NAME = "small"
SPEC: dict[str, Any] = {
    "name": NAME,
    "seed": 5,
    "model": {"path": "lab"},
    "data": {"train": [{"path": "lab://instructions?count=240", "name": "lab"}], "held_out": {"fraction": 0.1}},
    "scoring": {"method": "length"},
    "splitting": {"tiers": 2, "cut": "quantiles"},
    "controls": [],
    "evaluation": {"suites": ["loss"], "max_examples": 4, "resamples": 100},
    "tracking": {"enabled": False},
    "compute": {"threads": 1, "checkpoint_every": 5},
}
SFT = {"learning_rate": 1.0e-3, "batch_size": 16, "max_length": 256}
DISTURBED: dict[str, dict[str, Any]] = {
    "sft": {"tiers": [2], "epochs": 10},
    "grpo": {"method": "grpo", "tiers": [2], "steps": 24},
}
"""The second phase, long enough to be disturbed in it."""
IN_TWO: dict[str, dict[str, Any]] = {"sft": {"epochs": 5}, "grpo": {"steps": 16}}
"""The same of two workers, whose steps take longer where others use the cores too."""
GRPO = {"learning_rate": 5.0e-5, "batch_size": 8, "samples": 4, "max_new_tokens": 8}
LONGEST = 200.0
"""Seconds after which an event that does not come is a failure; nothing is measured by it."""


def spec_of(method: str = "sft", workers: int = 1, **changes: Any) -> dict[str, Any]:
    """The spec of a run whose second phase has this method, with top-level keys replaced."""
    disturbed = DISTURBED[method] if workers == 1 else {**DISTURBED[method], **IN_TWO[method]}
    phases = [{"tiers": [1], "epochs": 1}, disturbed]
    compute = {**SPEC["compute"], "workers": workers, "threads": workers}
    curriculum = {"sft": SFT, "grpo": GRPO, "phases": phases}
    return {**SPEC, "curriculum": curriculum, "compute": compute, **changes}


@dataclass(frozen=True)
class Place:
    """A working directory of a user, and the processes of the runs in it."""

    folder: Path
    bucket: Any = None  # a Bucket, where the store is in S3
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def store(self) -> Path:
        return self.folder / "runs" / "store"

    def names(self, below: str = "") -> list[str]:
        """The objects of the store below a folder of it."""
        if self.bucket is not None:
            return sorted(self.bucket.names(below))
        files = (path for path in (self.store / below).rglob("*") if path.is_file())
        return sorted(path.relative_to(self.store).as_posix() for path in files)

    def read(self, name: str) -> bytes:
        """An object of the store."""
        return self.bucket.read(name) if self.bucket is not None else (self.store / name).read_bytes()

    def write(self, spec: dict[str, Any]) -> None:
        """What `start` runs."""
        (self.folder / f"{NAME}.yaml").write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Start `phasetune run` as a shell in a terminal does: in a process group of its own."""
        return subprocess.Popen(
            [COMMAND, *(arguments or ("run", f"{NAME}.yaml"))],
            cwd=self.folder,
            env={**os.environ, "PHASETUNE_HEARTBEAT": "4", MARK: self.mark, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def ended(self, process: subprocess.Popen[str], code: int) -> tuple[str, str]:
        """What a run said, that must end with this code, leave no process and show no traceback."""
        out, err = process.communicate(timeout=LONGEST)
        log = "".join(path.read_text()[-4000:] for path in self.folder.glob("runs/*/run.log"))
        assert process.returncode == code, f"{out}{err}\n{log}"
        assert "Traceback" not in out + err
        self.nothing_runs()
        return out, err

    def again(self, **variables: str) -> str:
        """The same command again, which must go well, wait for nobody, and leave nothing unfinished."""
        out, _ = self.ended(self.start(**variables), 0)
        assert "waiting for" not in out
        self.nothing_unfinished()
        return out

    def nothing_unfinished(self) -> None:
        """No staging folder and no checkpoint, whole or in parts, is left in the store."""
        staged = list(self.folder.rglob(".staging/*"))
        assert staged == [], [(path.name, sorted(item.name for item in path.rglob("*"))) for path in staged]
        assert self.names("checkpoints") == [], self.checkpoints()

    def processes(self) -> list[psutil.Process]:
        """The processes of this place's runs, orphans too."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def nothing_runs(self, seconds: float = 20) -> None:
        """Whatever a run has started ends soon after it, by itself."""
        _, left = psutil.wait_procs(self.processes(), timeout=seconds)
        assert [f"{one.pid} {' '.join(one.cmdline())[:120]}" for one in left] == []

    def trainer(self) -> psutil.Process:
        """The child of the session that trains."""
        found = [one for one in self.processes() if _is_session(one) and _is_session(one.parent())]
        hosts = {one.ppid() for one in self.processes() if "gcs_server" in " ".join(one.cmdline())}
        (trainer,) = [one for one in found if one.pid not in hosts]
        return trainer

    def named(self, *parts: str) -> list[psutil.Process]:
        """The processes whose command line has one of these parts."""
        found = []
        for one in self.processes():
            with contextlib.suppress(psutil.Error):  # it has ended since
                if any(part in " ".join(one.cmdline()) for part in parts):
                    found.append(one)
        return found

    def checkpoints(self) -> dict[str, Any]:
        """The pointer to the disturbed phase's checkpoints: `kept` (newest first) and `unfinished`."""
        # In a folder the pointer is a folder of numbered files of which the highest counts.
        names = [name.split("/") for name in self.names("checkpoints") if "pointer" in name.split("/")]
        for name in sorted(names, key=lambda parts: int(parts[3]) if parts[3:] and parts[3].isdecimal() else 0)[::-1]:
            with contextlib.suppress(FileNotFoundError, ValueError):  # a newer one has taken its place
                return dict(json.loads(self.read("/".join(name))))
        return {"kept": [], "unfinished": []}

    def newest(self) -> int:
        """The step of the newest checkpoint; 0 where there is none."""
        return next((int(item["step"]) for item in self.checkpoints()["kept"]), 0)

    def until(self, process: subprocess.Popen[str], happens: Callable[[], Any], what: str) -> Any:
        """Wait until something happens in a run that goes on; returns what it is."""
        end = time.monotonic() + LONGEST
        while time.monotonic() < end:
            if found := happens():
                return found
            assert process.poll() is None, f"the run ended before {what}: {process.communicate()}"
            time.sleep(0.01 if self.bucket is None else 0.05)
        raise AssertionError(f"{what} did not come")

    def until_step(self, process: subprocess.Popen[str], step: int) -> int:
        """Wait for the checkpoint of a step of the disturbed phase; returns the newest one's."""
        return int(self.until(process, lambda: self.newest() >= step and self.newest(), f"the checkpoint of {step}"))

    def events(self) -> list[dict[str, Any]]:
        """What the steps of the run under way have said so far."""
        files = self.folder.glob(f"runs/{NAME}/.events*")
        return [json.loads(line) for file in files for line in file.read_text().splitlines(True) if line[-1] == "\n"]

    def record(self, step: str = "train.main.2.s5") -> dict[str, Any]:
        """A step's record of the last run that finished it."""
        names = [name for name in self.names("runs") if name.endswith(f"/{step}.json")]
        return dict(json.loads(self.read(names[-1])))  # a run's name begins with its time

    def resumed(self) -> int:
        """The step that the disturbed phase went on from when it was finished; it must have been trained then."""
        record = self.record()
        assert not record["reused"]
        assert [point["step"] for point in record["info"]["learning"]] == list(range(1, record["info"]["steps"] + 1))
        return int(record["info"]["resumed_at"])

    def fill_disk(self, process: subprocess.Popen[str]) -> Path:
        """Fill the store's disk, as others may, until a run has ended; returns the file that does it."""
        ballast = self.store / "ballast"
        with ballast.open("wb", buffering=0) as file:
            while process.poll() is None:
                try:
                    file.write(b"x" * 2**20)
                except OSError:  # full; what the run frees is taken too
                    time.sleep(0.01)
        return ballast

    def weights(self) -> dict[str, str]:
        """SHA-256 of every phase's weights, by the phase's key."""
        files = [name for name in self.names("phases") if name.endswith("/model/model.safetensors")]
        return {name.split("/")[1]: hashlib.sha256(self.read(name)).hexdigest() for name in files}


def _is_session(process: psutil.Process | None) -> bool:
    with contextlib.suppress(psutil.Error):
        return process is not None and "components.common.session" in process.cmdline()
    return False
