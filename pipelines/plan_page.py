"""How a plan is shown: the resolved spec, what is before the phases, and the phases."""

from __future__ import annotations

import yaml
from rich.console import Console
from rich.table import Table

from components.common.curriculum import phase_specs
from components.common.errors import redact
from components.common.spec import Spec
from pipelines.memory_check import gib
from pipelines.planning import Plan, PlannedPhase, check_inputs, make_plan


def resolved_yaml(spec: Spec) -> str:
    """The resolved spec, with the shorthand of the curriculum expanded into its phases."""
    values = spec.model_dump(mode="json")
    values["tracking"]["uri"] = redact(spec.tracking.uri)
    curriculum = values["curriculum"]
    if curriculum["phases"] is None:
        phases = phase_specs(spec, spec.all_seeds[0])
        curriculum["phases"] = [phase.model_dump(mode="json", exclude_none=True) for phase in phases]
        # The list says it all; the two forms together would not be accepted.
        del curriculum["order"], curriculum["replay"]
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    return text


def show_plan(spec: Spec, console: Console) -> None:
    """Print the plan of a run."""
    check_inputs(spec)
    plan = make_plan(spec)
    console.print("# the resolved spec; `curriculum.phases` is the shorthand, expanded", highlight=False)
    console.print(resolved_yaml(spec), highlight=False)
    first = Table("step", "key", "in the store", title="before the phases", title_justify="left", box=None)
    for name, key, stored in plan.steps:
        first.add_row(name, key[:12], "yes" if stored else "no")
    console.print(first)
    console.print()
    console.print(_phases(spec, plan))
    _sum(plan, console)


def _phases(spec: Spec, plan: Plan) -> Table:
    """The table of the phases."""
    where = "each GPU" if spec.compute.gpus_per_worker else "memory"
    columns = ("curriculum", "phase", "key", "method", "tokens", "steps", where, "time", "in the store")
    table = Table(*columns, box=None, pad_edge=False)
    table.title, table.title_justify = "phases and controls", "left"
    several = len(spec.all_seeds) > 1
    for item in plan.phases:
        name = item.plan.curriculum + (f" (seed {item.seed})" if several else "")
        table.add_row(
            name,
            f"{item.plan.index} {item.plan.name}",
            item.key[:12] if item.key else item.waits,
            item.plan.method,
            f"{item.tokens:,}" if item.tokens is not None else "-",
            _steps(item),
            "?" if item.need is None else ("≤ " if item.bound else "") + gib(item.need.needed),
            "-" if item.stored else "?" if item.seconds is None else duration(item.seconds),
            "yes" if item.stored else "no",
        )
    return table


def _steps(item: PlannedPhase) -> str:
    if item.steps is None:
        return "-"
    at_most = item.plan.generate is not None and not item.stored  # prompts that give no pair are left out
    return f"{'≤ ' if at_most else ''}{item.steps}"


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _sum(plan: Plan, console: Console) -> None:
    """The last lines: what is to be done, and what could not be told."""
    done = sum(item.stored for item in plan.phases)
    left: dict[str | None, PlannedPhase] = {item.key: item for item in plan.phases if item.key and not item.stored}
    console.print(f"\n{len(plan.phases)} phases, {done} in the store", end="", highlight=False)
    if any(item.key for item in plan.phases):
        todo = sum(item.tokens or 0 for item in left.values())
        console.print(f"; to train: {len(left)} phases, {todo:,} tokens", end="", highlight=False)
    console.print()
    if any(item.need is not None and not item.need.fits and not item.stored for item in plan.phases):
        there = min(item.need.there for item in plan.phases if item.need is not None and item.need.there is not None)
        said = f"{gib(there)} can be had; where examples are as long as `max_length`, a phase does not fit"
        console.print("memory: ", style="bold yellow", end="")
        console.print(said, highlight=False)
    if any(item.seconds is None and not item.stored for item in plan.phases):
        console.print("time ?: unknown until a phase of this model and method has run here", highlight=False)
