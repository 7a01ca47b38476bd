"""Reinforcement learning, run for real: rewards, groups, order, the reference, and that it goes on bit by bit."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from components.common.curriculum import PhasePlan, sequence
from components.common.errors import DataError, UserError
from components.common.examples import Example, read_examples, write_rows
from components.common.generation import generate, rooms_of, sample, sample_tokens
from components.common.launcher import launch, session
from components.common.models import load_tokenizer, model_folder
from components.common.rendering import encode_prompts
from components.common.spec import ModelSpec
from components.common.spec_phases import GrpoSettings
from components.common.verifiers import verify
from components.training.adapters import trainable
from components.training.fit import fit
from components.training.grpo import _refer_to_start
from components.training.ordered import Conduct
from components.training.rollouts import RolloutTable, reward_functions

LAB = model_folder("lab")
LORA = {"model": {"path": "lab", "adapter": {"rank": 4, "alpha": 8}}}
Job = Callable[..., dict[str, Any]]


@pytest.fixture
def grpo_job(make_job: Job, examples: Path) -> Job:
    """Makes the job of a small phase: steps of 4 prompts with 4 completions of at most 6 tokens."""

    def make(name: str, file: Path = examples, **more: Any) -> dict[str, Any]:
        own = {"steps": 3, "learning_rate": 1e-3, "batch_size": 4, "samples": 4, "max_new_tokens": 6, "max_length": 256}
        settings = GrpoSettings.model_validate({**own, **more.pop("settings", {})})
        return make_job(name, plan={"method": "grpo", "settings": settings}, files={1: file}, **more)

    return make


def weights(job: dict[str, Any]) -> dict[str, torch.Tensor]:
    (file,) = (Path(job["out"]) / "model").rglob("*model.safetensors")
    return load_file(file)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def curve(result: dict[str, Any], name: str) -> list[float]:
    return [point[name] for point in result["learning"]]


def rollouts(job: dict[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(Path(job["out"]) / "rollouts.parquet").to_pylist()
    return rows


def test_rewards_judge_completions_as_evaluation_does():
    (exact,) = reward_functions(["exact"])
    assert exact(completions=[" a b\n", "a", "b a"], answer=["a b"] * 3, prompts=[]) == [1.0, 0.0, 0.0]
    (own,) = reward_functions([])
    verifiers = ["exact", "last_number", "last_number"]
    assert own(completions=["x", "so 7.0", "8"], answer=["x", "7", "7"], verifier=verifiers) == [1.0, 1.0, 0.0]
    assert own.__name__ == "verifier"


def test_several_rewards_are_averaged_and_told_apart(grpo_job, tmp_path, monkeypatch):
    (tmp_path / "phase_rewards.py").write_text(
        "def short(response, answer):\n    return 2.0 if len(response) < 20 else -1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    names = ["exact", "phase_rewards:short"]
    job = grpo_job("several", settings={"rewards": names, "batch_size": 2, "steps": 1})
    result = fit(job)
    rows = rollouts(job)
    assert len(rows) == 8
    rewards = [(row["exact"] + row["phase_rewards.short"]) / 2 for row in rows]
    point = result["learning"][0]
    assert point["rewards/phase_rewards.short/mean"] == pytest.approx(
        sum(row["phase_rewards.short"] for row in rows) / 8
    )
    assert point["reward"] == pytest.approx(sum(rewards) / 8)
    for start in (0, 4):
        group = torch.tensor(rewards[start : start + 4])
        expected = (group - group.mean()) / (group.std() + 1e-4)
        given = [row["advantage"] for row in rows[start : start + 4]]
        assert given == pytest.approx(expected.tolist(), abs=1e-4)
    assert {row["phase_rewards.short"] for row in rows} == {2.0, -1.0}  # so that there was something to compare
    alike = sum(len(set(rewards[start : start + 4])) == 1 for start in (0, 4)) / 2
    assert point["frac_reward_zero_std"] == alike


def test_a_phase_moves_the_weights_and_shows_what_it_did(grpo_job, examples):
    job = grpo_job("plain", settings={"rewards": ["exact"]})
    result = fit(job)
    after, before = weights(job), load_file(LAB / "model.safetensors")
    assert any(not torch.equal(after[name].float(), before[name].float()) for name in after)
    assert (result["steps"], result["sequence"]) == (3, 12)
    names = {"rewards/exact/mean", "frac_reward_zero_std", "completions/mean_length", "clip_ratio/region_mean"}
    assert names <= set(result["learning"][0])
    assert "kl" not in result["learning"][0]
    made = sum(16 * point["completions/mean_length"] for point in result["learning"])
    assert result["extra"]["generated_tokens"] == pytest.approx(made)
    assert result["learning"][-1]["tokens"] == result["tokens"] + result["extra"]["generated_tokens"]
    rows = rollouts(job)
    assert [row["step"] for row in rows] == [1] * 10 + [2] * 10 + [3] * 10
    answers = {example.messages[0][1]: example for example in read_examples(examples)}
    for step in (1, 2, 3):
        prompts = [row["prompt"] for row in rows if row["step"] == step]
        assert [len(list(group)) for _, group in itertools.groupby(prompts)] == [4, 4, 2]  # groups are whole
    for row in rows:
        (example,) = [found for text, found in answers.items() if text in row["prompt"]]
        assert row["exact"] == verify("exact", row["completion"], example.answer or "")


def test_the_order_is_what_was_promised(grpo_job, examples, tmp_path):
    job = grpo_job("order", settings={"steps": 4, "micro_batch_size": 8}, order_folder=str(tmp_path))
    fit(job)
    ids = [example.id for example in read_examples(examples)]
    promised = sequence(PhasePlan.from_json(job["plan"]), {1: ids}, job["seed"])
    wanted = [name for name in ids if name in set(promised)]
    read = [[wanted[row] for row in json.loads(line)] for line in (tmp_path / "rank-0.jsonl").read_text().splitlines()]
    assert [len(batch) for batch in read] == [2] * 8
    assert [name for batch in read for name in batch] == promised


@pytest.mark.parametrize("loss", ["dapo", "grpo", "dr_grpo"])
def test_passes_of_unlike_size_change_nothing(grpo_job, loss):
    """Four groups in passes of at most three: two of two; 16 completions in three passes: 6, 5 and 5."""
    rewarded = {"loss": loss, "rewards": ["last_number"], "beta": 0.05, "steps": 2}
    jobs = [grpo_job(f"{loss}-{micro}", settings={**rewarded, "micro_batch_size": micro}) for micro in (None, 4)]
    jobs.append(grpo_job(f"{loss}-6", settings={**rewarded, "batch_size": 6, "samples": 2, "micro_batch_size": 4}))
    jobs.append(grpo_job(f"{loss}-12", settings={**rewarded, "batch_size": 6, "samples": 2}))
    results = [fit(job) for job in jobs]
    for one, other in (results[:2], results[2:]):
        for name in ("grad_norm", "loss"):
            assert curve(one, name) == pytest.approx(curve(other, name), rel=1e-3, abs=1e-5)
    assert min(curve(results[0], "grad_norm")) > 0


def resumed(make: Job, monkeypatch: pytest.MonkeyPatch, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The jobs of an uninterrupted phase and of one that broke at step 3 and went on from step 2."""
    more["settings"] = {"steps": 4, **more.get("settings", {})}
    straight = make("straight", **more)
    whole = fit(straight)
    more["spec"] = {**more.get("spec", {}), "compute": {"checkpoint_every": 2}}
    after_step = Conduct.after_step

    def breaking(self: Conduct, step: int, *others: Any) -> None:
        after_step(self, step, *others)
        if step == 3:
            raise RuntimeError("the power is gone")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="the power is gone"):
        patch.setattr(Conduct, "after_step", breaking)
        fit(make("broken", key="k", **more))
    again = make("again", key="k", **more)
    result = fit(again)
    assert result["resumed_at"] == 2
    assert result["extra"] == whole["extra"]
    assert rollouts(again) == rollouts(straight)
    assert [{**p, "time": 0} for p in result["learning"]] == [{**p, "time": 0} for p in whole["learning"]]
    return straight, again


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_a_phase_that_was_broken_off_goes_on_bit_by_bit(grpo_job, monkeypatch, beta):
    straight, again = resumed(grpo_job, monkeypatch, settings={"beta": beta})
    assert same(weights(straight), weights(again))


