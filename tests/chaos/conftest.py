"""Places to disturb runs in.

A run trains a short phase and then the one that is disturbed. What comes before the disturbed phase is made once for
all tests and copied, so a test begins where it matters; the weights of the undisturbed run are what every test ends at.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.chaos import sweep_places
from tests.chaos.disturbances import Bucket, Disturbance, way_to
from tests.chaos.places import Place, spec_of
from tests.services.moto import point_at


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Place]:
    """Finished runs that nothing happened to, one for each method and number of workers."""
    made: dict[tuple[str, int], Place] = {}

    def make(method: str = "sft", workers: int = 1) -> Place:
        if (method, workers) not in made:
            place = Place(tmp_path_factory.mktemp(f"calm-{method}-{workers}"))
            place.write(spec_of(method, workers))
            place.again()
            assert len(place.weights()) == 2
            made[method, workers] = place
        return made[method, workers]

    return make


@pytest.fixture
def new_place(tmp_path: Path) -> Iterator[Callable[..., Place]]:
    """Makes empty working directories; at the test's end nothing runs in them."""
    made: list[Place] = []

    def make(bucket: Any = None) -> Place:
        folder = tmp_path / f"place-{len(made)}"
        folder.mkdir()
        made.append(Place(folder, bucket))
        return made[-1]

    yield make
    left = [process for place in made for process in place.processes()]
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=10)
    assert not left, f"left running: {left}"


@pytest.fixture
def ready(calm: Callable[..., Place], new_place: Callable[..., Place]) -> Callable[..., Place]:
    """Makes working directories in which all but the disturbed phase is done; a run goes straight to it."""

    def make(method: str = "sft", workers: int = 1, **changes: Any) -> Place:
        finished, place = calm(method, workers), new_place()
        place.write(spec_of(method, workers, **changes))
        shutil.copytree(finished.store, place.store)
        key = finished.record()["key"]
        shutil.rmtree(place.store / "phases" / key)
        shutil.rmtree(place.store / "evaluations" / finished.record("evaluate.main.2.s5")["key"])
        shutil.rmtree(place.store / "runs")
        assert len(place.weights()) == 1
        return place

    return make


@pytest.fixture
def in_s3(
    s3_server: str, new_place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Disturbance], Place]]:
    """Makes working directories with their stores in S3, to which runs go by a way that is disturbed."""
    with contextlib.ExitStack() as ways:

        def make(disturbance: Disturbance) -> Place:
            point_at(monkeypatch, ways.enter_context(way_to(s3_server, disturbance)))
            monkeypatch.setenv("NO_PROXY", "127.0.0.1")
            place = new_place(Bucket(s3_server, uuid.uuid4().hex))
            monkeypatch.setenv("PHASETUNE_CACHE", str(place.folder / "cache"))
            return place

        yield make


@pytest.fixture
def small_disk() -> Iterator[Callable[[Place, str], None]]:
    """Puts a place's store on a disk of its own, of a size such as `200m`."""
    mounted: list[Path] = []

    def move(place: Place, size: str) -> None:
        aside = place.store.rename(place.store.with_name("aside"))
        place.store.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place.store)]
        if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("a small disk can be mounted only by a privileged user")
        mounted.append(place.store)
        subprocess.run(["cp", "-a", f"{aside}/.", str(place.store)], check=True)
        subprocess.run(["rm", "-r", str(aside)], check=True)

    yield move
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="session")
def _calm_sweeps(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Sweeps that nothing happened to."""
    made: dict[str, Any] = {}

    def make(kind: str) -> Any:
        if kind not in made:
            made[kind] = sweep_places.SweepPlace(Place(tmp_path_factory.mktemp(f"calm-{kind}")))
            made[kind].write(kind)
            made[kind].finish()
            made[kind].place.nothing_unfinished()
        return made[kind]

    return make


@pytest.fixture
def calm_sweep(_calm_sweeps: Callable[[str], Any]) -> Callable[[str], dict[str, Any]]:
    """The tables of undisturbed sweeps."""
    return lambda kind: dict(_calm_sweeps(kind).table())


@pytest.fixture
def sweep_ready(_calm_sweeps: Callable[[str], Any], new_place: Callable[..., Place]) -> Callable[[str], Any]:
    """Makes folders with a sweep whose data are prepared and scored, and nothing else is done."""

    def make(kind: str) -> Any:
        there = sweep_places.SweepPlace(new_place())
        there.write(kind)
        for done in ("prepared", "scores"):
            shutil.copytree(_calm_sweeps(kind).place.store / done, there.place.store / done)
        return there

    return make
