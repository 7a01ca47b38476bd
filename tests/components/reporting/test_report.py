import json
import re

import pytest
from rich.console import Console

from components.reporting.report import write_report
from components.reporting.table import results_table
from tests.components.reporting import build_run as runs

PHASE = {
    "name", "curriculum", "index", "method", "key", "parent_key", "tier", "examples", "tokens", "steps", "seconds",
    "reused", "metrics",
}  # fmt: skip
PLOTS = ["controls", "difficulty", "learning", "phases-accuracy", "phases-loss", "timing"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A plain run's summary and the folder with its report."""
    folder = tmp_path_factory.mktemp("plain")
    return write_report(runs.build_run(folder), folder / "out"), folder / "out"


def screen(summary):
    console = Console(width=100, color_system=None)
    with console.capture() as captured:
        console.print(results_table(summary))
    return captured.get()


def test_summary_has_the_fixed_names(finished):
    summary, out = finished
    assert json.loads((out / "summary.json").read_text()) == summary
    fixed = {"run", "spec_digest", "verdict", "phases", "controls", "base", "data", "timing", "mlflow"}
    assert fixed <= set(summary)
    assert summary["run"] == "night-0001"
    assert all(set(phase) >= PHASE for phase in summary["phases"])
    assert [phase["name"] for phase in summary["phases"]] == ["tier-1", "tier-2", "tier-3"]
    assert {phase["curriculum"] for phase in summary["phases"]} == {"main"}
    assert summary["phases"][1]["parent_key"] == summary["phases"][0]["key"]
    assert summary["data"] == {
        "rows_in": 3200, "expanded": 40, "examples": 3000, "duplicates": 150, "rejected": 20, "unsampled": 70,
        "held_out": 340,
    }  # fmt: skip
    assert summary["mlflow"] == {"uri": "sqlite:///mlflow.db", "run_id": "abc123"}
    assert all(set(row) >= {"step", "seconds", "overhead_seconds"} for row in summary["timing"])
    assert summary["timing"][0]["step"] == "prepare" and summary["timing"][-1]["step"] == "report"


def test_summary_holds_the_known_results(finished):
    summary, _ = finished
    assert summary["base"]["metrics"]["verifiable.accuracy"] == pytest.approx(0.16)
    assert summary["phases"][2]["metrics"]["verifiable.accuracy"] == pytest.approx(0.62)
    assert summary["against_base"]["difference"] == pytest.approx(0.46)
    one_off, random_tiers = summary["controls"]
    assert [one_off["name"], random_tiers["name"]] == ["one_off", "random_tiers"]
    against = one_off["against_main"]
    assert against["metric"] == "verifiable.accuracy"
    assert against["difference"] == pytest.approx(0.01)
    assert against["low"] <= 0.01 <= against["high"]
    assert (against["n"], against["seeds"], against["tokens_difference"], against["steps_difference"]) == (300, 1, 0, 1)
    assert against["outcome"] == "no difference shown"
    assert random_tiers["against_main"]["outcome"] == "better"
    assert random_tiers["against_main"]["p_holm"] == pytest.approx(2 * random_tiers["against_main"]["p"])
    assert random_tiers["metrics"]["verifiable.accuracy"] == pytest.approx(0.52)
    assert len(random_tiers["phases"]) == 3


def test_the_page_loads_nothing_from_elsewhere(finished):
    _, out = finished
    html = (out / "report.html").read_text()
    loads = re.findall(r"""(?:src|srcset|href|action)\s*=\s*["']([^"']{0,40})|url\(([^)]{0,40})|@import""", html)
    assert loads and all(one.startswith("data:image/png;base64,") for one, _ in loads)
    assert "<script" not in html and "<link" not in html
    assert len(html) < 2_500_000


def test_every_plot_is_written_and_embedded_for_desk_and_phone(finished):
    _, out = finished
    assert sorted(path.stem for path in (out / "plots").glob("*.png")) == PLOTS
    assert (out / "report.html").read_text().count("data:image/png;base64,") == 2 * len(PLOTS)
    assert not list(out.rglob(".*"))


def test_the_page_shows_its_sections_in_order(finished):
    summary, out = finished
    html = (out / "report.html").read_text()
    assert f'<meta name="description" content="{summary["verdict"]}">' in html.replace("&lt;", "<")
    marks = [
        "held-out accuracy", "How the training went", "After every phase", "The controls beside the main run",
        "unseen wording", "Was it the same compute?", "Difficulty and tiers", "Where every row went", "3,240 = 3,240",
        "the ledger closes", "rows have `messages` with roles", "runs/night/rejected.jsonl", "A few answers", "Tier 1",
        "The plan", "Where the time went", "Versions and machine", "The resolved spec", "cut: quantiles",
    ]  # fmt: skip
    places = [html.index(mark, html.index("<header>")) for mark in marks if mark != "unseen wording"]
    assert places == sorted(places)
    assert "unseen wording" in html
    assert "Rank correlation (Spearman) of difficulty with the response&#39;s length: +0.31." in html
    assert "with the difficulty given in the data: +0.64." in html


def test_data_is_escaped(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    evil = "<script>alert('x')</script>"
    records = runs.build_run(
        tmp_path,
        spec=runs.spec_of(controls=[], data={"train": [{"path": f"{evil}.json"}]}),
        source=f"{evil}.json",
        info={"name": evil, "versions": {evil: evil}, "machine": {"cpu": evil}},
    )
    path = tmp_path / "store/evaluations" / records.read("evaluate.main.3.s17").key / "examples.parquet"
    table = pq.read_table(path)
    for column in ("response", "prompt", "expected"):
        place = table.schema.get_field_index(column)
        table = table.set_column(place, column, pa.array([evil] * len(table)))
    pq.write_table(table, path)
    summary = write_report(records, tmp_path / "out")
    html = (tmp_path / "out/report.html").read_text()
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 20
    assert "<script>" in screen(summary)


def test_secrets_in_urls_stay_out(tmp_path):
    info = {"mlflow": {"uri": "http://ann:hunter2@tracking:5000", "run_id": "1"}}
    spec = runs.spec_of(controls=[], tracking={"uri": "http://ann:hunter2@tracking:5000"})
    summary = write_report(runs.build_run(tmp_path, spec=spec, info=info), tmp_path / "out")
    assert summary["mlflow"]["uri"] == "http://***@tracking:5000"
    assert "hunter2" not in (tmp_path / "out/report.html").read_text()


def test_a_run_that_did_nothing_is_still_reported(tmp_path):
    everything = {"prepare", "score", "split.s17", "evaluate.base"}
    for name, count in (("main", 3), ("one_off", 1), ("random_tiers", 3)):
        everything |= {f"{stage}.{name}.{i}.s17" for stage in ("train", "evaluate") for i in range(1, count + 1)}
    summary = write_report(runs.build_run(tmp_path, missing=everything), tmp_path / "out")
    assert set(summary["missing"]) == everything
    assert summary["complete"] is False and summary["phases"] == []
    assert summary["data"]["rows_in"] is None
    assert summary["controls"][0]["against_main"]["difference"] is None
    assert "The run is incomplete" in (tmp_path / "out/report.html").read_text()
    assert "base" in screen(summary)


def test_several_seeds(tmp_path):
    spec = runs.spec_of(seeds=[1, 2], controls=["one_off"])
    summary = write_report(runs.build_run(tmp_path, spec=spec, by_seed={1: 0.02, 2: -0.02}), tmp_path / "out")
    assert [(phase["seed"], phase["index"]) for phase in summary["phases"]] == [
        (1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)
    ]  # fmt: skip
    metrics = summary["controls"][0]["metrics"]
    assert metrics["verifiable.accuracy"] == pytest.approx(0.61)
    assert metrics["verifiable.accuracy.seed_sd"] == pytest.approx(0.04 / 2**0.5)
    assert metrics["verifiable.accuracy.low"] < 0.61 < metrics["verifiable.accuracy.high"]
    assert "main, 2 seeds" in screen(summary)


def test_a_second_report_has_the_same_plots(finished, tmp_path):
    _, out = finished
    write_report(runs.build_run(tmp_path), tmp_path / "out")
    for name in PLOTS:
        assert (tmp_path / "out/plots" / f"{name}.png").read_bytes() == (out / "plots" / f"{name}.png").read_bytes()


def test_the_time_before_the_report_counts_as_overhead(tmp_path):
    import time

    summary = write_report(runs.build_run(tmp_path), tmp_path / "out", started=time.time() - 5)
    assert summary["timing"][-1]["overhead_seconds"] == pytest.approx(5, abs=0.5)
    assert summary["timing"][-1]["seconds"] > summary["timing"][-1]["overhead_seconds"]


def test_the_table_fits_the_screen(finished):
    lines = screen(finished[0]).splitlines()
    assert max(map(len, lines)) <= 100
    assert not any("…" in line for line in lines)
    assert re.search(
        r"main: tier-3 +77.0% +62.0% +47.0% +62.0% \[[\d.]+, [\d.]+\] +80,000 +16 +12.5 +no", "\n".join(lines)
    )
    assert re.search(r"random tiers .* 240,000 +48 +37.5 +1/3", "\n".join(lines))
