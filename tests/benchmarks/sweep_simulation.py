"""A sweep at scale, by simulation: the real planner over simulated workers; nothing is trained.

Trials of four to six phases that share beginnings ask for work. A phase takes what is expected of it times a factor
drawn from measured ones (measured_phases.json: of a real sweep, which `sweep.py --measured` writes anew); the planner
knows the expected times only. Workers are lost at one per cent an hour, and what they were at is lost with them. The
planner is the product's, and every grant and end is checked: no phase is lost or trained twice.

Run as `python tests/benchmarks/sweep_simulation.py [--out FOLDER]`, which takes a minute or two.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import time
import tracemalloc
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.sweep_tree import Planner, Work

HOUR = 3600.0
LOSSES = 0.01
"""Workers lost, of each an hour."""
SEEDS = 3
MEASURED: list[float] = json.loads(Path(__file__).with_name("measured_phases.json").read_text())["ratios"]
"""Measured times of phases over those expected."""


@dataclass(frozen=True)
class Outcome:
    """What a simulated sweep came to; times in hours but for `planning_seconds`."""

    trials: int
    workers: int
    requested: int
    distinct: int
    work: float
    longest: float
    lost: float
    losses: int
    makespan: float
    bound: float
    planning_seconds: float
    planner_mib: float


def trials(count: int, draw: random.Random) -> list[list[Work]]:
    """Orders of 4 to 6 tiers at 40 learning rates, each with three seeds; equal ones are one trial. A run takes 6 h."""
    asked: dict[tuple[str, ...], list[Work]] = {}
    while len(asked) < count:
        tiers = draw.randint(4, 6)
        names = (f"{tiers} tiers, rate {draw.randrange(40)}", *map(str, draw.sample(range(tiers), tiers)))
        asked[names] = []
        for seed in range(SEEDS):
            keys = ["/".join([f"seed {seed}", *names[: place + 2]]) for place in range(tiers)]
            parents = [None, *keys[:-1]]
            asked[names] += [Work(key, up, 6 * HOUR / tiers) for key, up in zip(keys, parents, strict=True)]
    return list(asked.values())


class _Simulation:
    """A sweep on simulated workers.

    Attributes:
        planner: The product's.
        took: Seconds that each piece of work takes.
        finished: The pieces that are done.
        now: Seconds since the beginning.
        lost: Seconds of work that were lost.
        losses: Workers that were lost.
        planning: Seconds of our own time that the planner has taken.
    """

    def __init__(self, asked: list[list[Work]], workers: int, losses: float, draw: random.Random) -> None:
        self.now = self.lost = 0.0
        self.losses, self._free = 0, workers
        self._rate, self._draw = losses / HOUR, draw
        began, self.planner = time.perf_counter(), Planner()
        for chain in asked:
            self.planner.add(chain)
        self.planning = time.perf_counter() - began
        nodes = self.planner.nodes()
        self.took = {node.work.key: node.work.seconds * draw.choice(MEASURED) for node in nodes}
        self._parents = {node.work.key: node.work.parent for node in nodes}
        self.finished: set[str] = set()
        self._ends: list[tuple[float, str, bool, float]] = []

    def run(self) -> None:
        """Go on until nothing is left to do."""
        self._grant()
        while self._ends:
            self._end_next()
            self._grant()

    def _grant(self) -> None:
        """Give work to the workers that are free."""
        began = time.perf_counter()
        granted = []
        while self._free > len(granted) and (work := self.planner.grant()) is not None:
            granted.append(work)
        self.planning += time.perf_counter() - began
        for work in granted:
            assert work.parent is None or work.parent in self.finished
            dies = self._draw.expovariate(self._rate) if self._rate else float("inf")
            seconds = self.took[work.key]
            heapq.heappush(self._ends, (self.now + min(dies, seconds), work.key, dies >= seconds, self.now))
        self._free -= len(granted)

    def _end_next(self) -> None:
        """Go on to the next moment at which a worker is done or lost."""
        self.now, key, whole, since = heapq.heappop(self._ends)
        self._free += 1
        began = time.perf_counter()
        if whole:
            assert key not in self.finished
            self.finished.add(key)
            self.planner.finished(key)
        else:
            self.planner.lost(key)
        self.planning += time.perf_counter() - began
        if not whole:
            self.losses, self.lost = self.losses + 1, self.lost + self.now - since

    def longest(self) -> float:
        """Seconds of the longest path."""
        paths: dict[str, float] = {}
        for key in sorted(self.took, key=len):
            paths[key] = self.took[key] + paths.get(self._parents[key] or "", 0.0)
        return max(paths.values())


def simulate(count: int, workers: int, seed: int = 17, losses: float = LOSSES, traced: bool = False) -> Outcome:
    """Run a sweep to its end on simulated workers.

    Args:
        count: Trials.
        workers: Each does one piece of work at a time; a lost one is replaced at once.
        seed: Of the trials, the times and the losses.
        losses: Of each worker an hour.
        traced: Measure the planner's memory, which slows everything down.

    Raises:
        AssertionError: If a piece is done twice, before its parent, or never.
    """
    draw = random.Random(seed)
    if traced:
        tracemalloc.start()
    asked = trials(count, draw)
    sweep = _Simulation(asked, workers, losses, draw)
    sweep.run()
    memory = 0.0
    if traced:
        memory = tracemalloc.get_traced_memory()[1] / 2**20
        tracemalloc.stop()
    assert sweep.finished == set(sweep.took)
    assert all(sweep.planner.trial_state(number) == "done" for number in range(len(asked)))
    work = sum(sweep.took.values())
    return Outcome(
        trials=count,
        workers=workers,
        requested=sweep.planner.requested,
        distinct=sweep.planner.distinct(),
        work=work / HOUR,
        longest=sweep.longest() / HOUR,
        lost=sweep.lost / HOUR,
        losses=sweep.losses,
        makespan=sweep.now / HOUR,
        bound=(work + sweep.lost) / workers / HOUR,
        planning_seconds=sweep.planning,
        planner_mib=memory,
    )


def plot(outcomes: list[Outcome], file: Path) -> None:
    """Makespan beside its bounds, and the planner's time, against the number of trials."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    counts = [one.trials for one in outcomes]
    left.plot(counts, [one.makespan for one in outcomes], "o-", label="makespan")
    left.plot(counts, [one.bound for one in outcomes], "--", label="(work + lost work) / GPUs")
    left.plot(counts, [one.longest for one in outcomes], ":", label="longest path")
    left.set(xlabel="trials", ylabel="hours", xscale="log", yscale="log", title="1,000 GPUs, losses 1% an hour")
    left.legend(frameon=False)
    right.plot(counts, [one.planning_seconds for one in outcomes], "o-")
    right.set(xlabel="trials", ylabel="seconds", xscale="log", yscale="log", title="the planner's own time, all of it")
    figure.savefig(file, dpi=120)


