"""`phasetune sweep` and `plan`: the shipped sweep, the page of keys, and how a sweep is told from a spec."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from components.common.errors import SpecError
from pipelines import sweep_cli, sweep_spec_page
from pipelines.sweep_plan import show_sweep_plan
from pipelines.sweep_space import trials_of
from pipelines.sweep_spec import SweepSpec, load_sweep

ROOT = Path(__file__).resolve().parents[2]
SPECS = ROOT / "pipelines" / "specs"


def test_the_page_of_keys_is_current():
    page = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    assert sweep_spec_page.table() in page
    assert sweep_spec_page.renewed(page) == page


def test_every_key_has_a_meaning():
    rows = [line.split(" | ") for line in sweep_spec_page.table().splitlines()[2:]]
    assert {row[0].strip("|` ").split(".")[0] for row in rows} == set(SweepSpec.model_fields)
    assert [row[0] for row in rows if not row[3].strip(" |")] == []
    assert len({row[0] for row in rows}) == len(rows)


def test_a_page_without_the_table_is_not_touched():
    with pytest.raises(ValueError, match="no table of keys"):
        sweep_spec_page.renewed("# Another page\n")


def test_the_shipped_sweep_is_all_orders_of_one_to_four_tiers():
    sweep = load_sweep(SPECS / "sweep_orders.yaml")
    trials = trials_of(sweep)
    assert len(trials) == 33
    assert all(sweep.resolved(params).controls == [] for params in trials)


def test_the_sweep_that_the_docs_show_is_valid(tmp_path):
    import yaml

    page = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    shown = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    stop = yaml.safe_load(page.partition("```yaml\nstop:")[2].partition("```")[0].join(["stop:", ""]))
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**shown, **stop, "base": str(SPECS / "quickstart.yaml")}))
    sweep = load_sweep(tmp_path / "sweep.yaml")
    trials = trials_of(sweep)
    assert 30 <= len(trials) <= 40
    for params in trials:
        sweep.resolved(params)


@pytest.mark.parametrize(("name", "expected"), [("sweep_orders.yaml", True), ("quickstart.yaml", False)])
def test_a_sweep_is_told_from_a_spec(name, expected):
    assert sweep_cli.is_sweep(SPECS / name) is expected


def test_set_of_a_key_that_nobody_has_is_refused():
    with pytest.raises(SpecError, match="evaluatoin"):
        load_sweep(SPECS / "sweep_orders.yaml", ["evaluatoin.max_new_tokens=3"])


def test_plan_of_optuna_says_who_proposes(world):
    sweep = world.sweep({"splitting.tiers": [1, 2]}, search={"method": "optuna", "trials": 7})
    console = Console(file=io.StringIO(), width=140)
    show_sweep_plan(sweep, 2, console)
    assert "Optuna proposes up to 7 trials, each after those before" in console.file.getvalue()
