import numpy as np
import pyarrow as pa
import pytest

from components.common.errors import DataError
from components.common.examples import SCORED_SCHEMA, Example, read_rows, write_rows
from components.common.selection import for_selection
from components.evaluation.measure import choose, measure, summarize
from components.evaluation.step import held_out_digest

SETTINGS = {
    "suites": ["loss", "verifiable"],
    "max_new_tokens": 8,
    "max_examples": None,
    "batch_tokens": 512,
    "resamples": 200,
    "confidence": 0.95,
}


def result(tier, nll, tokens, correct, cluster, slice_=None):
    return {"tier": tier, "nll": nll, "tokens": tokens, "correct": correct, "cluster": cluster, "slice": slice_}


ROWS = [
    result(1, 1.0, 2, True, "a"),
    result(1, 3.0, 2, True, "b"),
    result(2, 6.0, 4, False, "c"),
    result(2, 2.0, 2, True, "d"),
    result(2, 9.0, 1, None, "e"),
    result(1, 50.0, 1, False, "f", "unseen_wording"),
]


def test_loss_is_nats_over_tokens_and_slices_stay_out():
    metrics = summarize(ROWS, SETTINGS, 1)
    # all: (1 + 3 + 6 + 2 + 9) / (2 + 2 + 4 + 2 + 1); tier 1: 4 / 4; tier 2: 17 / 7
    assert metrics["loss.nats_per_token"] == pytest.approx(21 / 11)
    assert metrics["loss.tier_1.nats_per_token"] == pytest.approx(1.0)
    assert metrics["loss.tier_2.nats_per_token"] == pytest.approx(17 / 7)
    assert metrics["loss.unseen_wording.nats_per_token"] == pytest.approx(50.0)


def test_accuracy_counts_verifiable_examples_only():
    metrics = summarize(ROWS, SETTINGS, 1)
    assert metrics["verifiable.accuracy"] == pytest.approx(3 / 4)
    assert metrics["verifiable.tier_1.accuracy"] == 1.0
    assert metrics["verifiable.tier_2.accuracy"] == 0.5
    assert metrics["verifiable.unseen_wording.accuracy"] == 0.0


def test_every_metric_has_an_interval_that_holds_it():
    metrics = summarize([row for row in ROWS if row["slice"] is None], SETTINGS, 1)
    names = [name for name in metrics if not name.endswith((".low", ".high"))]
    assert len(names) == 6
    for name in names:
        assert metrics[f"{name}.low"] <= metrics[name] <= metrics[f"{name}.high"]


def held_out(folder, count):
    rows = []
    for number in range(count):
        messages = (("user", f"Work out {number} + 1"), ("assistant", str(number + 1)))
        made = Example(messages=messages, answer=str(number + 1), verifier="exact", group=f"g{number}")
        row = {**made.to_row(), "id": made.content_digest(), "difficulty": 1.0, "tokens": 9, "response_tokens": 3}
        rows.append({**row, "tier": 1 + number % 2})
    path = folder / "held_out.parquet"
    write_rows(path, rows, SCORED_SCHEMA.append(pa.field("tier", pa.int32())))
    return path


def test_a_limit_takes_as_many_of_each_tier_and_always_the_same(tmp_path):
    path = held_out(tmp_path, 10)
    chosen = choose(path, 2, 7)
    assert [tier for _, tier in chosen].count(1) == 2
    assert len(chosen) == 4
    assert [e.id for e, _ in chosen] == [e.id for e, _ in choose(path, 2, 7)]
    assert len(choose(path, None, 7)) == 10


def test_a_held_out_part_that_only_selects_leaves_nothing_to_evaluate(tmp_path):
    rows = list(read_rows(held_out(tmp_path, 20)))
    selecting = [row for row in rows if for_selection(Example.from_row(row))]
    assert 0 < len(selecting) < 20
    path = tmp_path / "selecting.parquet"
    test = {**selecting[0], "slice": "unseen_wording"}  # a test of its own says nothing about the rest
    write_rows(path, [*selecting[1:], test], SCORED_SCHEMA.append(pa.field("tier", pa.int32())))
    with pytest.raises(
        DataError, match=rf"all {len(selecting) - 1} held-out example\(s\) fall into the half"
    ) as raised:
        choose(path, None, 7, without_selection=True)
    assert "held_out.fraction" in raised.value.remedy
    assert len(choose(path, None, 7)) == len(selecting)


@pytest.mark.parametrize("column", ["group", "slice", "tier"])
def test_how_examples_are_counted_enters_the_digest(tmp_path, column):
    path = held_out(tmp_path, 4)
    before = held_out_digest(path)
    rows = list(read_rows(path))
    rows[0][column] = 2 if column == "tier" else "another"
    write_rows(path, rows, SCORED_SCHEMA.append(pa.field("tier", pa.int32())))
    assert held_out_digest(path) != before


def test_the_base_model_is_measured_for_real(tmp_path):
    job = {
        "model": "lab",
        "model_spec": {},
        "held_out": str(held_out(tmp_path, 6)),
        "evaluation": SETTINGS,
        "without_selection": False,
        "max_length": 128,
        "seed": 1,
        "bootstrap_seed": 1,
        "gpus": 0,
        "threads": 1,
        "label": "evaluate",
        "out": str(tmp_path),
    }
    found = measure(job)
    rows = list(read_rows(tmp_path / "examples.parquet"))
    assert found["examples"] == 6
    assert [row["expected"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert all(row["response"] is not None and row["correct"] is not None for row in rows)
    assert np.isfinite([row["nll"] for row in rows]).all()
    assert found["metrics"]["verifiable.accuracy"] == sum(row["correct"] for row in rows) / 6
