"""Pairs as tokens, and pairs that a phase makes of its own model's replies."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from components.common.curriculum import PhasePlan, sequence
from components.common.errors import DataError, UserError
from components.common.examples import Example, read_examples, write_rows
from components.common.models import load_tokenizer, model_folder
from components.common.spec_phases import DpoSettings, GenerateSpec
from components.common.verifiers import verify
from components.training import dpo
from components.training.fit import fit
from components.training.preferences import TokenizedPairs, tokenize_pairs
from tests.components import tiny_models as tiny

TALK = (("user", "u"), ("assistant", "a"), ("user", "v"))


@pytest.fixture
def model() -> Any:
    return tiny.gpt2(context=128, spread=0.5)


@pytest.fixture
def tokenizer() -> Any:
    return tiny.chatml_tokenizer()


def tokenized(
    tmp_path: Path, model: Any, tokenizer: Any, examples: list[Example], limit: int = 128
) -> tuple[TokenizedPairs, list[dict[str, Any]]]:
    write_rows(tmp_path / "rows.parquet", (example.to_row() for example in examples))
    ids = {example.id for example in examples}
    made = tokenize_pairs(tokenizer, model, {1: tmp_path / "rows.parquet"}, ids, limit, 4096, tmp_path / "out")
    with pa.memory_map(str(tmp_path / "out")) as source:
        return made, pa.ipc.open_stream(source).read_all().to_pylist()


def pair(chosen: str, rejected: str | None, name: str = "one") -> Example:
    return Example(messages=(*TALK, ("assistant", chosen)), rejected=rejected, id=name)


def test_the_sides_of_a_pair_share_the_prompt_and_end_with_the_end_token(tmp_path, model, tokenizer):
    made, rows = tokenized(tmp_path, model, tokenizer, [pair("yes", "no!")])
    turns = "<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n<|im_start|>user\nv<|im_end|>\n"
    assert tokenizer.decode(rows[0]["prompt_ids"]) == turns + "<|im_start|>assistant\n"
    assert tokenizer.decode(rows[0]["chosen_ids"]) == "yes<|im_end|>"
    assert tokenizer.decode(rows[0]["rejected_ids"]) == "no!<|im_end|>"
    prompt = len(rows[0]["prompt_ids"])
    assert (made.ids, made.lengths, made.response_tokens) == (["one"], [2 * prompt + 8], [8])
    assert (made.truncated, made.filler) == (0, 1)
    assert [rows[1][name] for name in ("chosen_ids", "rejected_ids")] == [[], []]


def test_the_reference_scores_the_last_reply_alone(tmp_path, model, tokenizer):
    _, rows = tokenized(tmp_path, model, tokenizer, [pair("yes", "no!"), pair("q", "a longer reply", "two")])
    for row in rows[:2]:
        for side in ("chosen", "rejected"):
            prompt, reply = row["prompt_ids"], row[f"{side}_ids"]
            with torch.inference_mode():
                logps = model(input_ids=torch.tensor([prompt + reply])).logits[0].log_softmax(-1)
            expected = sum(float(logps[len(prompt) - 1 + place, token]) for place, token in enumerate(reply))
            assert row[f"ref_{side}_logps"] == pytest.approx(expected, rel=1e-5)


def test_a_reply_that_is_cut_is_counted_and_a_prompt_that_fills_the_context_refused(tmp_path, model, tokenizer):
    _, (row, _) = tokenized(tmp_path, model, tokenizer, [pair("yes", "no")])
    prompt = len(row["prompt_ids"])
    made, rows = tokenized(tmp_path, model, tokenizer, [pair("yes", "no")], prompt + 3)
    assert made.truncated == 1
    assert tokenizer.decode(rows[0]["chosen_ids"]) == "yes"
    assert tokenizer.decode(rows[0]["rejected_ids"]) == "no<|im_end|>"
    with pytest.raises(DataError, match=r"1 example\(s\) have a prompt that fills the whole context"):
        tokenized(tmp_path, model, tokenizer, [pair("yes", "no")], prompt)


def test_a_row_without_a_rejected_reply_is_no_pair(tmp_path, model, tokenizer):
    with pytest.raises(DataError, match=r"1 of 2 example\(s\) have no rejected reply, e.g. two"):
        tokenized(tmp_path, model, tokenizer, [pair("yes", "no"), pair("yes", None, "two")])


@pytest.fixture
def making(make_job: Callable[..., dict[str, Any]], examples: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Makes the job of a phase that makes its pairs itself, of 40 prompts."""
    few = tmp_path / "few.parquet"
    write_rows(few, (example.to_row() for example in islice(read_examples(examples), 40)))

    def make(name: str, file: Path = few, **generate: Any) -> dict[str, Any]:
        settings = DpoSettings(learning_rate=1e-4, batch_size=4, max_length=256, loss="sigmoid", epochs=2)
        how = GenerateSpec.model_validate({"samples": 6, "max_new_tokens": 6, **generate})
        return make_job(name, plan={"method": "dpo", "settings": settings, "generate": how}, files={1: file})

    return make


