"""Reads a Dockerfile: its stages and instructions, what is wrong with them, and what they do without an engine.

It knows the instructions that ours uses, and no heredocs.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    """One instruction: its keyword, its `--name=value` flags, and the rest on one line."""

    keyword: str
    flags: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Stage:
    """A stage: its name (empty where it has none), what it starts from, and its instructions."""

    name: str
    parent: str
    instructions: tuple[Instruction, ...]

    def texts(self, keyword: str) -> list[str]:
        return [item.text for item in self.instructions if item.keyword == keyword]


@dataclass(frozen=True)
class Dockerfile:
    """The arguments before the first stage, with their defaults, and the stages by name."""

    arguments: dict[str, str]
    stages: dict[str, Stage]

    def lineage(self, name: str) -> list[Stage]:
        """A stage and the stages it starts from, the first one first."""
        stage = self.stages[name]
        return [*(self.lineage(stage.parent) if stage.parent in self.stages else []), stage]


def read(text: str) -> Dockerfile:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    arguments: dict[str, str] = {}
    stages: dict[str, Stage] = {}
    for line in re.sub(r"\s*\\\n\s*", " ", "\n".join(lines)).splitlines():
        keyword, _, rest = line.partition(" ")
        words = rest.split(" ")
        count = next((place for place, word in enumerate(words) if not word.startswith("--")), len(words))
        item = Instruction(keyword.upper(), tuple(words[:count]), " ".join(words[count:]))
        if item.keyword == "FROM":
            parent, _, name = item.text.partition(" AS ")
            stages[name or str(len(stages))] = Stage(name, parent, ())
        elif not stages:
            name, _, default = item.text.partition("=")
            arguments[name] = default
        else:
            name = list(stages)[-1]
            stages[name] = Stage(stages[name].name, stages[name].parent, (*stages[name].instructions, item))
    return Dockerfile(arguments, stages)


def commands(text: str) -> list[str]:
    """The commands of a RUN that `&&`, `||`, `;` and `|` join."""
    return [part.strip() for part in re.split(r"&&|\|\||;|\|", text)]


def faults(file: Dockerfile) -> list[str]:
    """What a Dockerfile of ours must not do; empty where all is well."""
    found = []
    for name, default in file.arguments.items():
        if name == "BASE_IMAGE" and not re.search(r":[\w.-]*\d[\w.-]*$|@sha256:", default):
            found.append(f"ARG {name}: {default} may be another image tomorrow")
    for stage in file.stages.values():
        if stage.parent not in file.stages and stage.parent != "${BASE_IMAGE}":
            found.append(f"{stage.name}: starts from {stage.parent}, which no builder can choose")
        for item in stage.instructions:
            found += [f"{stage.name}: {fault}" for fault in _instruction_faults(item)]
    return found


def _instruction_faults(item: Instruction) -> list[str]:
    found = []
    if item.keyword == "ADD":
        found.append(f"ADD {item.text}: it downloads and unpacks by itself")
    if item.keyword == "USER" and not re.fullmatch(r"[1-9]\d*:[1-9]\d*", item.text):
        found.append(f"USER {item.text} is no number: Kubernetes cannot see that it is not root")
    if item.keyword in ("ARG", "ENV") and re.search(r"TOKEN|PASSWORD|SECRET|INDEX_URL|https?://", item.text):
        found.append(f"{item.keyword} {item.text}: it stays in the image's history")
    for command in commands(item.text) if item.keyword == "RUN" else []:
        if re.search(r"\b(curl|wget|git)\s+\S", command) and "apt-get" not in command:
            found.append(f"{command}: a download that nothing pins")
        if re.search(r"\bpip3?\b.* (install|wheel)\b", command):
            hashes = {"--require-hashes", "--no-deps"} <= set(command.split())
            wheel = {"--no-index", "--no-deps"} <= set(command.split())
            if not hashes and not wheel:
                found.append(f"{command}: neither by hash nor from a file alone")
            if hashes and not any("type=secret" in flag for flag in item.flags):
                found.append(f"{command}: without the builder's indexes")
            if "--no-build-isolation" not in command and "--only-binary" not in command and " wheel" in command:
                found.append(f"{command}: an isolated build downloads what nothing pins")
    return found


class Replay:
    """Does in a folder what a stage's COPY and RUN instructions do in an image.

    Absolute places that the Dockerfile names are those below the folder, and secrets are what pip finds by itself.

    Args:
        file: The Dockerfile.
        context: The build's context.
        folder: Stands for `/`; each stage sees the same one, so no two stages may write the same place.
        places: Places of the image that the instructions write.
    """

    def __init__(self, file: Dockerfile, context: Path, folder: Path, places: list[str]) -> None:
        self.file, self.context, self.folder = file, context, folder
        self.place = re.compile(rf"(?<![\w/.])(?={'|'.join(map(re.escape, places))})")

    def here(self, text: str) -> str:
        return self.place.sub(str(self.folder), text)

    def run(self, name: str) -> None:
        """Replay one stage."""
        arguments = dict(self.file.arguments) | self._inherited(name)
        for item in self.file.stages[name].instructions:
            if item.keyword == "ARG":
                key, _, default = item.text.partition("=")
                arguments[key] = default
            elif item.keyword == "ENV":
                arguments |= self._variables(item.text)
            elif item.keyword == "COPY":
                self._copy(item)
            elif item.keyword == "RUN":
                self._run(item.text, arguments)

    def _inherited(self, name: str) -> dict[str, str]:
        """The variables of the stages that a stage begins with."""
        parent = self.file.stages.get(self.file.stages[name].parent)
        if parent is None:
            return {}
        own = [self._variables(item.text) for item in parent.instructions if item.keyword == "ENV"]
        return functools.reduce(dict.__or__, own, self._inherited(parent.name))

    def _variables(self, text: str) -> dict[str, str]:
        """The variables that name places of the replay, PATH for one; others are about the image."""
        pairs = [part.partition("=")[::2] for part in shlex.split(text.replace("\\\n", " "))]
        return {name: os.path.expandvars(self.here(value)) for name, value in pairs if self.place.search(value)}

    def _run(self, text: str, arguments: dict[str, str]) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        ended = subprocess.run(
            ["bash", "-o", "pipefail", "-c", self.here(text)],
            env={**environment, **arguments},
            cwd=self.folder,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, f"{text}\n{ended.stdout[-3000:]}{ended.stderr[-3000:]}"

    def _copy(self, item: Instruction) -> None:
        *sources, target = item.text.split()
        there = Path(self.here(target))
        if any(flag.startswith("--from=") for flag in item.flags):
            (source,) = [Path(self.here(source)) for source in sources]
            if source != there:
                shutil.copytree(source, there, symlinks=True, dirs_exist_ok=True)
            return
        for source in sources:
            for path in sorted(self.context.glob(source)):
                if path.is_dir():
                    shutil.copytree(path, there, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    there.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, there)
