"""The command: its help, how fast it answers, and the page of the spec."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from pipelines import spec_page
from pipelines.cli import app

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ["run", "plan", "validate", "score", "split", "train", "evaluate", "report", "compile", "sweep",
            "compare", "submit", "schedule", "status", "cancel", "ui", "lab", "store"]  # fmt: skip
HEAVY = ("torch", "transformers", "trl", "ray", "mlflow", "kfp", "pandas", "pyarrow", "numpy", "pydantic", "matplotlib")


def phasetune(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("phasetune")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_commands():
    assert list(get_command(app).commands) == COMMANDS


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom pipelines.cli import main\nsys.argv = ['phasetune', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nprint(sorted(sys.modules), file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "phases" in ended.stdout
    assert [name for name in HEAVY if f"'{name}'" in ended.stderr] == []


def test_help_names_every_command_with_a_phrase():
    ended = phasetune("--help")
    assert ended.returncode == 0
    lines = [line.strip("│ ") for line in ended.stdout.splitlines()]
    for name in COMMANDS:
        assert any(line.startswith(f"{name} ") and len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_a_help_text(name):
    command = get_command(app).commands[name]
    assert command.help
    assert [item.name for item in command.params if not getattr(item, "help", None) and item.name != "help"] == []


def test_no_command_is_the_help():
    ended = phasetune()
    assert "Usage: phasetune" in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_page_of_the_spec_is_up_to_date():
    assert (ROOT / "docs" / "spec.md").read_text(encoding="utf-8") == spec_page.page()


def test_the_page_names_every_key_once():
    keys = [line.split("`")[1] for line in spec_page.page().splitlines() if line.startswith("| `")]
    assert len(keys) == len(set(keys))
    assert {"name", "data.train[].path", "curriculum.sft.learning_rate", "evaluation.max_new_tokens"} <= set(keys)


def test_the_page_says_what_phases_may_set_and_what_patterns_allow():
    rows = {line.split("`")[1]: line for line in spec_page.page().splitlines() if line.startswith("| `")}
    assert "| `last`, `best(loss)`, `best(accuracy)` |" in rows["curriculum.sft.select"]
    assert rows["curriculum.phases[].beta"].endswith("As `curriculum.<method>.beta`, of dpo and grpo only. |")
    assert rows["curriculum.phases[].samples"].endswith("As `curriculum.grpo.samples`, of grpo only. |")
    assert "curriculum.then[].name" not in rows and "`curriculum.phases[]`" in rows["curriculum.then"]
    assert "(≥ 1)" in rows["curriculum.sft.micro_batch_size"]
