"""Ray Train's trainer without the actors that a phase has no use for. Heavy: imports Ray Train."""

from __future__ import annotations

import os
from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from components.common.errand import INSIDE


class LeanTrainer(TorchTrainer):  # type: ignore[misc]  # Ray has no types
    """A `TorchTrainer` that starts up to two actors less, each of which would import Ray Train: seconds of a core.

    One hands out datasets of Ray Data, and a phase has none: its workers read their rows from a file. The other frees
    what a lost controller had reserved in a cluster; an instance of this machine's ends with its run.
    """

    def _create_default_callbacks(self) -> list[Any]:
        unused = (DatasetsCallback,) if INSIDE in os.environ else (DatasetsCallback, PlacementGroupCleanerCallback)
        return [one for one in super()._create_default_callbacks() if not isinstance(one, unused)]
