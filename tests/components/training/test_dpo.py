"""Preference phases, trained for real: the loss, the reference, and that they go on as if nothing had happened."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from components.common.checkpoints import CheckpointPlace, clear, latest
from components.common.curriculum import PhasePlan, sequence
from components.common.errors import DataError, UserError
from components.common.examples import Example, read_examples, write_rows
from components.common.launcher import launch, session
from components.common.models import load_model, load_tokenizer, model_folder
from components.common.rendering import encode, encode_prompts
from components.common.spec import ModelSpec
from components.common.spec_phases import DpoSettings
from components.training import dpo, state
from components.training.fit import fit
from components.training.ordered import Conduct
from tests.components import tiny_models as tiny

LAB = model_folder("lab")
LORA = {"model": {"path": "lab", "adapter": {"rank": 4, "alpha": 8}}}
Job = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def pairs(examples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples as pairs: another example's reply is rejected. 70 of them: the last step is not full."""
    rows = list(read_examples(examples))[:70]
    file = tmp_path_factory.mktemp("pairs") / "train.parquet"
    write_rows(file, (replace(e, rejected=rows[place - 1].response + " .").to_row() for place, e in enumerate(rows)))
    return file


@pytest.fixture
def dpo_job(make_job: Job, pairs: Path) -> Job:
    """Makes the job of a preference phase; `settings` over those of a small one."""

    def make(name: str, file: Path = pairs, **more: Any) -> dict[str, Any]:
        own = {"learning_rate": 3e-4, "batch_size": 16, "max_length": 256, "warmup_ratio": 0.0, "loss": "sigmoid"}
        settings = DpoSettings.model_validate({**own, **more.pop("settings", {})})
        return make_job(name, plan={"method": "dpo", "settings": settings}, files={1: file}, **more)

    return make


def weights(job: dict[str, Any]) -> dict[str, torch.Tensor]:
    (file,) = (Path(job["out"]) / "model").rglob("*model.safetensors")
    return load_file(file)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def promised(job: dict[str, Any], file: Path) -> list[str]:
    return sequence(PhasePlan.from_json(job["plan"]), {1: [e.id for e in read_examples(file)]}, job["seed"])


def curve(result: dict[str, Any], name: str) -> list[float]:
    return [point[name] for point in result["learning"]]


def test_the_margin_grows_and_every_weight_moves(dpo_job):
    job = dpo_job("plain")
    result = fit(job)
    after, before = weights(job), load_file(LAB / "model.safetensors")
    assert all(not torch.equal(after[name].float(), before[name].float()) for name in after)
    margins = curve(result, "rewards/margins")
    assert margins[0] == pytest.approx(0, abs=1e-5)
    assert margins[-1] > 0.3 and margins[-1] > margins[1]
    assert curve(result, "rewards/accuracies")[-1] > 0.7
    for point in result["learning"]:
        assert point["rewards/margins"] == pytest.approx(point["rewards/chosen"] - point["rewards/rejected"], abs=1e-5)
    assert {"logps/chosen", "logps/rejected"} <= set(result["learning"][0])
    assert (result["steps"], result["examples"], result["truncated"]) == (5, 70, 0)
    assert result["learning"][-1]["tokens"] == result["tokens"]


def by_hand(model: Any, tokenizer: Any, example: Example, reply: str) -> tuple[float, int]:
    """The reply's log-probability and its number of tokens, of one text alone."""
    (item,) = encode(tokenizer, [[*example.prompt, ("assistant", reply)]])
    (prompt,) = encode_prompts(tokenizer, [example.prompt])
    ids = torch.tensor([item.input_ids])
    with torch.no_grad():
        logps = model(input_ids=ids).logits[0].log_softmax(-1)
    asked = range(len(prompt), ids.shape[1])
    return sum(float(logps[place - 1, ids[0, place]]) for place in asked), len(asked)


def loss_by_hand(loss: str, beta: float, chosen: tuple[float, int], rejected: tuple[float, int]) -> float:
    """Of one pair, from (log-ratio to the reference, tokens) of both sides."""
    (good, good_tokens), (bad, bad_tokens) = chosen, rejected
    if loss == "sigmoid":
        return math.log(1 + math.exp(-beta * (good - bad)))
    difference = good / good_tokens - bad / bad_tokens
    return math.log(1 + math.exp(-beta * difference)) if loss == "sigmoid_norm" else (difference - 0.5 / beta) ** 2


