"""The order of the examples is a promise: what each worker's trainer really reads, and what comes of sharing it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from components.common.curriculum import sequence
from components.common.examples import read_rows
from components.common.launcher import launch, session
from components.common.models import model_folder
from components.common.records import RunInfo
from components.training.step import find_plan, fit_job, tier_files, tier_ids

SEED = 5
BATCH = 16


@pytest.fixture(scope="module")
def files(full) -> dict[int, Path]:
    """The tiers of the finished run."""
    (split,) = (full.folder / "runs" / "store" / "splits").iterdir()
    return tier_files(split, 3)


@pytest.fixture(scope="module")
def spec(full):
    """The spec of the finished run, with two epochs."""
    spec = RunInfo.from_json((full.folder / "runs" / "small" / "run.json").read_text()).parsed()
    sft = spec.curriculum.sft.model_copy(update={"epochs": 2})
    return spec.model_copy(update={"curriculum": spec.curriculum.model_copy(update={"sft": sft})})


@pytest.fixture(scope="module")
def trained(files, spec, tmp_path_factory):
    """Trains a phase as a run's step does, in a session; returns the ids promised, those read, and the weights."""
    logs = tmp_path_factory.mktemp("ray-logs")

    def train(curriculum: str, workers: int | list[int], **settings: Any) -> dict[str, Any]:
        out = tmp_path_factory.mktemp(curriculum)
        plan = find_plan(spec, curriculum, 1, SEED)
        job = fit_job(spec, plan, files, SEED, model_folder("lab"))
        job["plan"]["settings"].update(settings)
        job["compute"]["workers"] = workers
        job |= {"threads": 2, "order_folder": str(out), "out": str(out / "result")}
        (out / "result").mkdir()
        result, _ = launch("components.training.fit:fit", job=job)
        return {
            "promised": sequence(plan, tier_ids(files), SEED),
            "read": [lines(path, files, plan.tiers) for path in sorted(out.glob("rank-*.jsonl"))],
            "weights": load_file(out / "result" / "model" / "model.safetensors"),
            "steps": result["steps"],
            "learning": result["learning"],
        }

    with session(logs):
        yield train


def lines(path: Path, files: dict[int, Path], tiers: list[int]) -> list[list[str]]:
    """The ids of every micro-batch; the row after the last example is the filler, which teaches nothing."""
    ids = [row["id"] for tier in tiers for row in read_rows(files[tier], ["id"])]
    return [[ids[row] for row in json.loads(line) if row < len(ids)] for line in path.read_text().splitlines()]


def slices(promised: list[str]) -> list[list[str]]:
    return [promised[start : start + BATCH] for start in range(0, len(promised), BATCH)]


@pytest.fixture(scope="module")
def alone(trained):
    return trained("main", 1)


@pytest.fixture(scope="module")
def together(trained):
    return trained("main", 2)


def test_one_worker_reads_what_was_promised(alone):
    assert alone["read"] == [slices(alone["promised"])]
    assert alone["steps"] == len(slices(alone["promised"]))


def test_every_example_is_read_once_in_each_epoch(alone, files):
    (read,) = alone["read"]
    flat = [item for batch in read for item in batch]
    ids = [row["id"] for row in read_rows(files[1], ["id"])]
    assert len(flat) == 2 * len(ids)
    assert sorted(flat[: len(ids)]) == sorted(flat[len(ids) :]) == sorted(ids)
    assert flat[: len(ids)] != flat[len(ids) :]


def test_small_micro_batches_change_nothing_in_the_order(trained):
    parts = trained("main", 1, micro_batch_size=5)
    (read,) = parts["read"]
    assert max(map(len, read)) <= 5
    assert [item for batch in read for item in batch] == parts["promised"]
    assert parts["steps"] == len(slices(parts["promised"]))


def test_all_tiers_at_once_are_read_in_the_promised_mix(trained):
    mix = trained("one_off", 1)
    assert mix["read"] == [slices(mix["promised"])]


def test_two_workers_read_together_what_was_promised(together):
    first, second = together["read"]
    assert [one + other for one, other in zip(first, second, strict=True)] == slices(together["promised"])


def test_as_many_workers_as_there_is_room_for_read_what_was_promised(trained, alone):
    elastic = trained("main", [1, 2])
    assert len(elastic["read"]) in (1, 2)
    together = [[item for part in parts for item in part] for parts in zip(*elastic["read"], strict=True)]
    assert together == slices(elastic["promised"])
    losses = [[point["loss"] for point in result["learning"]] for result in (alone, elastic)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_two_workers_share_every_step_evenly(together):
    first, second = together["read"]
    assert all(len(one) - len(other) in (0, 1) for one, other in zip(first, second, strict=True))


def test_two_workers_learn_the_same(alone, together):
    losses = [[point["loss"] for point in result["learning"]] for result in (alone, together)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_two_workers_end_at_nearly_the_same_weights(alone, together):
    """Sums are rounded in another order, and Adam enlarges that where gradients are tiny: 2% of the way is allowed."""
    start = load_file(model_folder("lab") / "model.safetensors")
    moved = apart = 0.0
    for name, weight in alone["weights"].items():
        moved += float(torch.sum((weight - start[name].float()) ** 2))
        apart += float(torch.sum((weight - together["weights"][name]) ** 2))
    assert moved > 0
    assert (apart / moved) ** 0.5 < 0.02
