"""sweep.html: what its tables and plots are made of, and that nothing of the data reaches the page as markup."""

from __future__ import annotations

import base64
import copy
import hashlib
import html
import re

import numpy as np
import pytest

from pipelines import sweep_page, sweep_page_plots
from pipelines.sweep_page_importance import importances
from pipelines.sweep_page_tree import MOST_SHOWN, branches
from tests.pipelines.sweep_results_made import made

HOSTILE = "</td><script>alert(1)</script><img src=x onerror=alert(2)>$x^{"


@pytest.fixture(scope="module")
def page():
    return sweep_page.render(made(most_tiers=3))


def table_of(page, kind):
    body = re.search(rf'<table class="{kind}">(.*?)</table>', page, re.DOTALL)[1]
    rows = [
        re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in re.findall(r"<tr.*?</tr>", body, re.DOTALL)
    ]
    return [[html.unescape(re.sub(r"<small>.*?</small>|<[^>]+>", "", cell)).strip() for cell in row] for row in rows]


def test_the_verdict_comes_first(page):
    words = html.unescape(re.sub(r"<style>.*?</style>|<title>.*?</title>|<[^>]+>", " ", page, flags=re.DOTALL)).split()
    assert " ".join(words[:11]) == "orders · sweep No winner at this budget: trial 6 leads."
    assert "<code>search.seeds</code>" in page


def test_all_trials_stand_in_the_table(page):
    heads, *rows = table_of(page, "sortable")
    assert heads == ["trial", "verifiable.accuracy", "tiers", "method", "order", "phases", "tokens", "seconds", "state"]
    assert len(rows) == 9
    assert rows[0] == ["6", "0.690", "3", "length", "2-1-3", "3", "24,060", "19.5", "done"]
    assert [row[4] for row in rows if row[2] == "2"] == ["1-2", "2-1"]


