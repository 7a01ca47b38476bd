"""What a run's results were made with and on: package versions, and the machine of this process."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "transformers", "trl", "ray", "kfp", "mlflow", "datasets", "accelerate", "tokenizers", "numpy")


def versions() -> dict[str, str]:
    """Versions by name: Python, phasetune, and the packages that results depend on, those that are installed."""
    return {"python": platform.python_version(), **installed(("phasetune", *_PACKAGES))}


@functools.cache
def installed_version(name: str) -> str | None:
    """A package's version; None where it is not installed. Looked up once: a sweep asks for thousands of keys."""
    with contextlib.suppress(PackageNotFoundError):
        return version(name)
    return None


def installed(names: Iterable[str]) -> dict[str, str]:
    """The versions of packages by name, of those that are installed."""
    return {name: found for name in names if (found := installed_version(name)) is not None}


def machine() -> dict[str, Any]:
    """This machine: {"platform", "cpu", "cores", "memory_gib", "gpus"}."""
    return dict(_machine())


@functools.cache
def _machine() -> dict[str, Any]:
    import psutil

    model = ""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "platform": platform.platform(),
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": sorted(str(item) for item in Path("/proc/driver/nvidia/gpus").glob("*")),
    }
