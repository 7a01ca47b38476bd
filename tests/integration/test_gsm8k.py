"""GSM8K end to end: difficulty is the number of solution lines, two phases."""

from __future__ import annotations

import json

import pytest

from components.common.examples import read_rows

SHORT = 400
"""Characters of a row that surely fit the lab model's context."""


def subset(source, target, count):
    """Write the first short rows of a file; returns how many solution lines each has."""
    lines = [line for line in source.read_text(encoding="utf-8").splitlines() if len(line) <= SHORT][:count]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [json.loads(line)["answer"].count("\n") for line in lines]


@pytest.fixture(scope="module")
def run(shared_data, new_place):
    place = new_place("gsm8k")
    steps = subset(shared_data / "gsm8k_train.jsonl", place.folder / "train.jsonl", 200)
    held_out = subset(shared_data / "gsm8k_test.jsonl", place.folder / "test.jsonl", 60)
    changes = {
        "data": {
            "train": [{"path": "train.jsonl", "format": "gsm8k"}],
            "held_out": {"fraction": 0.0, "sources": [{"path": "test.jsonl", "format": "gsm8k"}]},
        },
        "scoring": {"method": "column", "column": "difficulty"},
        "splitting": {"tiers": 2, "cut": "thresholds", "thresholds": [3]},
        "curriculum": {"sft": {"epochs": 1, "learning_rate": 1.0e-3, "batch_size": 32, "max_length": 512}},
        "evaluation": {"max_new_tokens": 16, "resamples": 200},
    }
    place.run("run", place.spec(changes))
    return place, steps, held_out


def test_every_row_is_read(run):
    place, steps, held_out = run
    data = place.summary()["data"]
    assert (len(steps), len(held_out)) == (200, 60)
    assert data["rows_in"] == 260
    assert data["examples"] + data["duplicates"] == 260
    assert data["held_out"] == 60


def test_the_difficulty_is_the_number_of_solution_lines(run):
    place, steps, _ = run
    (scores,) = (place.folder / "runs" / "store" / "scores").iterdir()
    found = sorted(row["difficulty"] for row in read_rows(scores / "scores.parquet", ["difficulty"]))
    assert found == sorted(map(float, steps))


def test_the_threshold_makes_the_tiers(run):
    place, steps, _ = run
    assert [phase["examples"] for phase in place.summary()["phases"]] == [
        sum(lines < 3 for lines in steps),
        sum(lines >= 3 for lines in steps),
    ]


def test_every_example_is_trained(run):
    place = run[0]
    for phase in place.summary()["phases"]:
        assert phase["steps"] == -(-phase["examples"] // 32)
        assert phase["truncated"] == 0


def test_the_loss_falls(run):
    summary = run[0].summary()
    before = summary["base"]["metrics"]["loss.nats_per_token"]
    after = summary["phases"][-1]["metrics"]["loss.nats_per_token"]
    assert after < before - 0.1


def test_the_answers_are_verified_by_their_last_number(run):
    place = run[0]
    metrics = place.summary()["base"]["metrics"]
    assert 0.0 <= metrics["verifiable.accuracy"] <= metrics["verifiable.accuracy.high"] <= 0.2


def test_two_workers_are_part_of_the_key(run):
    place = run[0]
    ended = place.run("plan", "small.yaml", "--set", "compute.workers=2")
    assert "2 phases, 0 in the store" in ended.stdout
    assert "2 phases, 2 in the store" in place.run("plan", "small.yaml").stdout
