"""How fast a phase trains, against TRL's own trainer in a plain script; every ratio is within one run.

`python tests/benchmarks/training.py [--steps 40] [--repeats 3]`. The data are GSM8K and the third stage of Alpaca from
`../shared/data`, whose lengths are skewed; without that folder the lab's examples stand in, and the script says so.
Each measurement is a process of its own; they take turns, and medians are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
WARM = 10
"""Steps that are not measured: the first ones allocate, and find their kernels."""
BATCH = 16


def sources() -> list[dict[str, str]]:
    """The training sources."""
    if not DATA.is_dir():
        print("# no ../shared/data: the lab's examples, whose lengths are not skewed")
        return [{"path": "lab://instructions?count=4000"}]
    return [
        {"path": str(DATA / "gsm8k_train.jsonl"), "format": "gsm8k"},
        {"path": str(DATA / "alpaca_gpt4_difficulty_stage3.jsonl")},
    ]


def spec_of(more: dict[str, Any]) -> Any:
    """The spec of the phase."""
    from components.common.spec import Spec

    data = {"train": sources(), "held_out": {"fraction": 0.0}, "max_rejected": 1.0}
    return Spec.model_validate({"name": "bench", "seed": 3, "data": data, **more})


def prepared(place: Path, steps: int) -> Path:
    """As many examples as the steps need, as a file of a tier."""
    from components.common.digests import unit_hash
    from components.common.examples import read_rows, write_rows
    from components.preparing.prepare import prepare

    file = place / "examples.parquet"
    if not file.exists():
        folder = place / "prepared"
        folder.mkdir()
        prepare(spec_of({}).data, 3, folder)
        rows = sorted(read_rows(folder / "train.parquet"), key=lambda row: unit_hash(row["id"], 3, "bench"))
        write_rows(file, rows[: steps * BATCH])
    return file


def ours(place: Path, file: Path, options: dict[str, Any]) -> dict[str, Any]:
    """One phase through `fit`: Ray Train, callbacks, live tracking and checkpoints included."""
    from components.common.checkpoints import CheckpointPlace
    from components.common.curriculum import MAIN, PhasePlan, Portion
    from components.common.launcher import launch, session
    from components.common.models import model_folder
    from components.common.spec_phases import SftSettings
    from components.training.step import fit_job

    settings = {"epochs": 1, "learning_rate": 1e-3, "batch_size": BATCH, "max_length": 1024, "schedule": "constant"}
    sft = SftSettings.model_validate({**settings, "warmup_ratio": 0.0, "batching": options["batching"]})
    plan = PhasePlan(MAIN, 1, "bench", "sft", (Portion((1,), 1),), "tiers", sft)
    spec = spec_of({"compute": {"workers": options.get("workers", 1)}})
    out = Path(tempfile.mkdtemp(dir=place))
    job = {**fit_job(spec, plan, {1: file}, 3, model_folder("lab")), "out": str(out)}
    if options.get("checkpoints", True):
        job["checkpoints"] = asdict(CheckpointPlace(str(out / "store"), "bench", 1))
    if options.get("every"):
        job["compute"]["checkpoint_every"] = options["every"]
    with session(out / "ray-logs"):
        result, _ = launch("components.training.fit:fit", job=job)
    points = [(point["time"], point["tokens"], point["loss"]) for point in result["learning"]]
    return {"points": points, "stall": result["checkpoint_seconds"], "seconds": result["train_seconds"]}


def encoded(file: Path, tokenizer: Any, ordered: bool) -> Any:
    """The examples as TRL takes them, in the file's order or in ours."""
    from datasets import Dataset

    from components.common.digests import hash_order
    from components.common.examples import read_examples
    from components.common.rendering import encode

    examples = {example.id: example for example in read_examples(file)}
    order = hash_order(examples, 3, "order") if ordered else list(examples)
    items = encode(tokenizer, [examples[item].messages for item in order], 1024)
    return Dataset.from_list([{"input_ids": item.input_ids, "labels": item.labels} for item in items])


def bare_settings(out: str, ordered: bool) -> Any:
    """The settings of TRL's trainer: those of `ours`, and nothing that takes time beside training."""
    from trl import SFTConfig

    return SFTConfig(
        output_dir=out,
        num_train_epochs=1,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-3,
        weight_decay=0.1,
        adam_beta2=0.95,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=3,
        train_sampling_strategy="sequential" if ordered else "random",
    )


