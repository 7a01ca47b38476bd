import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st

from components.training.batches import StepBatches, accumulation, split_evenly

FILLER = -1
SIZES = {
    "size": st.integers(0, 60),
    "batch_size": st.integers(1, 20),
    "workers": st.integers(1, 4),
    "micro": st.none() | st.integers(1, 8),
}


def dealt(size, batch_size, workers, micro=None):
    """The micro-batches of every worker."""
    passes = accumulation(batch_size, workers, micro)
    return [list(StepBatches(range(size), batch_size, workers, rank, passes, FILLER)) for rank in range(workers)]


def by_step(size, batch_size, workers, micro=None):
    """The rows of every step over all workers, fillers left out."""
    passes = accumulation(batch_size, workers, micro)
    steps = -(-size // batch_size)
    return [
        sorted(
            row
            for mine in dealt(size, batch_size, workers, micro)
            for batch in mine[step * passes : (step + 1) * passes]
            for row in batch
            if row != FILLER
        )
        for step in range(steps)
    ]


def test_one_worker_reads_the_sequence_as_it_is():
    assert dealt(7, 3, 1) == [[[0, 1, 2], [3, 4, 5], [6]]]


def test_two_workers_share_a_step_in_contiguous_parts_the_first_taking_more():
    assert dealt(8, 5, 2) == [[[0, 1, 2], [5, 6]], [[3, 4], [7]]]


def test_three_workers_and_a_last_step_too_short_for_all():
    assert dealt(7, 6, 3) == [[[0, 1], [6]], [[2, 3], [FILLER]], [[4, 5], [FILLER]]]


def test_micro_batches_cut_the_share_of_a_worker():
    assert accumulation(8, 2, 3) == 2
    assert dealt(8, 8, 2, 3) == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


def test_a_short_step_fills_the_passes_that_have_nothing():
    assert dealt(1, 4, 1, 1) == [[[0], [FILLER], [FILLER], [FILLER]]]


@pytest.mark.parametrize(
    ("batch_size", "workers", "micro", "passes"),
    [(128, 1, None, 1), (128, 8, 4, 4), (10, 3, None, 1), (10, 3, 3, 2), (3, 8, 16, 1), (1, 1, 1, 1), (7, 2, 1, 4)],
)
def test_the_passes_of_a_step_are_these(batch_size, workers, micro, passes):
    assert accumulation(batch_size, workers, micro) == passes


@pytest.mark.parametrize(
    ("items", "parts", "expected"),
    [([1, 2, 3, 4, 5], 2, [[1, 2, 3], [4, 5]]), ([1], 3, [[1], [], []]), ([], 2, [[], []]), ([1, 2], 1, [[1, 2]])],
)
def test_parts_are_even_and_contiguous(items, parts, expected):
    assert split_evenly(items, parts) == expected


@limits(max_examples=80, deadline=None)
@given(**SIZES)
def test_every_row_is_seen_once_and_in_its_step_whatever_the_workers(size, batch_size, workers, micro):
    steps = by_step(size, batch_size, workers, micro)
    assert steps == [list(range(low, min(low + batch_size, size))) for low in range(0, size, batch_size)]


@limits(max_examples=80, deadline=None)
@given(**SIZES)
def test_every_worker_has_equally_many_micro_batches_within_the_limit_and_none_is_empty(
    size, batch_size, workers, micro
):
    made = dealt(size, batch_size, workers, micro)
    passes = accumulation(batch_size, workers, micro)
    counts = {len(mine) for mine in made}
    assert counts == {len(StepBatches(range(size), batch_size, workers, 0, passes, FILLER))}
    assert counts == {-(-size // batch_size) * passes}
    share = -(-batch_size // workers)
    assert all(1 <= len(batch) <= (micro or share) for mine in made for batch in mine)


@limits(max_examples=80, deadline=None)
@given(**SIZES)
def test_a_filler_stands_alone_and_only_where_a_slice_is_too_short(size, batch_size, workers, micro):
    passes = accumulation(batch_size, workers, micro)
    for mine in dealt(size, batch_size, workers, micro):
        for place, batch in enumerate(mine):
            if FILLER in batch:
                rows = min(batch_size, size - place // passes * batch_size)
                assert batch == [FILLER]
                assert rows < workers * passes


def test_the_same_batches_come_in_every_pass_over_them():
    batches = StepBatches([5, 3, 5], 2, 1, 0, 1, FILLER)
    assert list(batches) == list(batches) == [[5, 3], [5]]
    assert (batches.steps, len(batches)) == (2, 2)
