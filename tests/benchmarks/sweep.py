"""Sweeps that share phases, against plain Ray Tune sweeps of the same trials that share none.

`python tests/benchmarks/sweep.py [--rows 3000] [--small] [--only orders]`. Two sweeps on the lab's model:

- `orders`: all orders of 1, 2, 3 and 4 tiers: 33 trials, 119 phases asked for, 84 distinct;
- `followed`: the 6 orders of 3 tiers, each followed by a fourth phase in 8 variants: 48 trials, 192 phases asked for,
  63 distinct.

The plain sweep is Ray Tune with a function for a trial, one trial for each slot: it calls the same step functions, in
warm processes of the same session, with the same threads, but each trial has a store of its own. Both begin with the
data prepared, scored and split, and each is a process of its own whose start counts. The metrics must be equal to the
last digit. Then the first sweep runs once more, and what it took is set against the times of its pieces.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import permutations
from pathlib import Path
from typing import Any

SLOTS = 2
COMMAND = str(Path(sys.executable).with_name("phasetune"))
FOLLOWED = "followed"


def base(rows: int, store: Path) -> dict[str, Any]:
    """The base spec."""
    return {
        "name": "base",
        "seed": 1,
        "model": {"path": "lab"},
        "data": {"train": [{"path": f"lab://instructions?count={rows}", "name": "lab"}], "held_out": {"fraction": 0.1}},
        "scoring": {"method": "column"},
        "splitting": {"tiers": 3, "cut": "tokens"},
        "curriculum": {"sft": {"epochs": 1, "learning_rate": 1.0e-3, "batch_size": 8, "max_length": 256}},
        "evaluation": {"max_new_tokens": 4, "max_examples": 60, "resamples": 100},
        "tracking": {"enabled": False},
        "compute": {"threads": 1},
        "store": str(store),
    }


def spaces(small: bool) -> dict[str, dict[str, Any]]:
    """The sweeps' search spaces."""
    tiers, variants = (2, 2) if small else (3, 8)
    rates = [1e-4 * 2**number for number in range(variants)]
    orders = [list(order) for order in permutations(range(1, tiers + 1))]
    return {
        "orders": {"splitting.tiers": [1, 3] if small else [1, 2, 3, 4], "curriculum.order": "permutations"},
        FOLLOWED: {
            "splitting.tiers": [tiers],
            "curriculum.order": orders,
            "curriculum.then": [[{"method": "sft", "tiers": [tiers - 1], "learning_rate": rate}] for rate in rates],
        },
    }


def written(folder: Path, rows: int, space: dict[str, Any]) -> Path:
    """A sweep's file; its store is in the same folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "base.yaml").write_text(json.dumps(base(rows, folder / "store")))
    search = {"method": "grid", "trials": 60}
    values = {"name": "bench", "base": "base.yaml", "space": space, "search": search, "slots": SLOTS}
    (folder / "sweep.yaml").write_text(json.dumps(values))
    return folder / "sweep.yaml"


def prepared(file: Path) -> None:
    """Prepare, score and split for every trial, in the sweep's store."""
    from components.common.launcher import launch, session
    from components.common.store import Store
    from pipelines.sweep_chains import Chains
    from pipelines.sweep_space import trials_of
    from pipelines.sweep_spec import load_sweep

    sweep = load_sweep(file)
    store = Store(sweep.resolved({}).store)
    chains, kinds = Chains(store, False), {"prepared": "prepared", "scores": "scores"}
    with session(file.parent / "ray-logs"):
        for params in trials_of(sweep):
            spec = sweep.resolved(params)
            for task in chains.beginning(spec, spec.seed):
                if store.find(task.kind, task.work.key) is None:
                    needs = {name: chains.reference(kinds[name], key) for name, key in task.needs.items()}  # type: ignore[arg-type]  # a Kind
                    launch(task.target, context=context(spec, spec.store), **task.arguments, **needs)


def context(spec: Any, store: str) -> str:
    """What a step is told about its run."""
    from components.common.records import RunInfo

    return RunInfo(
        "bench", "bench", {**spec.model_dump(mode="json"), "store": store}, "", store, "", "now", {}, {}
    ).to_json()