def test_pairs_are_made_of_accepted_and_other_replies(making, examples):
    job = making("made")
    result = fit(job)
    pairs = list(read_examples(Path(job["out"]) / "pairs.parquet"))
    by_id = {example.id: example for example in read_examples(examples)}
    assert pairs
    for made in pairs:
        asked = by_id[made.id]
        assert made.prompt == asked.prompt
        assert verify("exact", made.response, asked.answer or "")
        assert not verify("exact", made.rejected or "", asked.answer or "")
    counts = result["extra"]["generated"]
    assert counts["pairs"] == len(pairs) == result["examples"]
    assert counts["pairs"] + counts["all_accepted"] + counts["none_accepted"] == counts["examples"] == 40
    assert counts["replies"] == 40 * 6
    assert counts["pairs"] <= counts["accepted"] < counts["replies"]
    assert result["learning"][-1]["tokens"] == result["tokens"]


def test_the_promised_order_holds_for_what_became_a_pair_and_making_repeats_itself(making):
    prepared = []
    for name in ("once", "twice"):
        job = making(name)
        order = sequence(PhasePlan.from_json(job["plan"]), {1: ids_of(job)}, job["seed"])
        tokenizer = load_tokenizer(model_folder("lab"))
        data = dpo.prepare(job, tokenizer, order, 256, Path(job["out"]) / "data")
        kept = set(data["ids"])
        assert [data["ids"][row] for row in data["rows"]] == [item for item in order if item in kept]
        prepared.append((data, (Path(job["out"]) / "data").read_bytes()))
    assert prepared[0] == prepared[1]


def test_pairs_that_were_made_are_kept_with_what_they_gave(making, monkeypatch, tmp_path):
    """A resumed phase goes on with the pairs that its first steps saw; on a GPU others might be drawn."""
    found = []
    for name in ("once", "again"):
        job = making(name)
        job["checkpoints"] = {"store": str(tmp_path / "store"), "key": "k", "token": 1}
        order = sequence(PhasePlan.from_json(job["plan"]), {1: ids_of(job)}, job["seed"])
        data = dpo.prepare(job, load_tokenizer(model_folder("lab")), order, 256, Path(job["out"]) / "data")
        pairs = Path(job["out"]) / "pairs.parquet"
        found.append((data, (Path(job["out"]) / "data").read_bytes(), pairs.read_bytes()))
        pairs.write_bytes(b"")  # what a phase leaves is its own, and not a link to what is kept
        monkeypatch.setattr(dpo, "make_pairs", None)
        monkeypatch.setattr(dpo, "start_model", None)
    assert found[0] == found[1]


def ids_of(job: dict[str, Any]) -> list[str]:
    return [example.id for example in read_examples(Path(job["tiers"]["1"]))]


def test_no_pair_at_all_is_an_error_with_a_remedy(making, tmp_path):
    row = Example(messages=(("user", "hi"), ("assistant", "x")), answer="zzz zzz", verifier="exact", id="one")
    write_rows(tmp_path / "rows.parquet", [row.to_row()])
    with pytest.raises(DataError, match="all replies to 0 and none to 1") as raised:
        fit(making("none", tmp_path / "rows.parquet"))
    assert "generate.samples" in raised.value.remedy


def test_a_prompt_without_a_verifier_needs_one_named(making, tmp_path):
    row = Example(messages=(("user", "hi"), ("assistant", "x")), answer="7", id="one")
    write_rows(tmp_path / "rows.parquet", [row.to_row()])
    with pytest.raises(DataError, match=r"1 of 1 example\(s\) have no answer or no verifier"):
        fit(making("unnamed", tmp_path / "rows.parquet"))
    with pytest.raises(UserError, match="verifier 'unheard_of' is not known"):
        fit(making("unheard", tmp_path / "rows.parquet", verifier="unheard_of"))
    with pytest.raises(DataError, match="no preference pair could be made of 1"):
        fit(making("named", tmp_path / "rows.parquet", verifier="exact"))
