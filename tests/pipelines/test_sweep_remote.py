"""How the cores of a cluster's nodes are shared by the slots of a sweep."""

from __future__ import annotations

import pytest

from components.common.spec import Spec
from pipelines.sweep import with_threads
from pipelines.sweep_remote import shared


@pytest.mark.parametrize(
    ("nodes", "slots", "each"),
    [
        ([8, 8], 2, 8),
        ([8, 8], 3, 4),  # one node has two of them
        ([8, 4], 2, 4),  # nobody knows which comes where
        ([8], 3, 2),
        ([2], 4, 1),
        ([], 3, 1),  # a cluster that has no node yet
    ],
)
def test_slots_share_the_cores_of_nodes(nodes, slots, each):
    assert shared(nodes, slots) == slots * each


@pytest.mark.parametrize(
    ("compute", "threads"),
    [({}, 4), ({"threads": 3}, 3), ({"gpus_per_worker": 1}, None)],
)
def test_a_trial_has_the_threads_of_its_slots_share(compute, threads):
    spec = Spec.model_validate(
        {"name": "s", "data": {"train": [{"path": "lab://instructions?count=60", "name": "lab"}]}, "compute": compute}
    )
    assert with_threads(spec, 2, shared([4, 4], 2)).compute.threads == threads
