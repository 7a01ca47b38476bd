"""The container image of the components."""

from __future__ import annotations

import os

IMAGE = os.environ.get("PHASETUNE_IMAGE", "phasetune-python:latest")
"""What the compiled pipeline names; set PHASETUNE_IMAGE when compiling for a cluster."""