def bare(file: Path, ordered: bool, deterministic: bool) -> dict[str, Any]:
    """TRL's trainer as its documentation shows it: padded, with the same settings.

    Args:
        file: The examples.
        ordered: Whether they are read in our order, so that as much is padded, rather than by its own sampler.
        deterministic: Whether torch uses its deterministic algorithms, as ours does.
    """
    import torch
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import SFTTrainer

    from components.common.models import load_tokenizer, model_folder
    from components.common.reproducible import set_reproducible

    torch.set_num_threads(os.cpu_count() or 1)
    if deterministic:
        set_reproducible(os.cpu_count() or 1)
    tokenizer = load_tokenizer(model_folder("lab"))
    points: list[tuple[float, float, float]] = []

    class Clock(TrainerCallback):  # type: ignore[misc]  # transformers is not followed by mypy
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if logs and "loss" in logs:
                points.append((time.time(), logs["num_tokens"], logs["loss"]))

    with tempfile.TemporaryDirectory() as out:
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(model_folder("lab"), dtype=torch.float32),
            args=bare_settings(out, ordered),
            train_dataset=encoded(file, tokenizer, ordered),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
    return {"points": points}


def measured(place: Path, steps: int, options: dict[str, Any]) -> dict[str, Any]:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, "--one", json.dumps(options), "--place", str(place), "--steps", str(steps)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    first, last = found["points"][WARM - 1], found["points"][-1]
    found["rate"] = (last[1] - first[1]) / (last[0] - first[0])
    found["loss"] = statistics.fmean(point[2] for point in found["points"][-WARM:])
    return found


WHAT: dict[str, dict[str, Any]] = {
    "bare TRL, padded": {"bare": True},
    "the same in our order": {"bare": True, "ordered": True},
    "the same, deterministic": {"bare": True, "ordered": True, "deterministic": True},
    "ours, padded": {"batching": "padded"},
    "ours, packed (auto)": {"batching": "auto"},
    "ours, grouped": {"batching": "grouped"},
    "ours, packed, two workers": {"batching": "auto", "workers": 2},
}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one")
    parser.add_argument("--place", type=Path)
    given = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if given.one:
        options, file = json.loads(given.one), prepared(given.place, given.steps)
        print(
            "\n"
            + json.dumps(
                bare(file, options.get("ordered", False), options.get("deterministic", False))
                if options.get("bare")
                else ours(given.place, file, options)
            )
        )
        return
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        prepared(place, given.steps)
        found: dict[str, list[dict[str, Any]]] = {what: [] for what in WHAT}
        for _ in range(given.repeats):
            for what, options in WHAT.items():
                found[what].append(measured(place, given.steps, options))
        rates = {what: statistics.median(item["rate"] for item in items) for what, items in found.items()}
        base = rates["bare TRL, padded"]
        print(f"{'':<28}{'tokens/s':>10}{'of bare TRL':>13}{'last loss':>11}   each run's tokens/s")
        for what, items in found.items():
            each = " ".join(f"{item['rate']:.0f}" for item in items)
            loss = statistics.fmean(item["loss"] for item in items)
            print(f"{what:<28}{rates[what]:>10.0f}{rates[what] / base:>13.2f}{loss:>11.3f}   {each}")
        stall(place, given.steps, given.repeats)


def stall(place: Path, steps: int, repeats: int) -> None:
    """What checkpoints cost a phase: none, at the default interval (scaled to fall once in the phase), and often."""
    print("\ncheckpoints, packed: seconds of the training loop, and of these spent in taking checkpoints")
    kinds = {"none": {"checkpoints": False}, "every 20 steps": {"every": 20}, "every 100 steps (default)": {}}
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        for kind, options in kinds.items():
            found[kind].append(measured(place, steps, {"batching": "auto", **options}))
    base = statistics.median(item["seconds"] for item in found["none"])
    for kind, items in found.items():
        seconds = statistics.median(item["seconds"] for item in items)
        stalled = statistics.median(item["stall"] for item in items)
        print(f"{kind:<28}{seconds:>8.1f} s ({seconds / base:.3f})  {stalled:>6.2f} s ({stalled / seconds:.1%})")


if __name__ == "__main__":
    main()
