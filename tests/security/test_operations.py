"""docs/operations.md: its links lead somewhere, its commands are the program's, its specs are valid."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.common.spec import Spec

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("operations.md", "security.md")


def text_of(page: str) -> str:
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


def broken_links(text: str, folder: Path) -> list[str]:
    """Relative links to files that are not there, or to headings that their page does not have."""
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        file = folder / name if name else None
        if file is not None and not file.exists():
            found.append(target)
            continue
        if heading:
            page = text if file is None else file.read_text(encoding="utf-8")
            titles = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
            if heading not in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}:
                found.append(target)
    return found


def commands(text: str) -> list[list[str]]:
    """The calls of phasetune in a page, in blocks and between backquotes, as words."""
    blocks = "\n".join(re.findall(r"^ *```\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL))
    inline = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL))
    lines = [*blocks.replace("\\\n", " ").splitlines(), *inline]
    return [shlex.split(line)[1:] for line in lines if line.strip().startswith("phasetune ")]


def unknown(words: list[str]) -> list[str]:
    """What of a call the program does not know: the command, options, and options that lack their value."""
    import typer.main

    from pipelines.cli import app

    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        if not words or words[0] not in command.commands:
            return words[:1] or ["(nothing)"]
        command, words = command.commands[words[0]], words[1:]
    known = {name: one for one in command.params for name in [*one.opts, *one.secondary_opts]}
    found = []
    for place, word in enumerate(words):
        if word.startswith("--"):
            option = known.get(word)
            if option is None:
                found.append(word)
            elif not getattr(option, "is_flag", False) and (place + 1 == len(words) or words[place + 1][:2] == "--"):
                found.append(f"{word} without a value")
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    assert broken_links(text_of(page), ROOT / "docs") == []


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "a.md").write_text("# One title, here\n")
    text = "[a](a.md) [b](b.md) [c](a.md#one-title-here) [d](a.md#two) [e](https://x/y) [f](#three)\n"
    assert broken_links(text, tmp_path) == ["b.md", "a.md#two", "#three"]


def test_commands_are_the_program_s():
    found = commands(text_of("operations.md"))
    assert len(found) > 15
    assert {words[0] for words in found} >= {"submit", "schedule", "status", "cancel", "plan", "store", "validate"}
    assert [(words, wrong) for words in found if (wrong := unknown(words))] == []


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        ("phasetune submit SPEC --wait", []),
        ("phasetune fly SPEC", ["fly"]),
        ("phasetune store fly", ["fly"]),
        ("phasetune submit SPEC --now", ["--now"]),
        ("phasetune schedule SPEC --cron --name x", ["--cron without a value"]),
    ],
)
def test_a_wrong_command_is_found(call, wrong):
    (inline,) = commands(f"As in `{call}`.")
    (block,) = commands(f"1. So:\n   ```\n   {call}\n   ```\n")
    assert unknown(inline) == unknown(block) == wrong


def test_targets_of_make_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", text_of("operations.md"))) <= targets | {"it"}


def test_specs_of_the_page_are_valid_and_fit_a_cluster(tmp_path):
    from pipelines.phased import compile_pipeline

    (block,) = re.findall(r"^```yaml\n(# laptop.yaml\n.*?)^```", text_of("operations.md"), re.MULTILINE | re.DOTALL)
    spec = Spec.model_validate(yaml.safe_load(block))
    compile_pipeline(spec, tmp_path / "pipeline.yaml", allow_local=False)
    head = spec.compute.kubernetes.head
    quota = (ROOT / "k8s/overlays/dev/patches/small-queue.yaml").read_text()
    assert int(head.memory[:-2]) + 3 + 1 <= int(re.search(r"name: memory, nominalQuota: (\d+)Gi", quota)[1])
    assert int(head.cpu) + 1 + 1 <= int(re.search(r'name: cpu, nominalQuota: "(\d+)"', quota)[1])


def test_objects_of_the_page_are_in_the_manifests():
    manifests = "\n".join(path.read_text() for path in (ROOT / "k8s").rglob("*.yaml"))
    named = set(re.findall(r"(?:deployment|cronjob|statefulset|svc)/([a-z0-9-]+)", text_of("operations.md")))
    assert named >= {"mlflow", "postgres", "store-gc"}
    others = {"ml-pipeline", "ml-pipeline-ui", "phasetune-ray-head-svc"}  # Kubeflow's and KubeRay's services
    assert {name for name in named if not re.search(rf"name: {name}\b", manifests)} == others