def test_an_adapter_is_held_to_what_its_phase_started_from(make_job, grpo_job, monkeypatch):
    first = make_job("first", spec=LORA)
    fit(first)
    parent = Path(first["out"]) / "model"
    straight, again = resumed(grpo_job, monkeypatch, settings={"beta": 0.1}, spec=LORA, model=parent)
    assert same(weights(straight), weights(again))
    assert not same(weights(straight), load_file(parent / "adapter-0" / "adapter_model.safetensors"))
    assert all("lora_" in name for name in weights(straight))
    assert not list((Path(straight["out"]) / "model").rglob("ref"))
    merged = fit(grpo_job("merged", settings={"beta": 0.1, "adapter": "merge"}, spec=LORA, model=parent))
    for result in (merged, fit(grpo_job("continued", settings={"beta": 0.1}, spec=LORA, model=parent))):
        kl = curve(result, "kl")
        assert kl[0] == pytest.approx(0, abs=1e-9)
        assert kl[-1] > 1e-7


def test_the_reference_of_an_adapter_has_no_dropout(make_job):
    spec = {"model": {**LORA["model"], "adapter": {"rank": 4, "dropout": 0.3}}}
    first = make_job("first", spec=spec)
    fit(first)
    parent = Path(first["out"]) / "model"
    model = trainable(parent, ModelSpec.model_validate(spec["model"]), first)
    model.add_adapter("ref", model.peft_config["default"])  # as TRL makes it
    _refer_to_start(model, parent, "continue")
    rates = {name: part.p for name, part in model.named_modules() if isinstance(part, torch.nn.Dropout)}
    assert {rate for name, rate in rates.items() if name.endswith(".ref")} == {0.0}
    assert {rate for name, rate in rates.items() if name.endswith(".default")} == {0.3}


