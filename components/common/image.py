"""The container image of everything of ours, and what a pod of it is told: by its environment, and by its user."""

from __future__ import annotations

import os

DEFAULT = "phasetune:latest"
IMAGE = os.environ.get("PHASETUNE_IMAGE", DEFAULT)
"""What the components name; a pipeline that is compiled for a cluster names its spec's (see pipelines/pods.py)."""
USER = 10001
"""The user and the group that the image's processes run as."""
HOME = "/home/phasetune"
"""The home folder in the image; it and /tmp are the only places that a pod writes to."""
ENVIRONMENT = {
    "HOME": HOME,
    "TMPDIR": "/tmp",  # noqa: S108  # a pod's own, no place that others can write to
    "PHASETUNE_CACHE": f"{HOME}/cache",
    "MPLCONFIGDIR": "/tmp/mpl",  # noqa: S108  # as above
}
"""The variables of every pod of ours."""
