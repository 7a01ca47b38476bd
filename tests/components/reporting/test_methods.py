"""The report of a run whose phases are of several methods, with data of their own."""

import json
from itertools import pairwise

import pytest

from components.common.curriculum import MAIN
from components.common.records import RunRecords
from components.reporting.comparisons import compare
from components.reporting.report import write_report
from components.reporting.results import load_results
from components.reporting.verdict import verdict
from tests.components.reporting import build_run as runs

PAIRS = {"method": "dpo", "data": [{"path": "lab://preferences?count=500"}]}
PROMPTS = {"name": "rl", "method": "grpo", "steps": 8, "data": [{"path": "lab://instructions?families=pipeline"}]}
EXAMPLES = 300  # three tiers of a hundred; the slice is a test of its own


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    spec = runs.spec_of(curriculum={"then": [PAIRS, PROMPTS]}, controls=["one_off"])
    summary = write_report(runs.build_run(folder, spec=spec), folder / "out")
    return summary, (folder / "out" / "report.html").read_text(), folder / "out"


def test_phases_are_named_after_their_method(finished):
    summary, page, _ = finished
    assert [(phase["name"], phase["method"]) for phase in summary["phases"]] == [
        ("tier-1", "sft"), ("tier-2", "sft"), ("tier-3", "sft"), ("dpo", "dpo"), ("rl", "grpo"),
    ]  # fmt: skip
    assert summary["verdict"].startswith("5 phases, ascending, then dpo, rl: held-out accuracy 62.0%")
    assert "4. dpo" in page
    assert "5. rl" in page


def test_every_phase_is_beside_the_one_before_it(finished):
    summary, _, _ = finished
    whole = [change for change in summary["changes"] if change["metric"] == "verifiable.accuracy"]
    assert [change["phase"] for change in whole] == ["tier-1", "tier-2", "tier-3", "dpo", "rl"]
    # Accuracy rises evenly from 16% to 62%; each tier's is a whole number of a hundred.
    assert whole[0]["before"] == pytest.approx(0.16)
    assert whole[-1]["after"] == pytest.approx(0.62)
    for before, after in pairwise(whole):
        assert after["before"] == before["after"]
    for change in whole:
        assert change["difference"] == pytest.approx(change["after"] - change["before"])
        assert change["low"] <= change["difference"] <= change["high"]
        assert (change["n"], change["seeds"]) == (EXAMPLES, 1)
    assert all(0 <= change["p"] <= 1 for change in whole)
    assert {change["p"] for change in summary["changes"] if change not in whole} == {None}
    assert {change["metric"] for change in summary["changes"]} == {
        "verifiable.accuracy", "verifiable.unseen_wording.accuracy",
    }  # fmt: skip


def test_the_verdict_says_what_the_later_phases_changed(finished):
    summary, _, _ = finished
    dpo, rl = (change for change in summary["changes"] if change["index"] > 3 and "unseen" not in change["metric"])
    sentence = f"Rl (GRPO): held-out accuracy {100 * rl['before']:.1f}% before, 62.0% after (difference "
    assert sentence in summary["verdict"]
    assert f"[{100 * rl['low']:.1f}, {100 * rl['high']:.1f}] on 300 examples that no phase saw)" in summary["verdict"]
    assert f"DPO: held-out accuracy {100 * dpo['before']:.1f}% before" in summary["verdict"]
    assert "Tier-1" not in summary["verdict"]


def test_an_interval_that_holds_zero_shows_no_difference(tmp_path):
    spec = runs.spec_of(curriculum={"then": [PROMPTS]}, controls=[])
    results = load_results(runs.build_run(tmp_path, spec=spec, final={MAIN: 0.17}))
    assert "after (no difference shown, difference" in verdict(results, compare(results))


def test_data_of_the_phases_own_are_in_the_report(finished):
    summary, page, _ = finished
    by_name = {phase["name"]: phase["data"] for phase in summary["phases"]}
    assert (by_name["dpo"]["held_out"], by_name["rl"]["rows_in"], by_name["tier-1"]) == (41, 500, None)
    control = {phase["name"]: phase["data"] for phase in summary["controls"][0]["phases"]}
    assert control["dpo"] == by_name["dpo"]
    assert [row["step"] for row in summary["timing"]].count("prepare.main.4.s17") == 1
    assert "Data of the phases&#39; own" in page or "Data of the phases' own" in page
    assert "lab://preferences?count=500" in page
    assert ">409<" in page  # 450 examples, of which 41 are left out


def test_a_missing_preparation_is_named(tmp_path):
    spec = runs.spec_of(curriculum={"then": [PAIRS]}, controls=[])
    results = load_results(runs.build_run(tmp_path, spec=spec, missing={"prepare.main.4.s17"}))
    assert results.missing == ("prepare.main.4.s17",)
    assert "prepare.main.4.s17 is missing" in verdict(results, compare(results))


def test_rollouts_and_pairs_are_shown_and_escaped(finished):
    _, page, _ = finished
    assert "5. rl (grpo): rollouts" in page
    assert "&lt;i&gt;1&lt;/i&gt; + 1?" in page
    assert "&lt;i&gt;8&lt;/i&gt; + 1?" in page
    assert "&lt;i&gt;4&lt;/i&gt;" not in page  # of the first and the last step only
    assert "&lt;script&gt;" in page
    assert "<script" not in page


def test_each_method_has_its_own_panel(finished, tmp_path):
    from components.reporting.learning_plot import learning_figure
    from components.reporting.plot_style import WIDE, drawing

    _, _, out = finished
    records = RunRecords(out.parent / "store", json.loads((out / "summary.json").read_text())["run"])
    with drawing():
        figure = learning_figure(load_results(records), WIDE)
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels == ["training loss, nats per token", "DPO loss (sigmoid_norm)", "mean reward"]
    ends = [axes.get_xlim() for axes in figure.axes]
    assert ends[0][0] == 0
    assert ends[2][1] - ends[2][0] >= 8  # the eight steps of GRPO, of main and of the control


def test_several_seeds(tmp_path):
    spec = runs.spec_of(curriculum={"then": [PAIRS]}, controls=[], seeds=[1, 2])
    change = next(each for each in compare(load_results(runs.build_run(tmp_path, spec=spec))).changes if each.plan.data)
    assert (change.plan.name, change.part, change.seeds, change.n) == ("dpo", "", 2, EXAMPLES)
    assert change.comparison.low < change.comparison.difference < change.comparison.high
    assert change.before.value < change.after.value