@pytest.mark.parametrize(
    ("changed", "rewards", "said"),
    [
        ({"verifier": None}, [], r"1 of 2 example\(s\) have no answer or no verifier, e.g. second"),
        ({"answer": None}, ["last_number"], r"1 of 2 example\(s\) have no answer, e.g. second"),
    ],
)
def test_examples_that_cannot_be_rewarded_are_refused(grpo_job, tmp_path, changed, rewards, said):
    whole = {"messages": (("user", "1 + 1"), ("assistant", "2")), "answer": "2", "verifier": "exact"}
    rows = [Example(**whole, id="first"), Example(**{**whole, **changed}, id="second")]
    write_rows(tmp_path / "rows.parquet", (row.to_row() for row in rows))
    with pytest.raises(DataError, match=said):
        fit(grpo_job("refused", tmp_path / "rows.parquet", settings={"rewards": rewards}))


def test_vllm_needs_a_gpu(grpo_job):
    with pytest.raises(UserError, match="there is no GPU to run it on"):
        fit(grpo_job("vllm", settings={"generator": "vllm"}))


def test_rollouts_are_kept_of_eight_steps_and_the_last():
    table = RolloutTable(150, [], None)
    assert [step for step in range(1, 151) if table.due(step)] == [1, 19, 38, 57, 76, 94, 113, 132, 150]


PROMPTS = [[("user", text)] for text in ("What is 2 + 3?", "hi", "Sort these words: pear, fig, apple.")]


def test_nearly_no_temperature_is_greedy(lab_weights, lab_tokenizer):
    greedy = generate(lab_weights, lab_tokenizer, PROMPTS, 8, 1000, 512)
    assert sample(lab_weights, lab_tokenizer, PROMPTS, 2, 1e-4, 8, 1000, 512, 1) == [[text] * 2 for text in greedy]


