"""`phasetune store`: what is in a store, whether it is whole, and how to get the space back."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from components.common.errors import Damaged, UserError
from pipelines.terminal import Terminal

if TYPE_CHECKING:
    from components.common.store import Store

app = typer.Typer(no_args_is_help=True, help="See what is in a store, whether it is whole, and free its space.")
console = Terminal(sys.stdout, 140)

Place = Annotated[
    str, typer.Option("--store", help="A folder, s3://bucket/prefix, or a spec (.yaml).", metavar="PLACE|SPEC")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
USUAL = "runs/store"


def _open(place: str) -> Store:
    from components.common.store import Store

    if place.endswith((".yaml", ".yml")):
        from components.common.spec_file import load_spec

        place = load_spec(Path(place), []).store
    if "://" not in place and not Path(place).is_dir():
        raise UserError(f"there is no store at {place}", "name it with `--store PLACE` or `--store SPEC`")
    return Store(place)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _print_json(values: Any) -> None:
    console.print(json.dumps(values, indent=1), highlight=False)


@app.command("ls")
def list_(store: Place = USUAL, as_json: AsJson = False) -> None:
    """List the results: kind, key, size, age, the phase's name, and the runs that use them."""
    from components.common.store_inventory import take_inventory

    found = take_inventory(_open(store))
    makers = found.makers()
    if as_json:
        _print_json(
            {
                "entries": [asdict(held) for held in found.entries.values()],
                "runs": [{"run": run.run, "started": run.started, "finished": run.finished} for run in found.runs],
                "under_way": [{"kind": kind, "key": key, "by": by} for (kind, key), by in makers.items()],
                "checkpoints": {key: size for key, (_, size, _) in found.checkpoints.items()},
            }
        )
        return
    table = Table("kind", "key", "size", "age", "phase", "used by", box=None, pad_edge=False)
    for held in found.entries.values():
        used = held.runs[0] + (f" and {len(held.runs) - 1} more" if len(held.runs) > 1 else "") if held.runs else "-"
        about = ["damaged", ""] if held.damage else [_bytes(held.size), _age(held.age)]
        table.add_row(held.kind, held.key[:12], *about, held.name, used)
    console.print(table)
    for (kind, key), by in makers.items():
        console.print(f"under way: {kind}/{key[:12]} by {by}", highlight=False)
    for key, (_, size, age) in found.checkpoints.items():
        console.print(f"checkpoints of phase {key[:12]}: {_bytes(size)}, last {_age(age)} ago", highlight=False)
    total = sum(held.size for held in found.entries.values())
    console.print(f"\n{len(found.entries)} results, {_bytes(total)}; {len(found.runs)} runs", highlight=False)


@app.command()
def verify(store: Place = USUAL, as_json: AsJson = False) -> None:
    """Read every result and compare it with the digests taken when it was made; exit code 1 if one is damaged."""
    opened = _open(store)
    checked, damaged = 0, []
    for kind, key in opened.entries.listed():
        try:
            manifest = opened.entries.manifest(kind, key)
            faults = [] if manifest is None else opened.entries.faults(manifest, afresh=True)
        except Damaged as error:
            faults = [error.message]
        checked += 1
        if faults:
            damaged.append({"kind": kind, "key": key, "faults": faults})
            if not as_json:
                console.print(f"damaged: {kind}/{key}: {'; '.join(faults)}", highlight=False)
    if as_json:
        _print_json({"checked": checked, "damaged": damaged})
    else:
        whole = "all whole" if not damaged else f"{len(damaged)} damaged: the next run that needs them makes them again"
        console.print(f"{checked} results read, {whole}", highlight=False)
    if damaged:
        raise typer.Exit(1)


@app.command()
def gc(
    keep_runs: Annotated[int, typer.Option(min=0, help="The newest runs, which keep all that they refer to.")],
    store: Place = USUAL,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")] = False,
    parents: Annotated[bool, typer.Option("--parents", help="Give up also the parents of phases that stay.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete what the newest runs do not need; what is under way stays."""
    from components.common.store_gc import decide, sweep

    opened = _open(store)
    decisions = decide(opened, keep_runs, parents)
    going = [decision for decision in decisions if decision.goes]
    if not as_json:
        for decision in (decision for decision in going if decision.what != "lease"):
            line = f"{decision.what} {decision.name}  {_bytes(decision.size)}  ({decision.reason})"
            console.print(f"{'would delete' if dry_run else 'delete'} {line}", highlight=False)
        for decision in decisions:
            if not decision.goes and decision.reason.startswith("parent of"):
                line = f"{decision.name}  {_bytes(decision.size)}  ({decision.reason}; --parents deletes it)"
                console.print(f"keep {line}", highlight=False)
    freed = sum(decision.size for decision in going) if dry_run else sweep(opened, decisions)
    if as_json:
        _print_json({"dry_run": dry_run, "bytes": freed, "decisions": [decision.to_dict() for decision in decisions]})
        return
    kept = sum(not decision.goes and decision.what == "entry" for decision in decisions)
    leases = sum(decision.what == "lease" for decision in going)
    would = "would be freed" if dry_run else "freed"
    console.print(f"\n{_bytes(freed)} {would}, and {leases} leases nobody holds; {kept} results stay", highlight=False)
