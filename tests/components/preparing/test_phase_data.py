"""Data of a phase's own: what the run's held-out part holds is left out, and rows without what the method needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.common.curriculum import find_plan
from components.common.errors import DataError
from components.common.examples import Example, Ledger, read_examples
from components.common.phase_data import Required, own_data, preparing_places, required
from components.common.records import RunInfo, RunRecords
from components.common.spec import DataSpec, Spec
from components.common.step import Reference
from components.preparing.prepare import prepare
from components.preparing.sources import fingerprint
from components.preparing.step import run, run_phase
from components.preparing.text_keys import normal_turns


def write_lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pair(prompt: str, completion: str = "A", **extra: object) -> dict:
    return {"prompt": prompt, "completion": completion, **extra}


def divide(
    folder: Path, rows: list[dict], needs: Required | None = None, beside: Path | None = None, **options: object
):
    """Prepare rows in a new folder; returns the ledger and the two parts."""
    folder.mkdir(parents=True)
    data = {"train": [{"path": write_lines(folder.with_suffix(".jsonl"), rows), "format": "flan"}], **options}
    ledger = prepare(DataSpec.model_validate(data), 17, folder, required=needs, beside=beside)
    return ledger, list(read_examples(folder / "train.parquet")), list(read_examples(folder / "held_out.parquet"))


def prompts(examples: list[Example]) -> list[str]:
    return [example.messages[0][1] for example in examples]


NONE = {"held_out": {"fraction": 0.0}}


def test_what_the_run_holds_out_is_left_out_and_counted(tmp_path):
    divide(tmp_path / "run", [pair("one", held_out=True), pair("two", group="g", held_out=True), pair("three")], **NONE)
    rows = [pair("ONE ", "B"), pair("four", group="g"), pair("three", "C"), pair("five")]
    ledger, train, held = divide(tmp_path / "own", rows, Required(), tmp_path / "run", **NONE)
    assert prompts(train) == ["three", "five"]
    assert prompts(held) == ["ONE ", "four"]
    assert ledger == Ledger(rows_in=4, examples=4, held_out=2)


def test_ties_that_only_one_side_sees_are_followed(tmp_path):
    # In the run, the second row is dropped as a repeat of the first, and yet it ties the group h to the prompt "one".
    run_rows = [pair("one", group="g", held_out=True), pair("one", group="h"), pair("two")]
    ledger, _, held = divide(tmp_path / "run", run_rows, **NONE)
    assert (ledger.duplicates, len(held)) == (1, 1)
    rows = [
        pair("nine", group="h"),  # of the group that only the run ties to "one"
        pair("eight", group="k"), pair("one", "B", group="k"),  # tied to "one" by a group that only this side knows
        pair("seven"),
    ]  # fmt: skip
    _, train, held = divide(tmp_path / "own", rows, Required(), tmp_path / "run", **NONE)
    assert prompts(train) == ["seven"]
    assert sorted(prompts(held)) == ["eight", "nine", "one"]


def test_a_row_s_wish_for_training_does_not_bring_back_what_the_run_holds_out(tmp_path):
    divide(tmp_path / "run", [pair("one", held_out=True), pair("two")], **NONE)
    rows = [pair("one", "B", held_out=False), pair("three", held_out=False)]
    _, train, _ = divide(tmp_path / "own", rows, Required(), tmp_path / "run", **NONE)
    assert prompts(train) == ["three"]


ROWS = st.lists(
    st.tuples(st.sampled_from("pqrstuvw"), st.none() | st.sampled_from("abcdef"), st.sampled_from([None, True, False])),
    min_size=1,
    max_size=15,
)


@given(ROWS, ROWS)
@settings(max_examples=60, deadline=None)
def test_no_prompt_and_no_group_of_the_held_out_part_is_in_a_phase_s_data(tmp_path_factory, first, second):
    place = tmp_path_factory.mktemp("phase")

    def rows(drawn: list) -> list[dict]:
        made = [pair(p, str(n), group=g, held_out=wish) for n, (p, g, wish) in enumerate(drawn)]
        return [*made, pair(f"kept {len(drawn)}", held_out=False)]

    fraction = {"held_out": {"fraction": 0.4}}
    _, _, held = divide(place / "run", rows(first), **fraction)
    _, train, _ = divide(place / "own", rows(second), Required(), place / "run", **fraction)
    for name in ("prompt", "group"):
        of_run = {normal_turns(e.prompt) if name == "prompt" else e.group for e in held}
        of_phase = {normal_turns(e.prompt) if name == "prompt" else e.group for e in train}
        assert not (of_run & of_phase) - {None}


def test_nothing_left_is_an_error_that_names_the_phase(tmp_path):
    divide(tmp_path / "run", [pair("one", held_out=True), pair("two")], **NONE)
    with pytest.raises(DataError, match="the grpo phase rl: all 1 examples are held out") as caught:
        divide(tmp_path / "own", [pair("one")], Required("the grpo phase rl"), tmp_path / "run", **NONE)
    assert "give the phase data that the held-out part does not hold" in caught.value.remedy


NEEDS = [
    (Required("it", rejected=True), "no rejected reply, which it needs"),
    (Required("it", verifier=True), "no `answer` with a `verifier`, which it needs"),
    (Required("it", usable=("exact",)), "no `answer`, which it needs"),
]


@pytest.mark.parametrize(("needs", "reason"), NEEDS)
def test_a_row_without_what_the_method_needs_is_a_malformed_one(tmp_path, needs, reason):
    divide(tmp_path / "run", [pair("zero")], **NONE)
    good = pair("one", rejected="B", answer="A", verifier="exact")
    ledger, train, _ = divide(tmp_path / "own", [good, pair("two")], needs, tmp_path / "run", max_rejected=0.5, **NONE)
    assert prompts(train) == ["one"]
    assert ledger == Ledger(rows_in=2, examples=1, rejected=1)
    (row,) = map(json.loads, (tmp_path / "own" / "rejected.jsonl").read_text().splitlines())
    assert row["reason"] == reason


def test_too_many_of_them_stop_the_run_with_the_reason(tmp_path):
    divide(tmp_path / "run", [pair("zero")], **NONE)
    with pytest.raises(DataError, match=r"no rejected reply, which the dpo phase x needs \(3\)"):
        divide(tmp_path / "own", [pair("a"), pair("b"), pair("c")], Required("the dpo phase x", True), tmp_path / "run")


def test_an_answer_that_the_reward_cannot_use_is_malformed(tmp_path):
    divide(tmp_path / "run", [pair("zero")], **NONE)
    rows = [pair("one", answer="B"), pair("two", answer="not a letter at all")]
    ledger, train, _ = divide(
        tmp_path / "own", rows, Required("it", usable=("multiple_choice",)), tmp_path / "run", max_rejected=0.5, **NONE
    )
    assert (prompts(train), ledger.rejected) == (["one"], 1)


def spec_of(folder: Path, then: list[dict], **changes: object) -> Spec:
    values = {
        "name": "own",
        "seed": 17,
        "data": {"train": [{"path": "lab://instructions?count=120"}], "held_out": {"fraction": 0.2}},
        "curriculum": {"then": then},
        "store": str(folder / "store"),
    }
    return Spec.model_validate({**values, **changes})


DPO = {"method": "dpo", "data": [{"path": "lab://preferences?count=120"}]}
GRPO = {"method": "grpo", "data": [{"path": "lab://instructions?count=60&families=pipeline&steps=2&draw=1"}]}


def test_the_method_decides_what_is_required():
    path = Path("unused")

    def of(**phase: object) -> Required:
        spec = spec_of(path, [{"data": [{"path": "x"}], **phase}])
        return required(find_plan(spec, "main", 4, 17))

    assert of(method="sft").content == [False, False, []]
    assert of(method="dpo").content == [True, False, []]
    assert of(method="dpo", generate={"samples": 2}).content == [False, True, []]
    assert of(method="dpo", generate={"samples": 2, "verifier": "exact"}).content == [False, False, ["exact"]]
    assert of(method="grpo").content == [False, True, []]
    assert of(method="grpo", rewards=["last_number", "pack.age:name"]).content == [False, False, ["last_number"]]
    assert of(method="grpo", rewards=["pack.age:name"]).content == [False, False, []]
    assert of(method="grpo", name="rl").phase == "the grpo phase rl"


def test_the_first_phase_with_the_same_data_stands_for_all():
    spec = spec_of(Path("unused"), [DPO, GRPO, DPO], seeds=[1, 2], controls=["one_off"])
    assert preparing_places(spec) == {
        (name, index + shift, seed): ("main", place, 1)
        for seed in (1, 2)
        for name, shift in (("main", 3), ("one_off", 1))
        for index, place in ((1, 4), (2, 5), (3, 4))
    }


def info_of(spec: Spec) -> RunInfo:
    return RunInfo("own-1", spec.name, spec.model_dump(mode="json"), "", spec.store, "", "2026-01-01T00:00:00+00:00")


def test_the_step_prepares_a_phase_s_data_beside_the_run_s(tmp_path):
    spec = spec_of(tmp_path, [DPO, GRPO])
    info = info_of(spec)
    records = RunRecords(spec.store, info.run)
    prepared = run(info.to_json())
    held = list(read_examples(Reference.from_json(prepared).folder / "held_out.parquet"))
    pairs = Reference.from_json(run_phase(info.to_json(), prepared, "main", 4, 17))
    asked = Reference.from_json(run_phase(info.to_json(), prepared, "main", 5, 17))
    record = records.read("prepare.main.4.s17")
    assert (record.kind, record.key, record.reused) == ("prepared", pairs.key, False)
    assert (record.info["name"], record.info["method"]) == ("dpo", "dpo")
    ledger = Ledger(**record.info["ledger"])
    ledger.check()
    # The same draw as the run's: what is held out there is left out here, problem by problem.
    assert (ledger.rows_in, ledger.held_out) == (120, len(held))
    train = list(read_examples(pairs.folder / "train.parquet"))
    assert not {example.group for example in train} & {example.group for example in held}
    assert all(example.rejected not in (None, example.response) for example in train)
    prompts_ = list(read_examples(asked.folder / "train.parquet"))
    assert {(example.verifier, example.fields["family"], example.fields["steps"]) for example in prompts_} == {
        ("exact", "pipeline", 2)
    }
    run_phase(info.to_json(), prepared, "main", 4, 17)
    assert records.read("prepare.main.4.s17").reused


def test_the_key_follows_the_run_s_data_and_what_is_required(tmp_path):
    spec = spec_of(tmp_path, [DPO])
    plan = find_plan(spec, "main", 4, 17)
    data, needs = own_data(spec, plan), required(plan)
    keys = {
        fingerprint(data, 17),
        fingerprint(data, 17, needs, "run"),
        fingerprint(data, 17, needs, "another run"),
        fingerprint(data, 17, Required("other"), "run"),
    }
    assert len(keys) == 4
    assert fingerprint(data, 17, Required("another name", rejected=True), "run") == fingerprint(data, 17, needs, "run")