@pytest.mark.parametrize(
    ("loss", "beta", "used"), [("sigmoid", None, 0.1), ("sigmoid_norm", None, 5.0), ("ipo", 0.3, 0.3)]
)
def test_the_loss_is_what_the_formula_gives(dpo_job, pairs, lab_tokenizer, tmp_path, loss, beta, used):
    """At the last step, which is not full, and in passes of unlike size."""
    settings = {"loss": loss, "beta": beta, "batch_size": 31, "micro_batch_size": 4}
    job = dpo_job("cut", settings=settings, key="k", spec={"compute": {"checkpoint_every": 2}})
    result = fit(job)
    found = latest(CheckpointPlace(str(tmp_path / "store"), "k", 1), tmp_path / "look")
    assert found is not None and found[0] == 2
    start, now = (load_model(LAB, ModelSpec(dtype="float32")) for _ in range(2))
    state.load_weights(now, found[1] / state.WEIGHTS)
    examples = {example.id: example for example in read_examples(pairs)}
    losses, margins = [], []
    for name in promised(job, pairs)[62:]:
        example, sides = examples[name], []
        for reply in (example.response, example.rejected):
            (here, tokens), (there, _) = (by_hand(model, lab_tokenizer, example, reply) for model in (now, start))
            sides.append((here - there, tokens))
        losses.append(loss_by_hand(loss, used, *sides))
        margins.append(used * (sides[0][0] - sides[1][0]))
    assert len(losses) == 8
    last = result["learning"][2]
    assert last["loss"] == pytest.approx(sum(losses) / 8, rel=1e-4)
    assert last["rewards/margins"] == pytest.approx(sum(margins) / 8, rel=1e-4, abs=1e-5)


def test_passes_of_unlike_size_change_nothing(dpo_job):
    jobs = [dpo_job("whole"), dpo_job("passes", settings={"micro_batch_size": 5})]
    results = [fit(job) for job in jobs]
    for name in ("loss", "grad_norm", "rewards/margins", "logps/rejected"):
        assert curve(results[0], name) == pytest.approx(curve(results[1], name), rel=1e-3, abs=1e-4)


def test_the_order_is_what_was_promised(dpo_job, pairs, tmp_path):
    job = dpo_job("order", settings={"epochs": 2, "micro_batch_size": 5}, order_folder=str(tmp_path))
    fit(job)
    ids = [example.id for example in read_examples(pairs)]
    read = [[ids[row] for row in json.loads(line)] for line in (tmp_path / "rank-0.jsonl").read_text().splitlines()]
    assert max(map(len, read)) <= 5
    assert [name for batch in read for name in batch] == promised(job, pairs)


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The next phase breaks when this step is done."""
    whole = Conduct.after_step

    def breaking(self: Conduct, done: int, *more: Any) -> None:
        whole(self, done, *more)
        if done == step:
            raise RuntimeError("the power is gone")

    monkeypatch.setattr(Conduct, "after_step", breaking)


def resumed(make: Job, monkeypatch: pytest.MonkeyPatch, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The jobs of an uninterrupted phase and of one that broke at step 3 and went on from step 2."""
    straight = make("straight", **more)
    fit(straight)
    more["spec"] = {**more.get("spec", {}), "compute": {"checkpoint_every": 2}}
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="the power is gone"):
        stop_after(patch, 3)
        fit(make("broken", key="k", **more))
    again = make("again", key="k", **more)
    assert fit(again)["resumed_at"] == 2
    return straight, again


def test_a_phase_that_was_broken_off_goes_on_bit_by_bit(dpo_job, monkeypatch):
    straight, again = resumed(dpo_job, monkeypatch)
    assert same(weights(straight), weights(again))


def test_what_was_worked_out_before_the_first_step_is_kept_until_the_phase_is_published(dpo_job, monkeypatch, tmp_path):
    straight = dpo_job("straight")
    fit(straight)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="the power is gone"):
        stop_after(patch, 1)
        fit(dpo_job("broken", key="k"))
    again = dpo_job("again", key="k")
    with monkeypatch.context() as patch:
        patch.setattr(dpo, "start_model", None)  # the reference is not asked again
        fit(again)
    assert same(weights(straight), weights(again))
    kept = tmp_path / "store" / "checkpoints"
    assert list(kept.rglob("data.arrow"))
    clear(CheckpointPlace(str(tmp_path / "store"), "k", 1))
    assert not [path for path in kept.rglob("*") if path.is_file()]


