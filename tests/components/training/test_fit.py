"""A phase, trained for real: what changes, what stays, and that it goes on as if nothing had happened."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from components.common.checkpoints import CheckpointPlace, latest
from components.common.curriculum import Portion
from components.common.errors import DataError
from components.common.examples import read_rows, write_rows
from components.common.models import load_model, model_folder
from components.common.spec import ModelSpec
from components.training import state
from components.training.fit import fit
from components.training.ordered import Conduct

LAB = model_folder("lab")
STEPS = 6


def weights(job: dict[str, Any]) -> dict[str, torch.Tensor]:
    return load_file(Path(job["out"]) / "model" / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def in_a_process(job: dict[str, Any], before: str = "") -> int:
    """Train in a process of its own, after some code; returns how it ended."""
    code = f"import json, sys\n{before}\nfrom components.training.fit import fit\nfit(json.loads(sys.argv[1]))"
    return subprocess.run([sys.executable, "-c", code, json.dumps(job)], check=False, timeout=120).returncode


STOP_AT = """
import os, signal
from components.training import ordered
whole = ordered.Conduct.after_step
def at(self, step, *more):
    if step == {step}:
        {what}
    return whole(self, step, *more)
ordered.Conduct.after_step = at
"""


def test_training_changes_the_weights_and_counts_what_it_saw(make_job):
    job = make_job("plain")
    result = fit(job)
    after, before = weights(job), load_file(LAB / "model.safetensors")
    assert all(not torch.equal(after[name].float(), before[name].float()) for name in after)
    assert (result["steps"], result["examples"], result["batching"]) == (STEPS, 96, "packed")
    assert [point["step"] for point in result["learning"]] == list(range(1, STEPS + 1))
    assert result["learning"][-1]["tokens"] == result["tokens"]
    assert result["learning"][-1]["loss"] < result["learning"][0]["loss"]
    assert sorted(item.name for item in Path(job["out"]).iterdir()) == ["model"]


METHOD_IMPORTED = """
import json, sys
from types import SimpleNamespace
from components.training import fit
def imported(name):
    from huggingface_hub import constants
    print(name, constants.HF_HUB_DISABLE_TELEMETRY)
    sys.exit()