def main() -> None:
    """Simulate sweeps of growing size, print a table and write a plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="a folder for simulation.json and simulation.png")
    options = parser.parse_args()
    outcomes = []
    for count in (100, 300, 1000, 3000, 10_000):
        one = simulate(count, 1000)
        outcomes.append(one)
        print(
            f"{one.trials:6d} trials: {one.requested} phases asked for, {one.distinct} distinct; work / GPUs "
            f"{one.work / one.workers:.1f} h, longest path {one.longest:.1f} h, {one.losses} losses; makespan "
            f"{one.makespan:.1f} h = {one.makespan / one.bound:.3f} of (work + lost) / GPUs; planner "
            f"{one.planning_seconds:.2f} s"
        )
    memory = simulate(outcomes[-1].trials, 1000, traced=True).planner_mib
    print(f"memory of the largest, simulation included: {memory:.0f} MiB")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        plot(outcomes, options.out / "simulation.png")
        (options.out / "simulation.json").write_text(json.dumps([asdict(one) for one in outcomes], indent=1))
    last = outcomes[-1]
    if last.makespan > 1.10 * last.bound or last.planning_seconds > 30 or memory > 2048:
        raise SystemExit("over a limit: makespan 1.10 of (work + lost) / GPUs, planner 30 s, memory 2 GiB")


if __name__ == "__main__":
    main()
