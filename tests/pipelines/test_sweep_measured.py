"""What decides a sweep must be measured, and alike: seen once the data are split, before a phase is trained."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from components.common.errors import SpecError
from pipelines.sweep import run_sweep
from pipelines.sweep_slots import Where
from tests.pipelines import sweep_world

LOSS = {"metric": "loss.nats_per_token", "mode": "min"}
LENGTH = "curriculum.sft.max_length"


def no_work(task, arguments):
    raise AssertionError(f"{task.label} was begun")


NOWHERE = Where(no_work, lambda: None)


@pytest.fixture
def prepared(world):
    """Makes data, scores and splits for a sweep's trials, or all of it; returns the sweep."""

    def make(space, phases=0, base=None, **more):
        sweep = world.sweep(space, base, **more)
        (key, values) = next(iter(space.items()))
        run, _ = world.run(sweep_world.Hands(world.store))
        run.limit(None, phases)
        for trial in world.trials(sweep, [{key: value} for value in values]):
            run.ask(trial)
        sweep_world.finish(run)
        return sweep

    return make


def refusal(sweep, folder):
    with pytest.raises(SpecError) as caught:
        run_sweep(sweep, folder, Console(file=io.StringIO()), NOWHERE)
    return str(caught.value)


def test_a_slice_that_the_data_do_not_have_is_refused_before_a_phase_is_begun(prepared, world, tmp_path):
    said = refusal(prepared({"splitting.tiers": [2]}, objective={"on": "hard"}), tmp_path / "out")
    assert "verifiable.hard.accuracy is not measured on these data; there are: loss.nats_per_token, loss.tier_1" in said
    assert "verifiable.tier_2.accuracy" in said
    assert not list(world.store.root.glob("phases/*"))
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["verdict"] == "No trial came to a result."


@pytest.fixture
def plain(tmp_path):
    """A base of answers without a verifier, the longest of some forty tokens."""
    rows = [
        {"prompt": f"Say {number}.", "completion": "a b c d e f g h"[: 1 + number % 16] * 3} for number in range(40)
    ]
    (tmp_path / "plain.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    data = {"train": [{"path": str(tmp_path / "plain.jsonl")}], "held_out": {"fraction": 0.3}}
    return {"data": data, "scoring": {"method": "length"}, "splitting": {"tiers": 1}}


def test_answers_that_nobody_can_verify_are_seen_before_a_phase_is_begun(prepared, plain, tmp_path):
    said = refusal(prepared({"splitting.tiers": [1]}, base=plain), tmp_path / "out")
    assert said.startswith("the objective verifiable.accuracy is not measured on these data; there are: loss.nats_per")
    assert "verifiable.tier" not in said


def test_an_objective_that_stored_evaluations_lack_is_refused_where_nothing_is_left_to_do(prepared, tmp_path):
    """The made-up evaluations measure no tier, as evaluations of a few examples may lack one."""
    sweep = prepared({"splitting.tiers": [2]}, phases=2, objective={"on": "tier_2"})
    said = refusal(sweep, tmp_path / "out")
    assert (
        "verifiable.tier_2.accuracy was not measured; measured were: loss.nats_per_token, verifiable.accuracy" in said
    )


def test_what_is_stored_and_measured_ends_well(prepared, tmp_path):
    written = run_sweep(prepared({"splitting.tiers": [2]}, phases=2), tmp_path, Console(file=io.StringIO()), NOWHERE)
    assert written["verdict"].startswith("Only trial 1 ")


@pytest.mark.parametrize(("length", "differ"), [(256, False), (24, True)])
def test_losses_are_compared_only_where_the_same_tokens_count(prepared, plain, tmp_path, length, differ):
    """No answer ends after token 128, and some do after token 24."""
    sweep = prepared({LENGTH: [128, length]}, phases=2, base=plain, objective=LOSS)
    if differ:
        assert "held-out answers differently, so their losses cannot be compared" in refusal(sweep, tmp_path / "out")
    else:
        assert run_sweep(sweep, tmp_path / "out", Console(file=io.StringIO()), NOWHERE)["trials"] == 2