fit.importlib = SimpleNamespace(import_module=imported)
fit.fit(json.loads(sys.argv[1]))
"""


def test_the_hub_s_client_is_told_to_report_nothing_before_trl_is_imported(make_job, monkeypatch):
    for name in ("DO_NOT_TRACK", "DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.delenv(name, raising=False)
    command = [sys.executable, "-c", METHOD_IMPORTED, json.dumps(make_job("told"))]
    ended = subprocess.run(command, check=True, timeout=120, capture_output=True, text=True)
    assert ended.stdout == "components.training.sft True\n"


@pytest.mark.parametrize("how", ["os.kill(os.getpid(), signal.SIGKILL)", "os.kill(os.getpid(), signal.SIGTERM)"])
def test_a_phase_that_was_ended_goes_on_bit_by_bit(make_job, tmp_path, how):
    uninterrupted = make_job("straight")
    fit(uninterrupted)
    compute = {"compute": {"checkpoint_every": 2}}
    cut = make_job("cut", key="k", spec=compute)
    code = in_a_process(cut, STOP_AT.format(step=5, what=how))
    killed = "KILL" in how
    assert code == (-signal.SIGKILL if killed else 128 + signal.SIGTERM)
    found = latest(CheckpointPlace(str(tmp_path / "store"), "k", 1), tmp_path / "look")
    assert found is not None
    # Asked to stop, it saves first. A kill takes the checkpoint on its way with it, never the one before.
    assert found[0] in ({2, 4} if killed else {5})
    again = make_job("again", key="k", spec=compute)
    result = fit(again)
    assert result["resumed_at"] == found[0]
    assert same(weights(uninterrupted), weights(again))
    assert [point["step"] for point in result["learning"]] == list(range(1, STEPS + 1))


def test_checkpoints_do_not_change_what_is_learned(make_job):
    without, often = make_job("without"), make_job("often", key="k", spec={"compute": {"checkpoint_every": 1}})
    losses = [[point["loss"] for point in fit(job)["learning"]] for job in (without, often)]
    assert losses[0] == losses[1]
    assert same(weights(without), weights(often))


def test_a_checkpoint_holds_no_pickle(make_job, tmp_path):
    job = make_job("often", key="k", spec={"compute": {"checkpoint_every": 2}})
    fit(job)
    found = latest(CheckpointPlace(str(tmp_path / "store"), "k", 1), tmp_path / "look")
    assert found is not None
    names = sorted(item.name for item in found[1].iterdir())
    assert names == [state.OPTIMIZER, state.STATE, state.WEIGHTS]
    assert state.read(found[1]).step == 4


def test_packed_padded_and_grouped_learn_from_the_same_examples(make_job):
    jobs = {name: make_job(name, {"batching": name}) for name in ("packed", "padded", "grouped")}
    results = {name: fit(job) for name, job in jobs.items()}
    packed, padded = ([point["loss"] for point in results[name]["learning"]] for name in ("packed", "padded"))
    assert packed == pytest.approx(padded, rel=1e-4)
    assert {result["tokens"] for result in results.values()} == {results["packed"]["tokens"]}
    assert results["grouped"]["learning"][-1]["tokens"] == results["grouped"]["tokens"]


def test_gradient_checkpointing_changes_nothing(make_job):
    plain, again = make_job("plain"), make_job("again", spec={"compute": {"gradient_checkpointing": True}})
    fit(plain)
    fit(again)
    assert same(weights(plain), weights(again))


def test_carrying_the_optimizer_makes_two_phases_one(make_job, examples, tmp_path):
    """The halves of a mix as two phases, the second going on with optimizer and schedule: bit by bit the whole mix."""
    rows = list(read_rows(examples))
    files = {1: tmp_path / "1.parquet", 2: tmp_path / "2.parquet"}
    for tier, part in ((1, rows[:48]), (2, rows[48:])):
        write_rows(files[tier], part)
    plan = {"portions": (Portion((1,), 1), Portion((2,), 1)), "arrangement": "chunk"}
    whole = make_job("whole", files=files, plan={**plan, "arrangement": "shuffled"})
    first = make_job("first", files=files, plan={**plan, "chunk": 0}, span=[0, STEPS], keep_optimizer=True)
    results = [fit(whole), fit(first)]
    folder = Path(first["out"])
    carried = {"model": folder / "model", "carried": str(folder / "optimizer"), "span": [STEPS // 2, STEPS]}
    second = make_job("second", {"carry": "optimizer"}, files=files, plan={**plan, "chunk": 1}, **carried)
    results.append(fit(second))
    rates = [[point["learning_rate"] for point in result["learning"]] for result in results]
    assert rates[0] == rates[1] + rates[2]
    losses = [[point["loss"] for point in result["learning"]] for result in results]
    assert losses[0] == losses[1] + losses[2]
    assert same(weights(whole), weights(second))
    anew = make_job("anew", files=files, plan={**plan, "chunk": 1}, model=folder / "model")
    fit(anew)
    assert not same(weights(whole), weights(anew))


def test_a_stop_at_the_last_step_leaves_a_phase_that_can_be_finished(make_job):
    uninterrupted = make_job("straight", keep_optimizer=True)
    fit(uninterrupted)
    cut = make_job("cut", key="k", keep_optimizer=True)
    assert in_a_process(cut, STOP_AT.format(step=STEPS, what="os.kill(os.getpid(), signal.SIGTERM)")) == 143
    again = make_job("again", key="k", keep_optimizer=True)
    assert fit(again)["resumed_at"] == STEPS
    assert same(weights(uninterrupted), weights(again))
    files = [Path(job["out"]) / "optimizer" / state.OPTIMIZER for job in (uninterrupted, again)]
    assert same(*(load_file(file) for file in files))


def test_a_phase_of_one_step_learns_in_it(make_job):
    result = fit(make_job("short", {"batch_size": 96, "warmup_ratio": 0.1}))
    assert [point["learning_rate"] for point in result["learning"]] == [1e-3]


class TestAdapters:
    SPEC = {"model": {"path": "lab", "adapter": {"rank": 4, "alpha": 8}}}  # noqa: RUF012  # never changed

    def trained(self, make_job, name: str, how: str, model: Path | None = None) -> tuple[Path, dict[str, Any]]:
        job = make_job(name, {"adapter": how}, model=model, spec=self.SPEC)
        return Path(job["out"]) / "model", fit(job)

    def test_the_base_weights_are_untouched(self, make_job):
        before = {item: item.read_bytes() for item in LAB.glob("*.safetensors")}
        folder, result = self.trained(make_job, "first", "continue")
        assert result["learning"][-1]["loss"] < result["learning"][0]["loss"]
        assert before == {item: item.read_bytes() for item in LAB.glob("*.safetensors")}
        assert not list(folder.glob("*.safetensors"))  # what it leaves is the adapter alone
        names = load_file(folder / "adapter-0" / "adapter_model.safetensors")
        assert names and all("lora_" in name for name in names)

    def test_the_folder_stands_for_a_model(self, make_job):
        folder, _ = self.trained(make_job, "first", "continue")
        spec = ModelSpec.model_validate(self.SPEC["model"])
        base, tuned = load_model(LAB, ModelSpec()), load_model(folder, spec)
        ids = torch.arange(5, 25).unsqueeze(0)
        with torch.no_grad():
            apart = (tuned(ids).logits - base(ids).logits).abs().max()
        assert float(apart) > 1e-3

    @pytest.mark.parametrize(("how", "merged", "active"), [
        ("continue", [], "adapter-0"), ("merge", ["adapter-0"], "adapter-1"), ("fresh", [], "adapter-0"),
    ])  # fmt: skip
    def test_a_next_phase_continues_merges_or_starts_afresh(self, make_job, how, merged, active):
        first, _ = self.trained(make_job, "first", "continue")
        second, result = self.trained(make_job, "second", how, first)
        stack = json.loads((second / "adapters.json").read_text())
        assert {name: stack[name] for name in ("merged", "active")} == {"merged": merged, "active": active}
        _, alone_result = self.trained(make_job, "alone", "continue")
        starts_as_the_base = result["learning"][0]["loss"] == pytest.approx(alone_result["learning"][0]["loss"])
        assert starts_as_the_base == (how == "fresh")

    def test_merging_changes_no_prediction(self, make_job):
        first, _ = self.trained(make_job, "first", "continue")
        _, went_on = self.trained(make_job, "on", "continue", first)
        _, merged = self.trained(make_job, "merged", "merge", first)
        assert merged["learning"][0]["loss"] == pytest.approx(went_on["learning"][0]["loss"], rel=1e-4)

    def test_it_resumes_bit_by_bit(self, make_job):
        spec = {**self.SPEC, "compute": {"checkpoint_every": 2}}
        uninterrupted = make_job("straight", spec=spec)
        fit(uninterrupted)
        cut = make_job("cut", key="k", spec=spec)
        assert in_a_process(cut, STOP_AT.format(step=5, what="self.keeper.wait(); os._exit(9)")) == 9
        again = make_job("again", key="k", spec=spec)
        assert fit(again)["resumed_at"] == 4
        files = [Path(job["out"]) / "model/adapter-0/adapter_model.safetensors" for job in (uninterrupted, again)]
        assert same(*(load_file(file) for file in files))


def poison(monkeypatch: pytest.MonkeyPatch, step: int, above: float = 0.0) -> None:
    """From a learning-rate factor above a bound, make the gradient of a step something that is not a number."""
    from components.training import ordered

    whole = ordered.OrderedTrainer._clip_grad_norm

    def broken(self: Any, model: Any) -> Any:
        if self.state.global_step + 1 == step and self.conduct.progressed.lr_factor > above:
            next(p for p in model.parameters() if p.grad is not None).grad.fill_(float("nan"))
        return whole(self, model)

    monkeypatch.setattr(ordered.OrderedTrainer, "_clip_grad_norm", broken)


class TestDivergence:
    def test_it_names_step_examples_and_rate_and_keeps_the_last_good_checkpoint(self, make_job, monkeypatch, tmp_path):
        poison(monkeypatch, step=5)
        job = make_job("poisoned", key="k", spec={"compute": {"checkpoint_every": 2}})
        with pytest.raises(
            DataError, match=r"at step 5 \(learning rate [0-9.e-]+\); the batch's examples: [0-9a-f]{8}"
        ):
            fit(job)
        found = latest(CheckpointPlace(str(tmp_path / "store"), "k", 1), tmp_path / "look")
        assert found is not None and found[0] == 4
        assert all(torch.isfinite(tensor).all() for tensor in load_file(found[1] / state.WEIGHTS).values())

    def test_a_rollback_goes_on_with_a_smaller_rate(self, make_job, monkeypatch):
        poison(monkeypatch, step=5, above=0.5)
        settings = {"on_divergence": "rollback(0.5)", "schedule": "constant", "warmup_ratio": 0.0}
        job = make_job("poisoned", settings, key="k", spec={"compute": {"checkpoint_every": 2}})
        result = fit(job)
        rates = [point["learning_rate"] for point in result["learning"]]
        assert rates == pytest.approx([1e-3] * 4 + [5e-4] * 2)
        assert (result["rollbacks"], result["steps"]) == (1, STEPS)

    def test_a_rollback_counts_on_in_another_process(self, make_job, monkeypatch, tmp_path):
        """Cut after the first rollback's checkpoint; the second one halves the rate again, as without the cut."""
        settings = {"on_divergence": "rollback(0.5)", "schedule": "constant", "warmup_ratio": 0.0}
        spec = {"compute": {"checkpoint_every": 1}}
        poison(monkeypatch, step=3, above=0.5)
        poison(monkeypatch, step=5, above=0.25)
        straight = fit(make_job("straight", settings, key="s", spec=spec))
        whole = Conduct.after_step

        def cut(self: Any, step: int, *more: Any) -> None:
            whole(self, step, *more)
            if step == 4:
                raise RuntimeError("cut")

        with monkeypatch.context() as context:
            context.setattr(Conduct, "after_step", cut)
            with pytest.raises(RuntimeError, match="cut"):
                fit(make_job("cut", settings, key="k", spec=spec))
        again = fit(make_job("again", settings, key="k", spec=spec))
        rates = [[point["learning_rate"] for point in result["learning"]] for result in (straight, again)]
        assert rates[0] == pytest.approx([1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4, 2.5e-4])
        assert rates[0] == rates[1]
        assert straight["rollbacks"] == again["rollbacks"] == 2

    def test_what_goes_on_diverging_fails(self, make_job, monkeypatch):
        poison(monkeypatch, step=3)
        with pytest.raises(DataError, match="at step 3"):
            fit(make_job("poisoned", {"on_divergence": "rollback(0.5)"}))


