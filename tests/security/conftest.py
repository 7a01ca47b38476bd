"""What the attacks stand on: copies of the lab's model, a trap that shows whether code ran, and a bucket."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.services.moto import point_at


@pytest.fixture
def model(tmp_path: Path, lab_model: Path) -> Path:
    """A copy of the lab's model that a test may poison."""
    return Path(shutil.copytree(lab_model, tmp_path / "model"))


class Trap:
    """Code and pickles that leave a file behind when they are run.

    Attributes:
        mark: The file.
        code: A line of Python.
        pickle: A pickle that runs a command when it is loaded.
    """

    def __init__(self, mark: Path) -> None:
        self.mark = mark
        self.code = f"import pathlib; pathlib.Path({str(mark)!r}).touch()\n"
        self.pickle = f"cos\nsystem\n(S'touch {mark}'\ntR.".encode()

    @property
    def sprung(self) -> bool:
        """Whether any of them was run."""
        return self.mark.exists()


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path / "sprung")


@pytest.fixture
def s3(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of that server, at which the environment points."""
    import boto3

    point_at(monkeypatch, s3_server)
    monkeypatch.setenv("PHASETUNE_CACHE", str(tmp_path / "cache"))
    return boto3.client("s3")


@pytest.fixture
def memory_of() -> Callable[[Callable[[], object]], int]:
    """Gives the most bytes that Python objects made in a call have taken at once."""

    def measured(work: Callable[[], object]) -> int:
        tracemalloc.start()
        try:
            work()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measured
