import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from components.common.digests import digest_lines, hash_order
from components.common.errors import DataError
from components.common.examples import SCORED_SCHEMA, Example, read_examples, read_rows, write_rows
from components.common.spec import SplittingSpec
from components.splitting.split import HELD_OUT_SCHEMA, split

SPEC = SplittingSpec(tiers=2)


def row(name, score, tokens=10, response_tokens=4, **fields):
    example = Example(
        id=name, source="test", messages=(("user", f"ask {name}"), ("assistant", f"say {name}")), fields=fields
    )
    return {**example.to_row(), "difficulty": score, "tokens": tokens, "response_tokens": response_tokens}


def save(path, rows):
    write_rows(path, rows, SCORED_SCHEMA)
    return path


def ids(path):
    return [line["id"] for line in read_rows(path, ["id"])]


def test_the_report_of_a_small_split(tmp_path):
    scores = save(
        tmp_path / "scores.parquet",
        [
            row("a", 4.0, 40, 20, difficulty=3),
            row("b", 1.0, 10, 5, difficulty=1),
            row("c", 2.0, 30, 15, difficulty=2),
            row("d", 3.0, 20, 10, difficulty="hard"),
        ],
    )
    held_out = save(tmp_path / "held_out_scores.parquet", [row("y", 9.0), row("x", 3.0), row("z", 2.9)])
    report = split(scores, held_out, SPEC, 17, tmp_path / "out")
    histogram = report.pop("histogram")
    easy, hard = hash_order(["b", "c"], 17, "order"), hash_order(["a", "d"], 17, "order")
    assert report == {
        "cut": "quantiles",
        "cuts": [3.0],
        "spearman_difficulty_length": pytest.approx(0.8),  # ranks 4 1 2 3 against 4 1 3 2: 1 - 6 * 2 / 60
        "spearman_difficulty_given": pytest.approx(1.0),
        "tiers": [
            {
                "tier": 1,
                "examples": 2,
                "tokens": 40,
                "response_tokens": 20,
                "difficulty": {"min": 1.0, "q1": 1.25, "median": 1.5, "q3": 1.75, "max": 2.0},
                "length": {"min": 10.0, "q1": 15.0, "median": 20.0, "q3": 25.0, "max": 30.0},
                "digest": digest_lines(easy),
                "held_out": 1,
            },
            {
                "tier": 2,
                "examples": 2,
                "tokens": 60,
                "response_tokens": 30,
                "difficulty": {"min": 3.0, "q1": 3.25, "median": 3.5, "q3": 3.75, "max": 4.0},
                "length": {"min": 20.0, "q1": 25.0, "median": 30.0, "q3": 35.0, "max": 40.0},
                "digest": digest_lines(hard),
                "held_out": 2,
            },
        ],
        "examples": 4,
        "tokens": 100,
    }
    assert sum(histogram["counts"]) == 4
    assert json.loads((tmp_path / "out/split_report.json").read_text())["tiers"] == report["tiers"]
    assert ids(tmp_path / "out/tier-1.parquet") == easy
    assert ids(tmp_path / "out/tier-2.parquet") == hard


def test_rows_keep_their_content_and_the_files_their_schema(tmp_path):
    rows = {name: row(name, float(index), topic="maths") for index, name in enumerate("abcdef")}
    scores = save(tmp_path / "scores.parquet", rows.values())
    held_out = save(tmp_path / "held.parquet", [row("z", 9.0), row("y", 0.0), row("x", 3.0)])
    split(scores, held_out, SPEC, 17, tmp_path / "out")
    for tier in (1, 2):
        path = tmp_path / f"out/tier-{tier}.parquet"
        assert pq.read_schema(path).equals(SCORED_SCHEMA)
        assert {line["id"]: line for line in read_rows(path)} == {name: rows[name] for name in ids(path)}
        assert [example.fields for example in read_examples(path)] == [{"topic": "maths"}] * 3
    assert pq.read_schema(tmp_path / "out/held_out.parquet").equals(HELD_OUT_SCHEMA)
    lines = [(line["id"], line["tier"]) for line in read_rows(tmp_path / "out/held_out.parquet")]
    assert lines == [("z", 2), ("y", 1), ("x", 2)]


def test_nothing_but_the_results_is_left(tmp_path):
    scores = save(tmp_path / "scores.parquet", [row("a", 1.0), row("b", 2.0)])
    report = split(scores, None, SPEC, 17, tmp_path / "deep/out")
    names = sorted(path.name for path in (tmp_path / "deep/out").iterdir())
    assert names == ["split_report.json", "tier-1.parquet", "tier-2.parquet"]
    assert [tier["held_out"] for tier in report["tiers"]] == [0, 0]
    assert report["spearman_difficulty_length"] is None
    assert report["spearman_difficulty_given"] is None