def of_trial(config: dict[str, Any]) -> None:
    """A trial of the plain sweep, as a function of Ray Tune: its phases one after another, then the evaluation."""
    from ray import tune

    from components.common.launcher import launch
    from components.common.step import Reference
    from components.common.store import Store

    trial = config["trial"]
    done = dict(trial["done"])
    for task in trial["tasks"]:
        needs = {name: done[key] if key else "" for name, key in task["needs"].items()}
        done[task["key"]], _ = launch(task["target"], context=trial["context"], **task["arguments"], **needs)
    last = Reference.from_json(done[trial["tasks"][-1]["key"]])
    if last is None:
        raise AssertionError("an evaluation has a reference")
    entry = Store(trial["store"]).find("evaluations", last.key)
    tune.report({"measured": json.dumps(entry.info["metrics"] if entry else {}), "number": trial["number"]})
    shutil.rmtree(trial["store"])


def described(file: Path, stores: Path) -> list[dict[str, Any]]:
    """The trials as the plain sweep needs them: every trial's tasks after the split, and the split's reference."""
    from components.common.store import Store
    from pipelines.sweep_chains import Chains
    from pipelines.sweep_space import trials_of
    from pipelines.sweep_spec import load_sweep

    sweep = load_sweep(file)
    chains, found = Chains(Store(sweep.resolved({}).store), False), []
    for number, params in enumerate(trials_of(sweep), 1):
        spec, own = sweep.resolved(params), str(stores / str(number))
        tasks = chains.whole(spec, spec.seed).tasks
        split = next(task for task in tasks if task.kind == "splits").work.key
        work = [
            {"key": task.work.key, "target": task.target, "arguments": task.arguments, "needs": task.needs}
            for task in tasks
            if task.kind in ("phases", "evaluations")
        ]
        done = {split: chains.reference("splits", split)}
        found.append(
            {
                "number": number,
                "store": own,
                "context": context(spec, own),
                "tasks": work,
                "done": done,
                "params": params,
            }
        )
    return found


def plain(file: Path) -> None:
    """The plain sweep; prints every trial's metrics."""
    from components.common.launcher import connect_ray, session, set_ray_environment

    set_ray_environment()
    os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    trials = described(file, file.parent / "plain")
    with session(file.parent / "ray-logs"), tempfile.TemporaryDirectory() as folder:
        connect_ray()
        import ray
        from ray import tune

        found = tune.Tuner(
            tune.with_resources(of_trial, {"cpu": 1}),
            param_space={"trial": tune.grid_search(trials)},
            tune_config=tune.TuneConfig(max_concurrent_trials=SLOTS, reuse_actors=True),
            run_config=tune.RunConfig(name="plain", storage_path=folder, verbose=0),
        ).fit()
        ray.shutdown()
        if found.errors:
            raise SystemExit(f"trials of the plain sweep failed: {found.errors[0]}")
        by_number = {int(one.metrics["number"]): json.loads(one.metrics["measured"]) for one in found}
        params = {trial["number"]: trial["params"] for trial in trials}
        measured = {json.dumps(params[number]): metrics for number, metrics in by_number.items()}
    print("\n" + json.dumps(measured))


def timed(command: list[str], folder: Path) -> tuple[float, str]:
    """Seconds of a command in a folder, and what it said."""
    began = time.perf_counter()
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"{command} ended with {ended.returncode}\n{ended.stdout[-4000:]}{ended.stderr[-4000:]}")
    return time.perf_counter() - began, ended.stdout


def swept(folder: Path) -> tuple[float, dict[str, Any]]:
    """Seconds of a sweep by the command, and its results."""
    seconds, _ = timed([COMMAND, "sweep", "sweep.yaml"], folder)
    return seconds, json.loads((folder / "runs" / "bench" / "sweep.json").read_text())


