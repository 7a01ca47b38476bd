"""`phasetune plan SWEEP`: the tree of phases, what is shared and stored, and how long the rest will take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.tree import Tree

from components.common.spec import Spec
from components.common.store import Store
from pipelines.sweep import slots_of, with_threads
from pipelines.sweep_chains import Chain, Chains
from pipelines.sweep_plan_further import Further, Planned, further
from pipelines.sweep_run import Stored
from pipelines.sweep_space import Params, trials_of
from pipelines.sweep_spec import Sweep
from pipelines.sweep_tree import Node, Planner

_SHOWN = 200
"""Phases of the tree on the screen."""


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """What a sweep would do.

    Attributes:
        trials: Trials asked for.
        merged: Those that are another one.
        waiting: Those whose phases cannot be told before their data is scored and split.
        planner: The tree of the others.
        names: What each phase is called, by its key.
        estimated: Whether the times come from experience; else only their proportions are known.
        further: The runs with further seeds, which are in none of the above.
    """

    trials: int
    merged: int
    waiting: int
    planner: Planner
    names: dict[str, str]
    estimated: bool
    further: Further

    @property
    def asked(self) -> int:
        """Phases that the trials ask for, merged ones once."""
        return self.planner.requested

    @property
    def stored(self) -> int:
        """Distinct phases that the store holds."""
        return sum(node.found for node in self.planner.nodes() if node.work.counted)

    def seconds(self, slots: int) -> float:
        """What is left on so many slots: all work shared out, or the longest path where that is longer."""
        return max(self.planner.to_do() / slots, self.planner.longest())

    def times(self, slots: int) -> tuple[float, float]:
        """The least and the most that is left with the further seeds, which are begun when all else is done."""
        first = self.seconds(slots)
        least, most = (max(work / slots, path) for work, path in (self.further.least, self.further.most))
        return first + least, first + most


def plan_sweep(sweep: Sweep) -> SweepPlan:
    """The plan of a sweep; nothing is computed that a sweep would store.

    Raises:
        SpecError: If a trial's values do not go together.
    """
    base = sweep.resolved({})
    # As the slots of this machine would do it: that is what there is experience of.
    slots = slots_of(base, sweep.spec.slots)
    store = Store(base.store)
    chains = Chains(store, sweep.spec.stop.scheduler != "none")
    found: list[Params] = [] if sweep.spec.search.method == "optuna" else trials_of(sweep)
    planner = Planner(Stored(store, chains.carried))
    seen: set[tuple[str, ...]] = set()
    distinct: list[Planned] = []
    names: dict[str, str] = {}
    merged = waiting = 0
    estimated = True
    for params in found:
        spec = with_threads(sweep.resolved(params), slots)
        chain = _chain(chains, store, spec)
        if chain is None:
            waiting += 1
            distinct.append(Planned(params, spec, None))
            continue
        if chain.identity in seen:
            merged += 1
            continue
        seen.add(chain.identity)
        distinct.append(Planned(params, spec, chain))
        names |= {task.work.key: task.label.partition("(")[2].rstrip(")") for task in chain.tasks if task.work.counted}
        planner.add([task.work for task in chain.tasks])
        estimated = estimated and chain.estimated

    def again(params: Params, seed: int) -> Chain | None:
        return _chain(chains, store, with_threads(sweep.resolved(params, seed), slots))

    more = further(sweep, distinct, store, again, Planner(Stored(store, chains.carried)))
    return SweepPlan(len(found), merged, waiting, planner, names, estimated, more)


def _chain(chains: Chains, store: Store, spec: Spec) -> Chain | None:
    """A trial's chain; None where its split is not in the store."""
    for task in chains.beginning(spec, spec.seed):
        if store.find(task.kind, task.work.key) is None:
            return None
    return chains.whole(spec, spec.seed)


def show_sweep_plan(sweep: Sweep, slots: int, console: Console) -> None:
    """Print the plan of a sweep.

    Args:
        sweep: The sweep.
        slots: Phases trained at the same time (`--gpus`).
        console: Where to.
    """
    plan = plan_sweep(sweep)
    search, name = sweep.spec.search, sweep.spec.name
    if search.method == "optuna":
        console.print(f"{name}: Optuna proposes up to {search.trials} trials, each after those before", highlight=False)
        if search.seeds > 1:
            runs = min(search.promising, search.trials) * (search.seeds - 1)
            console.print(f"up to {runs} more runs with further seeds", highlight=False)
        return
    console.print(f"{name}: {plan.trials} trials, {plan.merged} of them another one", highlight=False)
    if plan.waiting:
        console.print(
            f"{plan.waiting} of them are told after scoring: their data is not yet scored and split", highlight=False
        )
    console.print(_tree(plan), highlight=False)
    distinct = plan.planner.distinct()
    console.print(
        f"{plan.asked} phases asked for, {distinct} distinct, {plan.stored} stored, {distinct - plan.stored} to train",
        highlight=False,
    )
    more = plan.further
    if more.runs:
        at_most = "" if more.known else "up to "
        repeated = f"{more.runs} more run{'s' * (more.runs != 1)}"
        console.print(f"{at_most}{repeated} and {more.phases} phases with further seeds", highlight=False)
    left = distinct > plan.stored or (more.known and more.phases > 0)
    if left and plan.estimated:
        said = dict.fromkeys(map(_duration, plan.times(slots)))
        console.print(f"about {' to '.join(said)} on {slots} slots", highlight=False)
    elif left:
        console.print("no phase like these is in the store yet, so nobody knows how long they take", highlight=False)


def _tree(plan: SweepPlan) -> Tree:
    tree = Tree("base model")
    shown = [0]

    def grow(branch: Any, node: Node) -> None:
        if not node.work.counted:
            return
        shown[0] += 1
        if shown[0] > _SHOWN:
            return
        trials = len(set(node.trials))
        mark = "stored" if node.found else "to train"
        shared = f", {trials} trials" if trials > 1 else ""
        label = f"{plan.names.get(node.work.key, '')}  {node.work.key[:8]}  {mark}{shared}"
        below = branch.add(label)
        for child in node.children:
            grow(below, child)

    for node in plan.planner.nodes():
        parent = node.work.parent
        if node.work.counted and (parent is None or not plan.planner.node(parent).work.counted):
            grow(tree, node)
    if shown[0] > _SHOWN:
        tree.add(f"and {shown[0] - _SHOWN} more")
    return tree


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
