"""The public data files, read whole. The counts were taken from the files without the product's code."""

import json
from collections import Counter
from pathlib import Path

import pytest

from components.common.errors import DataError
from components.common.examples import Ledger, read_examples
from components.common.phase_data import Required
from components.common.spec import DataSpec
from components.common.verifiers import verify
from components.preparing.prepare import prepare

DATA = Path(__file__).parents[3].parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the public data files are not at {DATA}")


def run(tmp_path: Path, *names: str, **held_out: object):
    held = {"fraction": 0, **held_out}
    data = DataSpec.model_validate({"train": [{"path": str(DATA / name)} for name in names], "held_out": held})
    ledger = prepare(data, 17, tmp_path)
    reports = json.loads((tmp_path / "sources.json").read_text())
    return ledger, [report["format"] for report in reports], list(read_examples(tmp_path / "train.parquet"))


@pytest.mark.parametrize(
    ("name", "form", "rows"),
    [
        ("cherry_alpaca_ifd_5_percent.json", "alpaca", 3111),
        ("gpteacher_roleplay.json", "alpaca", 3146),
        ("gsm8k_train.jsonl", "gsm8k", 7473),
        ("gsm8k_test.jsonl", "gsm8k", 1319),
        ("self_instruct_seed_tasks.jsonl", "self_instruct", 175),
        ("self_instruct_user_oriented.jsonl", "self_instruct", 252),
        ("adversarial_qa_context.jsonl", "flan", 200),
    ],
)
def test_files_without_odd_rows(tmp_path, name, form, rows):
    ledger, forms, train = run(tmp_path, name)
    assert ledger == Ledger(rows, 0, rows, 0, 0, 0, 0)
    assert forms == [form]
    assert len(train) == rows


def test_phased_ift(tmp_path):
    ledger, forms, train = run(tmp_path, "alpaca_gpt4_difficulty_stage3.jsonl")
    assert ledger == Ledger(6889, 0, 6880, 0, 9, 0, 0)
    assert forms == ["phased_ift"]
    rejected = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert {row["reason"] for row in rejected} == {"`data[1]` is empty"}
    assert len(rejected) == 9
    assert sum(example.fields["difficulty"] for example in train) == pytest.approx(29269.22476666666)
    assert train[0].fields == {"id": "46229", "difficulty": 5.0}


def test_a_phase_of_reinforcement_learning_leaves_the_test_set_out(tmp_path):
    held = {"fraction": 0, "sources": [{"path": str(DATA / "gsm8k_test.jsonl")}]}
    alone = [{"path": str(DATA / "cherry_alpaca_ifd_5_percent.json")}]
    (tmp_path / "run").mkdir()
    prepare(DataSpec.model_validate({"train": alone, "held_out": held}), 17, tmp_path / "run")
    (tmp_path / "own").mkdir()
    both = [{"path": str(DATA / name)} for name in ("gsm8k_train.jsonl", "gsm8k_test.jsonl")]
    data = DataSpec.model_validate({"train": both, "held_out": {"fraction": 0}})
    needs = Required("it", verifier=True)
    ledger = prepare(data, 17, tmp_path / "own", required=needs, beside=tmp_path / "run")
    assert ledger == Ledger(rows_in=7473 + 1319, examples=7473 + 1319, held_out=1319)
    (tmp_path / "none").mkdir()
    data = DataSpec.model_validate({"train": alone, "held_out": {"fraction": 0}})
    with pytest.raises(DataError, match="no `answer` with a `verifier`"):
        prepare(data, 17, tmp_path / "none", required=needs, beside=tmp_path / "run")


def test_gsm8k_answers_and_lines(tmp_path):
    _, _, train = run(tmp_path, "gsm8k_train.jsonl")
    assert sum(int(example.answer or "") for example in train) == 403114874
    assert Counter(example.fields["difficulty"] for example in train) == {
        2: 1961, 3: 2149, 4: 1659, 5: 955, 6: 419, 7: 227, 8: 90, 9: 13,
    }  # fmt: skip
    assert all(verify("last_number", example.response, example.answer or "") for example in train)


def test_the_same_rows_in_two_formats_are_duplicates(tmp_path):
    names = ("cherry_alpaca_ifd_5_percent.json", "alpaca_gpt4_difficulty_stage3.jsonl")
    assert run(tmp_path, *names)[0] == Ledger(10000, 0, 9180, 811, 9, 0, 0)


def test_a_test_set_is_held_out_whole(tmp_path):
    ledger, _, _ = run(tmp_path, "gsm8k_train.jsonl", sources=[{"path": str(DATA / "gsm8k_test.jsonl")}])
    assert ledger == Ledger(8792, 0, 8792, 0, 0, 0, 1319)