def compared(name: str, place: Path, rows: int, space: dict[str, Any]) -> dict[str, Any]:
    """Both sweeps over one space, and the first once more."""
    ours, theirs = place / f"{name}-ours", place / f"{name}-plain"
    file = written(ours, rows, space)
    prepared(file)
    shutil.copytree(ours / "store", theirs / "store")
    written(theirs, rows, space)
    plainly, said = timed([sys.executable, __file__, "--plain", str(theirs / "sweep.yaml")], theirs)
    measured = json.loads(said.splitlines()[-1])
    seconds, results = swept(ours)
    again, repeated = swept(ours)
    table = {json.dumps(row["params"]): row["metrics"] for row in results["table"]}
    if table != measured:
        different = [params for params in table if table[params] != measured.get(params)]
        raise SystemExit(
            f"{name}: the metrics of {len(different)} of {len(table)} trials differ, such as {different[:1]}"
        )
    return {
        "name": name,
        "trials": results["trials"],
        "asked": results["phases_requested"],
        "distinct": results["phases_distinct"],
        "trained": results["phases_trained"],
        "trained_again": repeated["phases_trained"],
        "seconds": seconds,
        "plain_seconds": plainly,
        "again_seconds": again,
        "pieces_seconds": results["slot_seconds"],
        "work_seconds": work_seconds(ours / "store"),
        "ratios": ratios(ours / "store"),
    }


def work_seconds(store: Path) -> float:
    """Seconds of training and evaluating alone: without the starts of processes, and without waiting."""
    files = [path for path in store.glob("runs/*/*.json") if path.name != "run.json"]
    records = [json.loads(path.read_text()) for path in files]
    made = [one for one in records if one["kind"] in ("phases", "evaluations") and not one["reused"]]
    return sum(one["seconds"] - one["overhead_seconds"] for one in made)


def ratios(store: Path) -> list[float]:
    """Every phase's seconds of training over what is expected of its tokens by the median phase."""
    infos = [json.loads(path.read_text())["info"] for path in sorted(store.glob("phases/*/manifest.json"))]
    pace = statistics.median(info["train_seconds"] / info["tokens"] for info in infos)
    return [round(info["train_seconds"] / (pace * info["tokens"]), 3) for info in infos]


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--small", action="store_true", help="few trials, 60 rows: does it work?")
    parser.add_argument("--only", choices=["orders", FOLLOWED])
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="a file for the figures, as JSON")
    parser.add_argument("--measured", type=Path, help="write the spread of the phases' times, for sweep_simulation.py")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if options.plain is not None:
        plain(options.plain)
        return
    rows, found = 60 if options.small else options.rows, []
    with tempfile.TemporaryDirectory() as name:
        for which, space in spaces(options.small).items():
            if options.only in (None, which):
                found.append(compared(which, Path(name), rows, space))
                show(found[-1])
    missed = [
        f"{one['name']}, {what}: {measured:.3f}, limit {limit:.2f}"
        for one in found
        for what, measured, limit in limits(one)
        if measured > limit and not options.small
    ]
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    if options.measured is not None:
        about = (
            f"seconds of training over expected ones, of {found[0]['distinct']} phases of the sweep {found[0]['name']}"
        )
        options.measured.write_text(json.dumps({"about": about, "rows": rows, "ratios": found[0]["ratios"]}) + "\n")
    if missed:
        raise SystemExit("\n".join(["over the limit:", *missed]))


def limits(one: dict[str, Any]) -> list[tuple[str, float, float]]:
    """What is limited, what was measured, and the limit."""
    return [
        ("of the plain sweep's time", one["seconds"] / one["plain_seconds"], 0.40 if one["name"] == FOLLOWED else 0.80),
        ("seconds once more", one["again_seconds"], 20.0),
        ("of its steps' time on the slots", one["seconds"] / (one["pieces_seconds"] / SLOTS), 1.25),
    ]


def show(one: dict[str, Any]) -> None:
    """Print one sweep's figures."""
    print(
        f"{one['name']}: {one['trials']} trials, {one['asked']} phases asked for, {one['distinct']} distinct, "
        f"{one['trained']} trained, once more {one['trained_again']}; the same metrics to the last digit"
    )
    print(f"  sweep {one['seconds']:.1f} s, plain {one['plain_seconds']:.1f} s")
    for what, measured, limit in limits(one):
        print(f"  {what}: {measured:.3f} (limit {limit:.2f})")
    work = one["work_seconds"] / SLOTS
    print(f"  of training and evaluating alone ({work:.1f} s on {SLOTS} slots): {one['seconds'] / work:.3f}")


if __name__ == "__main__":
    main()