def test_a_loss_that_is_no_number_is_seen(make_job, tmp_path):
    """Weights that overflow: the loss itself is no number, and the trainer's filter must not hide it."""
    folder = tmp_path / "broken"
    model = load_model(LAB, ModelSpec())
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("inf"))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (LAB / name).exists():
            (folder / name).write_bytes((LAB / name).read_bytes())
    with pytest.raises(DataError, match="at step 1"):
        fit(make_job("plain", {"batching": "padded"}, model=folder))


RUINOUS = {"learning_rate": 1.0, "warmup_ratio": 0.0, "schedule": "constant"}


def test_the_best_checkpoint_is_left(make_job, examples):
    """At a rate that ruins the model the last checkpoint is not the best."""
    settings = {"select": "best(loss)", "select_every": 1, **RUINOUS}
    job = make_job("best", settings, selection=str(examples))
    result = fit(job)
    values = [item["value"] for item in result["selected"]]
    assert len(values) == STEPS
    assert result["best"] == {"step": 1.0 + values.index(min(values)), "value": min(values)}
    assert min(values) < values[-1]
    last = make_job("last", {**settings, "select": "last"})
    fit(last)
    assert not same(weights(job), weights(last))


def test_selecting_survives_a_kill(make_job, examples):
    settings = {"select": "best(loss)", "select_every": 1, **RUINOUS}
    uninterrupted = make_job("straight", settings, selection=str(examples))
    fit(uninterrupted)
    compute = {"compute": {"checkpoint_every": 4}}
    cut = make_job("cut", settings, key="k", selection=str(examples), spec=compute)
    assert in_a_process(cut, STOP_AT.format(step=5, what="self.keeper.wait(); os._exit(9)")) == 9
    again = make_job("again", settings, key="k", selection=str(examples), spec=compute)
    fit(again)
    assert same(weights(uninterrupted), weights(again))