def test_the_same_seed_draws_the_same_replies_and_another_draws_others(lab_weights, lab_tokenizer):
    drawn = [sample(lab_weights, lab_tokenizer, PROMPTS, 3, 1.0, 8, 200, 512, seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({reply for replies in drawn[0] for reply in replies}) > 3


def test_a_part_of_the_rows_is_drawn_as_in_the_whole(lab_weights, lab_tokenizer):
    ids = encode_prompts(lab_tokenizer, [PROMPTS[0]] * 6)
    whole = sample_tokens(lab_weights, lab_tokenizer, ids, [6] * 6, 1.0, 5)
    parts = [sample_tokens(lab_weights, lab_tokenizer, ids[:3], [6] * 3, 1.0, 5, (first, 6)) for first in (0, 3)]
    assert parts[0] + parts[1] == whole
    assert len({tuple(row) for row in whole}) > 1


def test_every_row_has_its_own_room(lab_weights, lab_tokenizer):
    """What is drawn for a row depends on nobody it shares the batch with, also where the context binds."""
    ids = encode_prompts(lab_tokenizer, [PROMPTS[place] for place in (0, 2, 1, 2, 0, 1)])
    rooms = rooms_of(ids, 6, max(map(len, ids)) + 2)
    assert rooms == [6, 2, 6, 2, 6, 6]
    whole = sample_tokens(lab_weights, lab_tokenizer, ids, rooms, 2.0, 5)
    assert max(map(len, (whole[1], whole[3]))) == 2 < max(map(len, whole))
    alone = [
        sample_tokens(lab_weights, lab_tokenizer, [ids[row]], [rooms[row]], 2.0, 5, (row, 6))[0] for row in range(6)
    ]
    assert alone == whole
    shared = sample_tokens(lab_weights, lab_tokenizer, ids[2:3], [6], 2.0, 5, (2, 6), all_rooms=[2, 6])
    assert shared == whole[2:3]


def test_a_short_prompt_is_not_cut_for_a_long_one(grpo_job, tmp_path):
    long = " and ".join(["three times four"] * 6)
    rows = [
        Example(messages=(("user", text), ("assistant", "2")), answer="2", verifier="exact", id=name)
        for name, text in (("short", "hi"), ("long", long))
    ]
    write_rows(tmp_path / "rows.parquet", (row.to_row() for row in rows))
    longest = max(map(len, encode_prompts(load_tokenizer(LAB), [row.prompt for row in rows])))
    settings = {"batch_size": 2, "steps": 1, "temperature": 3.0, "max_length": longest + 1}
    job = grpo_job("both", tmp_path / "rows.parquet", settings=settings)
    fit(job)
    words: dict[bool, list[int]] = {True: [], False: []}
    for row in rollouts(job):
        words[long in row["prompt"]].append(len(row["completion"].split()))
    assert max(words[True]) <= 1
    assert max(words[False]) > 1


def test_tokens_are_drawn_with_the_model_s_probabilities(lab_weights, lab_tokenizer):
    (ids,) = encode_prompts(lab_tokenizer, [PROMPTS[0]])
    with torch.inference_mode():
        expected = (lab_weights(torch.tensor([ids])).logits[0, -1].float() / 0.7).softmax(-1)
    drawn = torch.tensor(sample_tokens(lab_weights, lab_tokenizer, [ids] * 4000, [1] * 4000, 0.7, 3)).flatten()
    shares = torch.bincount(drawn, minlength=len(expected)) / 4000
    likely = expected > 0.01
    assert int(likely.sum()) > 2
    assert (shares - expected).abs().max() < 4 * (0.25 / 4000) ** 0.5


def test_an_adapter_on_the_output_layer_is_refused(grpo_job):
    adapter = {"rank": 2, "target_modules": ["lm_head", "q_proj"]}
    with pytest.raises(UserError, match="the adapter covers the model's output layer"):
        fit(grpo_job("head", spec={"model": {"path": "lab", "adapter": adapter}}))


@pytest.mark.proof
@pytest.mark.soak
def test_two_workers_learn_what_one_learns(grpo_job, tmp_path):
    jobs = [grpo_job(f"by-{workers}", spec={"compute": {"workers": workers}}) for workers in (1, 2)]
    with session(tmp_path / "ray"):
        results = [launch("components.training.fit:fit", job=job)[0] for job in jobs]
    for name in ("loss", "reward", "completions/mean_length", "grad_norm"):
        assert curve(results[0], name) == pytest.approx(curve(results[1], name), rel=1e-4, abs=1e-6)
    kept = [rollouts(job) for job in jobs]
    for name in ("step", "prompt", "completion", "verifier"):
        assert [row[name] for row in kept[0]] == [row[name] for row in kept[1]]
    assert [row["advantage"] for row in kept[0]] == pytest.approx([row["advantage"] for row in kept[1]], abs=1e-4)
    # Adam enlarges rounding where gradients are tiny: a small part of the way may differ.
    one, two = ({name: tensor.float() for name, tensor in weights(job).items()} for job in jobs)
    start = load_file(LAB / "model.safetensors")
    moved = sum(float(((one[name] - start[name].float()) ** 2).sum()) for name in one)
    apart = sum(float(((one[name] - two[name]) ** 2).sum()) for name in one)
    assert moved > 0
    assert (apart / moved) ** 0.5 < 0.02
