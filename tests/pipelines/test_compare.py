"""`phasetune compare`: runs and sweeps whose per-example results are known."""

from __future__ import annotations

import io
import json
import re
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
from pipelines.compare_page import render, sentence, show, verdict_of
from pipelines.compare_page_plots import points_of
from pipelines.sweep_page import digest_of, sort_script
from pipelines.sweep_page_plots import pareto
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
    found |= {"other": write("other", 0.6), "close": write("close", 0.71)}
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
    assert page.count("<script") == 1  # ours, which sorts
    assert f"<script>{sort_script()}</script>" in page
    assert "&lt;script&gt;alert(1)" in page
    assert f"script-src &#39;{digest_of(sort_script())}&#39;" in page.replace("'", "&#39;")
    assert "default-src 'none'" in page


def test_the_verdict_is_one_sentence_with_the_paired_interval(folders):
    """The better run wins by 20 points, whichever is named first; a third that is close to it takes the win away."""
    for names in (["good", "bad"], ["bad", "good"]):
        found = compare(read_contenders([folders[name] for name in names]))
        assert sentence(found).startswith("Winner: good with accuracy 70.0% [")
        assert re.search(r"; \+20\.0 points \[1\d\.\d, 2\d\.\d\], p < \.001, against bad\.$", sentence(found))
        assert sentence(found) in screen(found).replace("\n", " ")
        assert sentence(found).split(" [")[0] in render(found)
    three = sentence(compare(read_contenders([folders[name] for name in ("bad", "twice", "good")])))
    assert three.startswith("Winner: good")
    assert "+10.0 points" in three
    assert three.endswith("against the closest, twice.")
    same = sentence(compare(read_contenders([folders["good"], folders["good"]])))
    assert same.startswith("No winner: ")
    assert same.endswith("are the same model.")


def test_who_leads_by_a_hair_does_not_win(folders, sweep):
    found = sentence(compare(read_contenders([folders[name] for name in ("bad", "good", "close")])))
    assert found.startswith("No winner: close with accuracy 71.0% [")
    assert "leads, but is not told apart: +1.0 points [0.0, " in found
    assert found.endswith("against the closest, good.")
    told = sentence(compare(read_contenders([str(sweep)])))
    assert told.startswith("Winner: orders trial 2 with accuracy 65.0% [")
    unlike = sentence(compare(read_contenders([folders["good"], folders["other"]])))
    assert unlike.startswith("No verdict: good with accuracy 70.0%")
    mixed = sentence(compare(read_contenders([folders[name] for name in ("good", "bad", "other")])))
    assert mixed.startswith("Winner: good")
    assert mixed.endswith("against bad; 1 of the others cannot be compared with it.")


def test_the_table_can_be_sorted_and_names_cost(sweep):
    page = render(compare(read_contenders([str(sweep)])))
    table = page.partition('<table class="sortable">')[2].partition("</table>")[0]
    heads = re.findall(r"<th[^>]*>([^<]*)</th>", table)
    assert heads == ["no.", "name", "held-out accuracy", "loss", "phases", "tokens", "seconds", "seeds"]
    rows = [re.findall(r'data-by="([^"]*)"', row) for row in table.split("<tr>")[2:]]
    assert [(row[0], row[3], row[4]) for row in rows] == [("1", "2", "24020"), ("2", "1", "24010"), ("3", "2", "24030")]
    assert all(len(row) == 7 for row in rows)
    assert {name for name in ("counts", "cost") if f"<h2>{HEADS[name]}</h2>" in page} == {"counts", "cost"}


HEADS = {"counts": "How many phases?", "cost": "What does quality cost?"}


def test_two_have_no_front_and_one_number_of_phases_needs_no_plot(folders):
    page = render(compare(read_contenders([folders["good"], folders["bad"]])))
    assert not any(head in page for head in HEADS.values())
    three = render(compare(read_contenders([folders[name] for name in ("good", "bad", "twice")])))
    assert [head in three for head in HEADS.values()] == [False, True]


def test_points_are_in_the_units_of_the_table_and_the_front_is_the_cheapest_best(sweep):
    points = points_of(compare(read_contenders([str(sweep)])))
    assert [round(point.value) for point in points] == [65, 60, 45]
    assert [len(point.row["keys"]) for point in points] == [2, 1, 2]
    assert all(point.low < point.value < point.high for point in points)
    costs, values = [point.row["tokens"] for point in points], [point.value for point in points]
    assert pareto(costs, values, larger_is_better=True) == [1, 0]
    assert all(point.seconds > 3 for point in points)


def test_seconds_of_a_run_are_told_only_if_all_its_phases_have_theirs(folders, tmp_path):
    summary = json.loads((Path(folders["good"]) / "summary.json").read_text())
    for phase in summary["phases"]:
        phase["train_seconds"] = 2.5
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    good, timed = read_contenders([folders["bad"], str(tmp_path)])
    assert (good.seconds, timed.seconds) == (None, 2.5 * len(summary["phases"]))
    assert good.phases == timed.phases == len(summary["phases"])


def test_runs_are_read_from_their_store(folders):
    out = Path(folders["good"])
    info = json.loads((out / "run.json").read_text())
    record = RunRecords(info["store"], info["run"]).read("evaluate.main.3.s17")
    assert read_contenders([folders["good"], folders["bad"]])[0].ends == {17: record.uri}