def test_new_rows_do_not_move_the_old_ones(tmp_path):
    spec = SplittingSpec(tiers=2, cut="thresholds", thresholds=[0.5])
    rows = [row(f"row-{index}", index % 10 / 10) for index in range(200)]
    split(save(tmp_path / "old.parquet", rows[:150]), None, spec, 17, tmp_path / "old")
    split(save(tmp_path / "new.parquet", rows[::-1]), None, spec, 17, tmp_path / "new")
    for tier in ("tier-1.parquet", "tier-2.parquet"):
        before, after = ids(tmp_path / "old" / tier), ids(tmp_path / "new" / tier)
        assert before == hash_order(before, 17, "order")
        assert [name for name in after if name in set(before)] == before
        assert len(after) > len(before)


def test_another_seed_gives_another_order(tmp_path):
    scores = save(tmp_path / "scores.parquet", [row(f"row-{index}", index) for index in range(40)])
    first = split(scores, None, SPEC, 1, tmp_path / "first")
    second = split(scores, None, SPEC, 2, tmp_path / "second")
    assert first["tiers"][0]["digest"] != second["tiers"][0]["digest"]
    assert sorted(ids(tmp_path / "first/tier-1.parquet")) == sorted(ids(tmp_path / "second/tier-1.parquet"))


def test_rows_spread_over_many_buckets_arrive_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("components.splitting.scatter._GROUP", 16)
    monkeypatch.setattr("components.splitting.scatter._BUCKET_BYTES", 1)
    monkeypatch.setattr("components.splitting.scatter._MAX_BUCKETS", 30)
    monkeypatch.setattr("components.splitting.scatter._BATCH", 100)
    monkeypatch.setattr("components.splitting.split._BATCH", 100)
    difficulties = np.random.default_rng(1).random(1000)
    rows = [row(f"row-{index}", float(value)) for index, value in enumerate(difficulties)]
    report = split(save(tmp_path / "scores.parquet", rows), None, SplittingSpec(tiers=3), 17, tmp_path / "out")
    seen = []
    for tier in report["tiers"]:
        path = tmp_path / f"out/tier-{tier['tier']}.parquet"
        assert ids(path) == hash_order(ids(path), 17, "order")
        assert digest_lines(ids(path)) == tier["digest"]
        assert all(line["messages"][0]["content"] == f"ask {line['id']}" for line in read_rows(path))
        assert all(line["difficulty"] == difficulties[int(line["id"][4:])] for line in read_rows(path))
        seen += ids(path)
    assert sorted(seen) == sorted(line["id"] for line in rows)


def test_equal_ids_are_all_kept(tmp_path):
    scores = save(tmp_path / "scores.parquet", [row("a", 1.0), row("a", 1.0), row("b", 2.0), row("a", 2.0)])
    split(scores, None, SPEC, 17, tmp_path / "out")
    assert ids(tmp_path / "out/tier-1.parquet") == ["a", "a"]
    assert sorted(ids(tmp_path / "out/tier-2.parquet")) == ["a", "b"]


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_a_difficulty_that_is_no_number_stops_the_split(tmp_path, bad):
    good = save(tmp_path / "good.parquet", [row("a", 1.0), row("b", 2.0)])
    broken = save(tmp_path / "broken.parquet", [row("a", 1.0), row("b", 2.0), row("c", bad)])
    with pytest.raises(DataError, match="1 of 3 training examples"):
        split(broken, None, SPEC, 17, tmp_path / "out")
    with pytest.raises(DataError, match="1 of 3 held-out examples"):
        split(good, broken, SPEC, 17, tmp_path / "out")


def test_no_training_examples(tmp_path):
    with pytest.raises(DataError, match="no training examples"):
        split(save(tmp_path / "scores.parquet", []), None, SPEC, 17, tmp_path / "out")


def test_an_empty_held_out_part(tmp_path):
    scores = save(tmp_path / "scores.parquet", [row("a", 1.0), row("b", 2.0)])
    report = split(scores, save(tmp_path / "held.parquet", []), SPEC, 17, tmp_path / "out")
    assert pq.read_schema(tmp_path / "out/held_out.parquet").equals(HELD_OUT_SCHEMA)
    assert [tier["held_out"] for tier in report["tiers"]] == [0, 0]


def test_a_given_difficulty_past_any_float(tmp_path):
    rows = [row(f"row-{power}", power, difficulty=10**power) for power in (0, 200, 400)]
    rows += [row("none", 1.0), row("nan", 0.0, difficulty=math.nan), row("flag", 0.0, difficulty=True)]
    report = split(save(tmp_path / "scores.parquet", rows), None, SPEC, 17, tmp_path / "out")
    assert report["spearman_difficulty_given"] == pytest.approx(1.0)
