"""The plan of a run beside the run: phases of every kind have the keys that the plan says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

PHASES = [{"tiers": [1]}, {"tiers": [2], "carry": "optimizer"}]
FURTHER = [
    {"method": "dpo", "data": [{"path": "lab://preferences?count=40", "name": "pairs"}]},
    {"method": "grpo", "steps": 2, "data": [{"path": "lab://instructions?count=40&draw=2", "name": "prompts"}]},
    {"method": "dpo", "tiers": [1], "generate": {"samples": 4, "max_new_tokens": 8}},
    {"method": "grpo", "tiers": [2], "steps": 1, "rewards": ["exact"]},
]
SPEC = {
    "name": "kinds",
    "seed": 5,
    "data": {"train": [{"path": "lab://instructions?count=160", "name": "lab"}], "held_out": {"fraction": 0.25}},
    "scoring": {"method": "column"},
    "splitting": {"tiers": 2},
    "curriculum": {
        "sft": {"epochs": 1, "learning_rate": 2.0e-3, "batch_size": 16, "max_length": 256},
        "dpo": {"batch_size": 8, "max_length": 256, "select": "best(loss)"},
        "grpo": {"batch_size": 4, "samples": 2, "max_new_tokens": 8, "max_length": 256},
        "phases": PHASES,
    },
    "controls": [],
    "evaluation": {"suites": ["loss"], "max_new_tokens": 8, "resamples": 200},
    "tracking": {"enabled": False},
    "compute": {"threads": 1},
}


def phasetune(folder: Path, command: str, spec: dict) -> str:
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    program = str(Path(sys.executable).with_name("phasetune"))
    ended = subprocess.run([program, command, "spec.yaml"], cwd=folder, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def rows(shown: str) -> list[list[str]]:
    """Of the table of phases: curriculum, phase, key, method, tokens, steps, memory, time, stored."""
    lines = shown.split("phases and controls")[1].splitlines()[2:]
    return [re.split(r"\s{2,}", line.strip()) for line in lines if re.match(r"main .*(yes|no)\s*$", line)]


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_the_plan_s_keys_are_the_run_s_for_phases_of_every_kind(tmp_path):
    phasetune(tmp_path, "run", SPEC)
    longer = {**SPEC, "curriculum": {**SPEC["curriculum"], "phases": [*PHASES, *FURTHER]}}
    before = rows(phasetune(tmp_path, "plan", longer))
    assert [row[-1] for row in before] == ["yes", "yes", "no", "no", "no", "no"]
    assert [row[2] for row in before[2:]] == [
        "after preparing its data",
        "after preparing its data",
        "after phase 3",
        "after phase 3",
    ]
    phasetune(tmp_path, "run", longer)
    after = rows(phasetune(tmp_path, "plan", longer))
    assert [row[-1] for row in after] == ["yes"] * 6
    assert after[:2] == before[:2]
    assert [after[3][5], after[5][5]] == ["2", "1"]
    names = [path.name for path in (tmp_path / "runs" / "store" / "phases").iterdir()]
    assert sorted(row[2] for row in after) == sorted(name[:12] for name in names)

    slower = {**SPEC, "curriculum": {**SPEC["curriculum"], "sft": {**SPEC["curriculum"]["sft"], "learning_rate": 1e-3}}}
    timed = rows(phasetune(tmp_path, "plan", slower))
    assert [row[-1] for row in timed] == ["no", "no"]
    assert all(re.fullmatch(r"\d+ (s|min)", row[7]) for row in timed)
