"""What the repetitions of a sweep's promising trials add to its plan: at most so much, and exactly what is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from components.common.curriculum import expand
from components.common.spec import Spec
from components.common.store import Store
from pipelines.sweep_chains import Chain
from pipelines.sweep_space import Params
from pipelines.sweep_spec import Sweep
from pipelines.sweep_tree import Planner


@dataclass(frozen=True, slots=True)
class Further:
    """Runs with further seeds.

    Attributes:
        runs: At most so many.
        phases: That they train, at most.
        least: Seconds of the least work of them, and of the longest path in that.
        most: Likewise of the most.
        known: Whether it is known which trials they are of, so that what the store holds of them is not counted.
    """

    runs: int = 0
    phases: int = 0
    least: tuple[float, float] = (0.0, 0.0)
    most: tuple[float, float] = (0.0, 0.0)
    known: bool = False


@dataclass(frozen=True, slots=True)
class Planned:
    """A distinct trial; its chain is None where its split is not in the store."""

    params: Params
    spec: Spec
    chain: Chain | None


def further(
    sweep: Sweep,
    trials: Sequence[Planned],
    store: Store,
    chain_of: Callable[[Params, int], Chain | None],
    tree: Planner,
) -> Further:
    """What the further seeds of a sweep add.

    Args:
        sweep: The sweep.
        trials: Its distinct trials.
        store: Holds their results, as far as they are there.
        chain_of: A trial's chain with a seed; None where the seed's split is not in the store.
        tree: An empty one over the store.
    """
    search = sweep.spec.search
    seeds = range(1, search.seeds)
    count = min(search.promising, len(trials))
    if not seeds or not count:
        return Further()
    best = _promising(sweep, trials, store)
    if best is not None:
        return _exact(best, [sweep.resolved({}).seed + seed for seed in seeds], chain_of, tree)
    phases = sorted(sum(len(one.phases) for one in expand(trial.spec, trial.spec.seed)) for trial in trials)
    times = sorted(_seconds(trial.chain) for trial in trials)
    most, longest = len(seeds) * sum(times[-count:]), times[-1]
    return Further(
        count * len(seeds), len(seeds) * sum(phases[-count:]), (len(seeds) * times[0], times[0]), (most, longest)
    )


def _promising(sweep: Sweep, trials: Sequence[Planned], store: Store) -> list[Planned] | None:
    """The trials that are repeated; None while some have no result."""
    objective = sweep.spec.objective
    found: list[tuple[float, Planned]] = []
    for trial in trials:
        key = trial.chain.evaluations[-1] if trial.chain is not None else ""
        entry = store.find("evaluations", key) if key else None
        if entry is None or objective.name not in entry.info["metrics"]:
            return None
        found.append((entry.info["metrics"][objective.name], trial))
    sign = 1 if objective.mode == "max" else -1
    return [trial for _, trial in sorted(found, key=lambda one: -sign * one[0])][: sweep.spec.search.promising]


def _exact(
    best: Sequence[Planned], seeds: Sequence[int], chain_of: Callable[[Params, int], Chain | None], tree: Planner
) -> Further:
    runs = phases = 0
    work = longest = 0.0
    for trial in best:
        for seed in seeds:
            chain = chain_of(trial.params, seed)
            if chain is None:
                seconds = _seconds(trial.chain)
                runs, phases, work, longest = (
                    runs + 1,
                    phases + _phases(trial.chain),
                    work + seconds,
                    max(longest, seconds),
                )
            else:
                number = tree.add([task.work for task in chain.tasks])
                runs += tree.trial_state(number) != "done"
    nodes = [node for node in tree.nodes() if node.work.counted]
    phases += sum(not node.found for node in nodes)
    known = (work + tree.to_do(), max(longest, tree.longest()))
    return Further(runs, phases, known, known, known=True)


def _seconds(chain: Chain | None) -> float:
    """Of its phases and their evaluations; what comes before them is done once for a seed, and is not estimated."""
    kinds = ("phases", "evaluations")
    return 0.0 if chain is None else sum(task.work.seconds for task in chain.tasks if task.kind in kinds)


def _phases(chain: Chain | None) -> int:
    return 0 if chain is None else sum(task.work.counted for task in chain.tasks)
