"""Writes the hash-pinned requirements of the images from pyproject.toml and constraints.txt.

`requirements.lock` holds everything the product needs at run time except torch; `torch.lock` holds torch's published
CUDA build, the packages that only it brings, and those of the extra `quantize`; `torch-cpu.lock` holds torch's CPU
build (a local version, `+cpu`), which is another file with another hash. Every image takes the first and one of the
others. All are complete, so they are installed with `--no-deps`:

    python -m pip install --no-deps --require-hashes -r infra/requirements.lock
    python -m pip install --no-deps --require-hashes -r infra/torch-cpu.lock     # or infra/torch.lock

The CPU build is on no public package index but PyTorch's own, so it is locked from whichever of pip's configured
indexes offers it. Where none does, `torch-cpu.lock` stays as it is, and only its version is compared.

The hashes are of the files for the platform and the Python this script runs on (the images: Linux on x86-64, 3.11).
Nothing is installed: pip resolves, and reports what it would have taken.

Run as `python infra/lock.py [--check]`; `--check` writes nothing and fails where the files are out of date.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;#]+)", re.MULTILINE)
_HEADER = """# Made by infra/lock.py from pyproject.toml and constraints.txt; do not edit.
# {what}
# Install with: python -m pip install --no-deps --require-hashes -r {name}
"""


def canonical(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, str]:
    """The versions that a constraints or requirements file pins, by canonical name."""
    return {canonical(name): version for name, version in _PIN.findall(text)}


def requirements(torch: str) -> list[str]:
    """What the gpu image holds, with torch as its published build: `===` excludes local versions (`+cpu`)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["quantize"]]
    return [f"torch==={torch}" if item == "torch" else item for item in wanted]


def resolve(wanted: list[str]) -> dict[str, tuple[str, list[str]]]:
    """What pip would install into an empty environment under the constraints: version and SHA-256 by name."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        subprocess.run([*command, "--report", report, "-c", ROOT / "constraints.txt", *wanted], check=True)
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {
        canonical(item["metadata"]["name"]): (
            item["metadata"]["version"],
            [item["download_info"]["archive_info"]["hashes"]["sha256"]],
        )
        for item in found
    }


def cpu_torch(torch: str) -> dict[str, tuple[str, list[str]]]:
    """Torch's CPU build alone, as `resolve` gives it; empty where none of pip's indexes offers it."""
    try:
        found = resolve([f"torch=={torch}+cpu"])
    except subprocess.CalledProcessError:
        return {}
    return {name: value for name, value in found.items() if name == "torch"}


def lock_text(name: str, what: str, packages: dict[str, tuple[str, list[str]]]) -> str:
    """A requirements file with hashes, sorted by name."""
    lines = [
        f"{package}=={version} \\\n" + " \\\n".join(f"    --hash=sha256:{value}" for value in hashes)
        for package, (version, hashes) in sorted(packages.items())
    ]
    return _HEADER.format(what=what, name=f"infra/{name}") + "\n".join(lines) + "\n"


def main() -> int:
    """Write the files, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the files are out of date")
    check = parser.parse_args().check
    pinned = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    packages = resolve(requirements(pinned["torch"]))
    # What the constraints do not know came with the CUDA build: they are taken from an environment with the CPU build.
    cuda = {name: value for name, value in packages.items() if name == "torch" or name not in pinned}
    rest = {name: value for name, value in packages.items() if name not in cuda}
    texts = {
        "requirements.lock": ("Everything at run time except torch: that is the base image's, or torch.lock's.", rest),
        "torch.lock": ("The published CUDA build of torch, what only it brings, and packages that want a GPU.", cuda),
    }
    stale = False
    cpu = cpu_torch(pinned["torch"])
    if cpu:
        texts["torch-cpu.lock"] = ("The CPU build of torch, for the image without CUDA.", cpu)
    elif pins((ROOT / "infra" / "torch-cpu.lock").read_text(encoding="utf-8")) != {"torch": f"{pinned['torch']}+cpu"}:
        print("infra/torch-cpu.lock is out of date, and no index here offers torch's CPU build", file=sys.stderr)
        stale = True
    for name, (what, part) in texts.items():
        path, text = ROOT / "infra" / name, lock_text(name, what, part)
        if check and (not path.exists() or path.read_text(encoding="utf-8") != text):
            print(f"infra/{name} is out of date: run python infra/lock.py", file=sys.stderr)
            stale = True
        elif not check:
            path.write_text(text, encoding="utf-8")
            print(f"infra/{name}: {len(part)} packages")
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
