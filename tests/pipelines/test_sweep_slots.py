"""The slots of a sweep: on a machine with several GPUs each has its own."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from components.common import launcher
from components.common.spec import ComputeSpec
from pipelines.sweep_chains import Task
from pipelines.sweep_slots import Slots, Where, devices_of
from pipelines.sweep_tree import Work


def task(key: str) -> Task:
    return Task(Work(key, None, 1.0), "phases", "components.training.step:run", {}, {}, key)


def devices(count: int, gpus: int, **compute: object) -> list[str]:
    return devices_of(ComputeSpec.model_validate({"gpus_per_worker": 1, **compute}), count, gpus)


def test_each_slot_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices(4, 4) == ["0", "1", "2", "3"]
    assert devices(3, 2) == ["0", "1", "0"]  # more slots than GPUs were asked for
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 7")
    assert devices(2, 2) == ["5", "7"]


@pytest.mark.parametrize(
    ("gpus", "compute"),
    [(0, {}), (4, {"gpus_per_worker": 0}), (4, {"workers": 2}), (4, {"workers": [1, 2]})],
    ids=["no GPU", "on the CPU", "Ray deals them out", "Ray may deal them out"],
)
def test_no_gpu_is_assigned_where(gpus, compute):
    assert devices(2, gpus, **compute) == []


def test_a_gpu_comes_back_with_its_slot(tmp_path: Path):
    seen: dict[str, str | None] = {}
    go: dict[str, threading.Event] = {key: threading.Event() for key in "abc"}

    def do(one: Task, arguments: dict[str, object]) -> None:
        seen[one.work.key] = launcher.DEVICE.get()
        go[one.work.key].wait(10)

    with Slots(2, tmp_path / "log", Where(do, lambda: None), ["5", "7"]) as slots:
        slots.start(task("a"), {})
        slots.start(task("b"), {})
        go["b"].set()
        assert [one.task.work.key for one in slots.wait(10)] == ["b"]
        slots.start(task("c"), {})
        go["a"].set()
        go["c"].set()
        while slots.free < 2:
            slots.wait(10)
    assert seen == {"a": "5", "b": "7", "c": "7"}


@pytest.mark.parametrize(("device", "visible"), [("7", "7"), (None, "5,7")])
def test_heavy_work_sees_the_gpu_of_its_slot(monkeypatch, device, visible):
    asked = {}

    def exchange(path: str, request: dict, descriptors: list[int], stoppable: bool = False) -> str:
        asked.update(request["environment"])
        return json.dumps({"result": None, "started": 0.0})

    monkeypatch.setenv(launcher.SESSION, "socket")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setattr(launcher, "_exchange", exchange)
    token = launcher.DEVICE.set(device)
    try:
        launcher.launch("components.common.machine:machine")
    finally:
        launcher.DEVICE.reset(token)
    assert asked["CUDA_VISIBLE_DEVICES"] == visible
