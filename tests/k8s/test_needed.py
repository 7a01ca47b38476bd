"""Without kubectl or the CRDs tests are skipped; where `.ci/run` demands them, they fail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import needed

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("what", ["kubectl", "crds"])
@pytest.mark.parametrize("demanded", [True, False])
def test_what_is_lacking(monkeypatch, tmp_path, what, demanded):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(needed, "CRDS", tmp_path / "crds")
    monkeypatch.setenv(needed.NO_SKIP, f"{what} another" if demanded else "another")
    with pytest.raises(pytest.fail.Exception if demanded else pytest.skip.Exception, match=what):
        getattr(needed, what)()


def test_the_variable_comes_from_outside():
    program = "import os, tests.conftest; print(os.getenv('PHASETUNE_NO_SKIP'), os.getenv('PHASETUNE_CACHE'))"
    given = {**os.environ, "PHASETUNE_NO_SKIP": "crds", "PHASETUNE_CACHE": "/"}
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=60)
    assert ended.stdout == "crds None\n", ended.stderr


@pytest.mark.parametrize(("beside", "demanded"), [(True, "kubectl crds"), (False, "kubectl")])
def test_what_is_demanded_before_a_change_goes_in(tmp_path, beside, demanded):
    """The script of `.ci/run` itself, with a `make` that says what it is given."""
    here = tmp_path / "checkout"
    (here / ".ci").mkdir(parents=True)
    if beside:
        (tmp_path / "shared").mkdir()
    (here / ".ci" / "run").write_bytes((ROOT / ".ci" / "run").read_bytes())
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("make", "chromium", "shellcheck", "apt-get"):
        (tools / name).write_text('#!/bin/sh\n[ "${0##*/}" != make ] || echo "$1: $PHASETUNE_NO_SKIP"\n')
        (tools / name).chmod(0o755)
    ended = subprocess.run(
        ["bash", here / ".ci" / "run"], env={"PATH": f"{tools}:{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert f"test: {demanded}\n" in ended.stdout
    assert f"proofs: {demanded}\n" in ended.stdout
