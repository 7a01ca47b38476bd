"""`phasetune compare`: runs and sweeps whose per-example results are known."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from components.common.errors import UserError
from components.common.records import RunRecords, StepRecord
from components.reporting import comparisons
from components.reporting.results import load_results
from components.reporting.summary import build_summary
from pipelines.compare import compare, read_contenders
from pipelines.compare_page import render, show, verdict_of
from tests.components.reporting import build_run as runs
from tests.pipelines.sweep_results_made import made


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Output folders: two runs 20 points apart, one of two seeds, and one on other held-out examples."""
    root = tmp_path_factory.mktemp("runs")

    def write(name, accuracy, **changes):
        spec = runs.spec_of(name, controls=[], **changes)
        records = runs.build_run(root / name, spec=spec, final={"main": accuracy})
        out = root / name / "out"
        out.mkdir()
        results = load_results(records)
        report = StepRecord("report", "reports", "", str(out), False, 0.0, 0.0)
        summary = build_summary(results, comparisons.compare(results), "", report)
        (out / "summary.json").write_text(json.dumps(summary))
        (out / "run.json").write_text(records.info().to_json())
        return str(out)

    found = {"good": write("good", 0.7), "bad": write("bad", 0.5), "twice": write("twice", 0.6, seeds=[1, 2])}
    found["other"] = write("other", 0.6)
    for path in (root / "other" / "store" / "evaluations").glob("*/examples.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.slice(10), path)
    return found


@pytest.fixture
def sweep(tmp_path):
    """A sweep's folder with the results of its trials, one by one, at known accuracies."""
    written = made(most_tiers=2)
    for row, accuracy in zip(written["table"], (0.65, 0.6, 0.45), strict=True):
        place = tmp_path / f"evaluation-{row['trial']}"
        place.mkdir()
        table = runs.examples_table(accuracy, row["trial"])
        pq.write_table(table, place / "examples.parquet")
        row["metrics"] = runs.metrics_of(table, True)
        row["evaluations"] = {"17": str(place)}
    (tmp_path / "sweep.json").write_text(json.dumps(written))
    return tmp_path


def screen(compared):
    console = Console(file=io.StringIO(), width=140)
    show(compared, console)
    return console.file.getvalue()


def test_two_runs_side_by_side(folders):
    found = compare(read_contenders([folders["good"], folders["bad"]]))
    assert [round(level.value, 3) for level in found.levels] == [0.7, 0.5]
    (pair,) = found.pairs
    assert pair.comparison.difference == pytest.approx(0.2)
    assert 0.1 < pair.comparison.low < 0.2 < pair.comparison.high < 0.3
    assert (pair.n, pair.seeds, pair.chance) == (300, 1, 1.0)
    assert verdict_of(pair, found.measure) == "better"
    said = screen(found)
    assert "70.0%" in said
    assert "good minus bad: +20.0 points" in said
    assert "luck in training is not excluded" in said


def test_the_other_way_round_the_sign_turns(folders):
    (one,) = compare(read_contenders([folders["good"], folders["bad"]])).pairs
    (other,) = compare(read_contenders([folders["bad"], folders["good"]])).pairs
    assert other.comparison.difference == -one.comparison.difference
    assert other.comparison.high == pytest.approx(-one.comparison.low, abs=0.01)
    assert other.chance == 0.0


def test_other_held_out_examples_are_not_compared(folders):
    found = compare(read_contenders([folders["good"], folders["other"]]))
    assert [level is not None for level in found.levels] == [True, True]
    (pair,) = found.pairs
    assert pair.comparison is None
    assert pair.said == "not comparable: other held-out examples (300 and 290, 290 in both)"
    for text in (screen(found), render(found)):
        assert "not comparable: other held-out examples" in text
        assert "points" not in text


def test_seeds_are_paired(folders):
    found = compare(read_contenders([folders["twice"], folders["good"]]))
    assert (found.pairs[0].seeds, found.pairs[0].n) == (1, 300)
    twice = compare(read_contenders([folders["twice"], folders["twice"]]))
    assert twice.pairs[0].seeds == 2
    assert verdict_of(twice.pairs[0], twice.measure) == "the same model"


def test_p_values_are_adjusted(folders):
    alone = compare(read_contenders([folders["good"], folders["twice"]])).pairs[0]
    three = compare(read_contenders([folders["good"], folders["twice"], folders["bad"]]))
    assert len(three.pairs) == 3
    assert three.pairs[0].comparison == alone.comparison
    assert three.pairs[0].p_holm >= alone.p_holm
    assert "adjusted for 3 comparisons" in " ".join(three.notes)


def test_of_a_sweep_the_leader_is_compared_and_named_as_chosen(folders, sweep):
    found = compare(read_contenders([folders["bad"], str(sweep)]))
    assert [one.name for one in found.contenders] == ["bad", "orders trial 2"]
    assert found.pairs[0].comparison.difference == pytest.approx(-0.15)
    assert "orders trial 2 was chosen from 3 trials by results on these held-out examples" in found.notes[0]


def test_a_sweep_alone_compares_its_best(sweep):
    found = compare(read_contenders([str(sweep)]))
    assert [one.name for one in found.contenders] == ["orders trial 2", "orders trial 1", "orders trial 3"]
    assert len(found.pairs) == 3


def test_a_trial_that_is_named_was_not_chosen(sweep):
    found = compare(read_contenders([f"{sweep}:1", f"{sweep}:3"]))
    assert [one.name for one in found.contenders] == ["orders trial 1", "orders trial 3"]
    assert "chosen" not in " ".join(found.notes)


def test_results_that_are_gone_leave_the_levels(folders, sweep):
    for path in sweep.glob("evaluation-*/examples.parquet"):
        path.unlink()
    found = compare(read_contenders([folders["bad"], str(sweep)]))
    assert found.levels[1].value == pytest.approx(0.65, abs=0.01)
    assert found.pairs[0].said == "the single answers of orders trial 2 are gone from its store"


def test_names_that_are_the_same_are_told_apart(folders, tmp_path):
    names = [one.name for one in read_contenders([folders["good"], folders["good"]])]
    assert names == [f"{folders['good']}: good"] * 2


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (["nothing", "more"], "there is no summary.json of a run and no sweep.json of a sweep in nothing"),
        (["{good}"], "there is only one result to compare"),
        (["{good}", "{sweep}:9"], "trial 9 of the sweep"),
        (["{good}", "{broken}"], "cannot be read"),
    ],
)
def test_what_cannot_be_compared_is_refused(folders, sweep, tmp_path, named, said):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "summary.json").write_text("{")
    with pytest.raises(UserError, match=said):
        read_contenders([name.format(**folders, sweep=sweep, broken=broken) for name in named])


def test_a_run_without_a_result_is_named(folders, tmp_path):
    summary = json.loads((Path(folders["good"]) / "summary.json").read_text())
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"name": "stopped", "metrics": {}}))
    with pytest.raises(UserError, match="stopped did not come to a result"):
        compare(read_contenders([folders["good"], str(tmp_path)]))


def test_the_page_escapes_what_users_wrote(folders, tmp_path):
    summary = json.loads((Path(folders["good"]) / "summary.json").read_text())
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"name": "<script>alert(1)</script>$x^{"}))
    page = render(compare(read_contenders([folders["good"], str(tmp_path)])))
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "script-src" not in page
    assert "default-src 'none'" in page


def test_runs_are_read_from_their_store(folders):
    out = Path(folders["good"])
    info = json.loads((out / "run.json").read_text())
    record = RunRecords(info["store"], info["run"]).read("evaluate.main.3.s17")
    assert read_contenders([folders["good"], folders["bad"]])[0].ends == {17: record.uri}
