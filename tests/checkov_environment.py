"""checkov in a virtual environment of its own: it pins an old boto3 and packaging, which the product cannot share.

The environment is made once for each list of requirements, and kept below the checkout (`.cache/checkov-<digest>`).
Making it takes half a minute and asks the package index; a check itself asks nobody.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

REQUIREMENTS = Path(__file__).with_name("checkov.txt")
INSTALL_SECONDS, CHECK_SECONDS = 400, 200

Checkov = Callable[..., list[dict[str, Any]]]
"""`checkov(folder, framework, skips=())` gives the failed checks: check_id, check_name, resource, file_path."""


def environment(cache: Path) -> Path:
    """The folder of the environment, made where it is not there yet.

    Args:
        cache: Where environments are kept. Those of other requirements are removed, as nothing asks for them again.

    Returns:
        The folder, which holds `bin/python`.

    Raises:
        RuntimeError: pip could not install the requirements; with the end of what it said.
    """
    identity = REQUIREMENTS.read_bytes() + f"{sys.version_info[:2]}".encode()
    folder = cache / f"checkov-{hashlib.sha256(identity).hexdigest()[:12]}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "checkov.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # The mark is written last: an environment without it was interrupted.
        if not (folder / "complete").exists():
            for old in cache.glob("checkov-*"):
                shutil.rmtree(old)
            _install(folder)
            (folder / "complete").touch()
    return folder


def _install(folder: Path) -> None:
    venv.create(folder, with_pip=True)
    command: list[str | Path] = [
        folder / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ]
    command += ["--no-input", "--no-deps", "-r", REQUIREMENTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    if done.returncode != 0:
        raise RuntimeError(f"pip could not install {REQUIREMENTS.name}:\n{done.stderr[-2000:]}")


def check(python: Path, folder: Path, framework: str, skips: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Run checkov over a folder.

    Args:
        python: The interpreter that has checkov.
        folder: What is checked, with everything below it.
        framework: `terraform`, `kubernetes`, `dockerfile`, ...: what its files are.
        skips: Identifiers of checks that are left out.

    Returns:
        The failed checks, each with check_id, check_name, resource and file_path (relative to the folder).

    Raises:
        RuntimeError: checkov ended otherwise than by a report, could not read a file, or found nothing to check.
    """
    command: list[str | Path] = [
        python,
        "-m",
        "checkov.main",
        "--directory",
        folder.resolve(),
        "--framework",
        framework,
    ]
    command += ["--output", "json", "--quiet", "--compact", "--soft-fail", "--skip-download"]
    command += ["--skip-check", ",".join(skips)] if skips else []
    with tempfile.TemporaryDirectory() as home:
        # An address where nobody listens: whatever would ask the network fails at once instead of deciding the outcome.
        nobody = "http://127.0.0.1:9"
        variables = {"PATH": os.environ["PATH"], "HOME": home, "HTTPS_PROXY": nobody, "HTTP_PROXY": nobody}
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHECK_SECONDS, env=variables, cwd=home)
    try:
        report = json.loads(done.stdout)
    except ValueError as error:
        raise RuntimeError(f"checkov gave no report (code {done.returncode}): {done.stderr[-2000:]}") from error
    return _failed(report, folder)


def _failed(report: Any, folder: Path) -> list[dict[str, Any]]:
    if not isinstance(report, dict) or "results" not in report:
        raise RuntimeError(f"checkov found nothing to check in {folder}")
    if unread := report["results"].get("parsing_errors"):
        raise RuntimeError(f"checkov could not read {unread}")
    names = ("check_id", "check_name", "resource", "file_path")
    return [{name: item[name] for name in names} for item in report["results"]["failed_checks"]]
