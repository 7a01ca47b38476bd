"""What some tests need beside the checkout: kubectl, and the CRDs of KubeRay and Kueue.

Without it they are skipped, with a reason. Where the variable PHASETUNE_NO_SKIP names it (`kubectl crds`), as `.ci/run`
does, they fail instead: a check that everything hangs on does not get quiet because a tool is gone.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

CRDS = Path(__file__).resolve().parents[2] / "shared" / "crds"
NO_SKIP = "PHASETUNE_NO_SKIP"


def kubectl() -> None:
    """Go on only where kubectl is."""
    if shutil.which("kubectl") is None:
        _lacking("kubectl", "kubectl, which renders the overlays, is not on the PATH")


def crds() -> Path:
    """The folder of the CRDs; go on only where it is."""
    if not CRDS.is_dir():
        _lacking("crds", f"the CRDs of KubeRay and Kueue are not at {CRDS}")
    return CRDS


def _lacking(what: str, reason: str) -> NoReturn:
    if what in os.environ.get(NO_SKIP, "").split():
        pytest.fail(f"{reason}, and {NO_SKIP} demands it")
    pytest.skip(reason)
