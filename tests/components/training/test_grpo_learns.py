"""That reinforcement learning works at all: problems that are solved half the time are solved more often afterwards.

The problems are one family of the lab's, and those that are asked were seen by no phase.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.common.curriculum import MAIN, PhasePlan, Portion
from components.common.examples import Example, write_rows
from components.common.generation import sample
from components.common.models import context_length, load_model, load_tokenizer, model_folder
from components.common.paired import paired_difference
from components.common.spec import ModelSpec, Spec
from components.common.spec_phases import GrpoSettings, SftSettings
from components.common.verifiers import verify
from components.lab.generator import generate
from components.training.fit import fit
from components.training.step import fit_job

SEED = 11
STEPS, PROMPTS, SAMPLES = 150, 8, 8
UNSEEN, DRAWN = 400, 8
"""Unseen prompts, and replies drawn to each before and after."""
FAMILY, OPERATIONS = "pipeline", 3


def examples(rows: Iterator[dict[str, Any]]) -> list[Example]:
    return [
        Example(
            messages=(("user", row["prompt"]), ("assistant", row["completion"])),
            answer=row["answer"],
            verifier="exact",
            group=row["group"],
            id=row["id"],
        )
        for row in rows
    ]


def phase(out: Path, method: str, settings: SftSettings | GrpoSettings, model: Path, data: list[Example]) -> Path:
    """Train a phase; returns the folder that it leaves."""
    out.mkdir()
    write_rows(out / "examples.parquet", (example.to_row() for example in data))
    plan = PhasePlan(MAIN, 1, method, method, (Portion((1,), settings.epochs),), "tiers", settings)
    spec = Spec.model_validate({"name": "learns", "seed": SEED, "data": {"train": [{"path": "lab://instructions"}]}})
    job = fit_job(spec, plan, {1: out / "examples.parquet"}, SEED, model)
    (out / "result").mkdir()
    fit({**job, "out": str(out / "result")})
    return out / "result" / "model"


def pass_rates(folder: Path, asked: list[Example]) -> np.ndarray:
    """The share of drawn replies that the verifier accepts, by prompt."""
    model, tokenizer = load_model(folder, ModelSpec(dtype="float32")), load_tokenizer(folder)
    prompts = [example.prompt for example in asked]
    replies = sample(model, tokenizer, prompts, DRAWN, 1.0, 12, 16384, context_length(folder), SEED)
    return np.array(
        [
            np.mean([verify("exact", one, e.answer or "") for one in mine])
            for e, mine in zip(asked, replies, strict=True)
        ]
    )


@pytest.mark.proof
@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_family_solved_half_the_time_is_solved_more_often_on_unseen_problems(tmp_path):
    taught = examples(generate(2400, SEED, 0.0))
    started = phase(
        tmp_path / "sft",
        "sft",
        SftSettings(epochs=2, batch_size=32, learning_rate=1e-3, weight_decay=0.01, max_length=256),
        model_folder("lab"),
        taught,
    )
    groups = {example.group for example in taught}
    fresh: dict[str | None, Example] = {}
    rows = (row for row in generate(30000, SEED + 1, 0.0) if row["family"] == FAMILY and row["steps"] == OPERATIONS)
    for example in examples(rows):
        if example.group not in groups:
            fresh.setdefault(example.group, example)
    unseen, practised = list(fresh.values())[:UNSEEN], list(fresh.values())[UNSEEN : UNSEEN + STEPS * PROMPTS]
    assert len(unseen) >= 300
    before = pass_rates(started, unseen)
    settings = GrpoSettings(
        steps=STEPS, batch_size=PROMPTS, samples=SAMPLES, learning_rate=5e-5, max_new_tokens=12, max_length=256
    )
    after = pass_rates(phase(tmp_path / "grpo", "grpo", settings, started, practised), unseen)
    groups_asked = [str(example.group) for example in unseen]
    gain = paired_difference(after, before, np.ones(len(unseen)), groups_asked, 0.95, 4000, SEED)
    told = {"prompts": len(unseen), "before": before.mean(), "after": after.mean(), "gain": gain.to_dict()}
    print(json.dumps(told, default=float))
    assert 0.4 <= before.mean() <= 0.6
    assert gain.difference >= 0.05
    assert gain.low > 0