def prepared(job: dict[str, Any], out: Path) -> tuple[dict[str, Any], bytes]:
    """What the phase begins with, and the reference's numbers."""
    order = promised(job, Path(job["tiers"]["1"]))
    out.mkdir()
    data = dpo.prepare(job, load_tokenizer(LAB), order, 256, out / "data")
    return data, (out / "data").read_bytes()


def test_damaged_data_are_worked_out_again(dpo_job, tmp_path):
    first = prepared(dpo_job("first", key="k"), tmp_path / "1")
    (file,) = (tmp_path / "store" / "checkpoints").rglob("data.arrow")
    damaged = bytearray(file.read_bytes())
    damaged[-1000] ^= 1
    file.chmod(0o644)
    file.write_bytes(damaged)
    assert prepared(dpo_job("again", key="k"), tmp_path / "2") == first
    (file,) = (tmp_path / "store" / "checkpoints").rglob("data.arrow")
    assert file.read_bytes() == first[1]


def test_the_adapter_has_its_dropout_and_the_reference_has_none(make_job, dpo_job, tmp_path):
    first = make_job("first", spec=LORA)
    fit(first)
    parent, found = Path(first["out"]) / "model", []
    config = parent / "adapter-0" / "adapter_config.json"
    for name, dropout in (("without", 0.0), ("with", 0.5)):
        config.write_text(json.dumps({**json.loads(config.read_text()), "lora_dropout": dropout}))
        reference = prepared(dpo_job(f"{name}-reference", spec=LORA, model=parent), tmp_path / f"{name}-prepared")
        result = fit(dpo_job(name, spec=LORA, model=parent))
        found.append((reference, abs(curve(result, "rewards/margins")[0])))
    assert found[0][0] == found[1][0]
    assert found[0][1] < 1e-5
    assert found[1][1] > 1e-3


def test_the_model_s_own_dropout_stays_off():
    model = get_peft_model(tiny.gpt2(), LoraConfig(lora_dropout=0.3, target_modules=["c_attn"], fan_in_fan_out=True))
    dpo._switch_off_dropout(model)
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    kept = {name for name, rate in rates.items() if rate}
    assert kept and all("lora_dropout" in name for name in kept)
    assert len(kept) < len(rates)


def test_an_adapter_is_compared_with_what_its_phase_started_from(make_job, dpo_job, monkeypatch):
    first = make_job("first", spec=LORA)
    fit(first)
    parent = Path(first["out"]) / "model"
    straight, again = resumed(dpo_job, monkeypatch, spec=LORA, model=parent)
    assert same(weights(straight), weights(again))
    assert not same(weights(straight), load_file(parent / "adapter-0" / "adapter_model.safetensors"))
    assert all("lora_" in name for name in weights(straight))  # the base is no part of what is left
    fresh = fit(dpo_job("fresh", settings={"adapter": "fresh"}, spec=LORA, model=parent))
    continued = fit(dpo_job("continued", spec=LORA, model=parent))
    for result in (fresh, continued):
        assert result["learning"][0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(continued["learning"][0]["logps/chosen"] - fresh["learning"][0]["logps/chosen"]) > 0.1


def test_examples_without_a_rejected_reply_are_refused(dpo_job, examples):
    with pytest.raises(DataError, match=r"96 of 96 example\(s\) have no rejected reply"):
        fit(dpo_job("single", examples))


def test_an_adapter_on_the_output_layer_is_refused(dpo_job):
    adapter = {"rank": 2, "target_modules": ["lm_head", "q_proj"]}
    with pytest.raises(UserError, match="the adapter covers the model's output layer"):
        fit(dpo_job("head", spec={"model": {"path": "lab", "adapter": adapter}}))


@pytest.mark.proof
@pytest.mark.soak
def test_two_workers_learn_what_one_learns(dpo_job, tmp_path):
    jobs = [dpo_job(f"by-{workers}", spec={"compute": {"workers": workers}}) for workers in (1, 2)]
    with session(tmp_path / "ray"):
        results = [launch("components.training.fit:fit", job=job)[0] for job in jobs]
    for name in ("loss", "rewards/margins", "logps/chosen"):
        assert curve(results[0], name) == pytest.approx(curve(results[1], name), rel=1e-4, abs=1e-4)
    one, two = map(weights, jobs)
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)