def test_the_page_allows_its_own_script_alone(page):
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert html.unescape(policy) == (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    assert re.findall(r"(?:src|href)=[\"'](?!data:|#)([^\"']+)", page) == []


@pytest.mark.filterwarnings("error")
def test_hostile_names_are_only_text():
    written = made(most_tiers=2)
    written["sentences"] = [f"Winner: {HOSTILE}", f"`{HOSTILE}`"]
    written["name"] = HOSTILE
    for row in written["table"]:
        row["params"] |= {
            f"data.train.{HOSTILE}": HOSTILE + str(row["trial"]),
            "scoring.model": [HOSTILE, {"a": HOSTILE}],
        }
        row["same_as"] = [{HOSTILE: HOSTILE}]
        row["reason"] = row["state"] = HOSTILE
    for row in written["tree"]:
        row["label"] = row["about"] = HOSTILE
    page = sweep_page.render(written)
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert page.count("&lt;script&gt;alert(1)") > 20


def test_a_sweep_without_results_has_a_page():
    written = made(most_tiers=2) | {"contest": None, "sentences": ["No trial came to a result."], "tree": []}
    for row in written["table"]:
        row |= {"metrics": {}, "by_seed": {}, "keys": [], "tokens": None, "state": "failed", "reason": "it diverged"}
    page = sweep_page.render(written)
    assert "No trial came to a result." in page
    assert "3 failed" in page
    assert "it diverged" in page
    assert "data:image" not in page


def test_what_is_not_a_number_is_no_result():
    written = made(most_tiers=2)
    written["table"][0]["metrics"]["verifiable.accuracy"] = float("nan")
    assert len(sweep_page.points_of(written)) == 2
    assert '<div class="verdict incomplete">' in sweep_page.render(written)


def test_seconds_are_those_of_all_phases():
    written = made(most_tiers=2)
    seconds = {row["key"]: row["seconds"] for row in written["tree"]}
    points = {tuple(point.row["order"]): point for point in sweep_page.points_of(written)}
    assert points[2, 1].seconds == seconds["phase-length-2-2"] + seconds["phase-length-2-21"]
    for row in written["tree"]:
        row["seconds"] = None
    assert all(point.seconds is None for point in sweep_page.points_of(written))


def test_heads_are_short_where_that_is_clear():
    names = sweep_page.column_names(["splitting.tiers", "scoring.method", "curriculum.then.0.method"])
    assert names == ["tiers", "scoring.method", "curriculum.then.0.method"]


def test_the_tree_says_who_shares_what():
    written = made(most_tiers=3)
    lines, left_out = branches(written["tree"])
    assert left_out == 0
    said = [(line.depth, line.row["label"], len(line.row["trials"]), round(line.share, 2)) for line in lines]
    assert said[:2] == [(0, "1 tiers", 1, 1.0), (1, "tier-1", 1, 1.0)]
    of_three = said[[label for _, label, *_ in said].index("3 tiers") :]
    assert of_three[0] == (0, "3 tiers", 6, 1.0)
    assert len(of_three) == 1 + 3 + 6 + 6
    assert sorted(row[2:] for row in of_three if row[0] == 1) == [(2, 0.33)] * 3
    assert [row[0] for row in of_three[:4]] == [0, 1, 2, 3]


def test_of_a_large_tree_what_is_shared_is_shown():
    written = made(most_tiers=5)
    lines, left_out = branches(written["tree"])
    assert len(written["tree"]) > MOST_SHOWN
    assert len(lines) + left_out == len(written["tree"])
    assert all(len(line.row["trials"]) > 1 for line in lines if line.depth)
    assert f"{left_out} further phases are left out" in sweep_page.render(written)


def test_the_map_of_orders():
    points = sweep_page.points_of(made(most_tiers=4))
    means, often = sweep_page_plots._map(points, 4)
    assert often.tolist() == [[0, 2, 2, 2], [2, 0, 2, 2], [2, 2, 0, 2], [2, 2, 2, 0]]
    two = [point.value for point in points if point.row["order"] in ([1, 2, 3, 4], [1, 3, 2, 4])]
    assert means[0, 3] == pytest.approx(sum(two) / 2)
    assert np.isnan(means[1, 1])


@pytest.mark.parametrize(
    ("larger", "front"), [(True, [1, 0, 4]), (False, [1, 3])], ids=["more is better", "less is better"]
)
def test_the_pareto_front(larger, front):
    costs, values = [2.0, 1.0, 3.0, 2.0, 4.0], [0.6, 0.5, 0.6, 0.4, 0.7]
    assert sweep_page_plots.pareto(costs, values, larger) == front


def test_text_is_never_a_formula():
    assert sweep_page_plots.plain("a\nb $x^{$\x00 c") == r"a b \$x^{\$ c"
    assert sweep_page_plots.plain("x" * 90, 10) == "x" * 9 + "…"


def test_candidates_are_named_by_what_differs():
    params = {1: {"a": 1, "b": [2]}, 2: {"a": 1, "b": [3]}, 3: {"a": 2, "b": [3]}}
    assert sweep_page_plots.varying(params, [1, 2]) == {1: {"b": [2]}, 2: {"b": [3]}}


def drawn(count, effect, seed=3):
    random = np.random.default_rng(seed)
    params = [{"rate": float(random.uniform()), "method": str(random.choice(["a", "b"]))} for _ in range(count)]
    noise = random.normal(size=count)
    values = [effect * (one["method"] == "b") + 0.1 * each for one, each in zip(params, noise, strict=True)]
    return params, [None] * count, values


def test_the_dimension_that_matters_comes_first():
    first, second = importances(*drawn(60, effect=1.0), confidence=0.95)
    assert (first.key, second.key) == ("method", "rate")
    assert 0.5 < first.low < first.share < first.high == 1
    assert second.low < 0.02
    assert second.high < 0.05


def test_where_nothing_matters_no_interval_leaves_zero():
    for each in importances(*drawn(60, effect=0.0), confidence=0.95):
        assert each.low < 0.05
        assert each.share < 0.15


def test_an_order_is_seen_by_its_ends():
    points = sweep_page.points_of(made(most_tiers=4))
    found = importances(
        [point.row["params"] for point in points],
        [point.row["order"] for point in points],
        [point.value for point in points],
        0.95,
    )
    assert [each.key for each in found] == ["curriculum.order", "splitting.tiers"]
    assert found[0].share > 0.3


@pytest.mark.parametrize(
    ("count", "said"), [(9, "9 trials with a result are too few to tell: at least 12 are needed"), (30, "are the same")]
)
def test_what_cannot_be_told_is_not(count, said):
    params, orders, values = drawn(count, effect=1.0)
    assert said in importances(params, orders, [0.5] * count if count > 20 else values, 0.95)


def test_less_can_be_better():
    written = made(most_tiers=4)
    written["objective"] = {"metric": "loss.nats_per_token", "mode": "min", "on": "held_out"}
    page = sweep_page.render(written)
    assert "loss.nats_per_token decides: lower is better" in page


def test_the_same_results_give_the_same_page():
    written = made(most_tiers=3)
    assert sweep_page.render(written) == sweep_page.render(copy.deepcopy(written))
