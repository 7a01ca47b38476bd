"""A phase's tables are read from its entry, in a folder and in S3, without the weights beside them."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq

from components.common.examples import write_rows
from components.common.phase_tables import MOST_ROWS, read_phase_tables
from components.common.store import Store

KEY = "0123456789abcdef" * 2


def published(place, rollouts=(), pairs=()):
    """The URI of a phase with these tables."""
    store = Store(place)
    with store.make("phases", KEY, {}) as folder:
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_bytes(b"w" * 100)
        if rollouts:
            pq.write_table(pa.Table.from_pylist(list(rollouts)), folder / "rollouts.parquet")
        if pairs:
            write_rows(folder / "pairs.parquet", pairs)
    return store.find("phases", KEY).uri


def rollout(step, **more):
    return {"step": step, "prompt": "1+1?", "completion": "2", "exact": 1.0, "advantage": 0.5, **more}


def test_rollouts_and_pairs(place, tmp_path):
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    pair = {"id": "a", "messages": [*turns, {"role": "assistant", "content": "Hello"}], "rejected": "Go away"}
    uri = published(place, [rollout(1), rollout(2)], [pair])
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    tables = read_phase_tables(uri)
    assert tables["rollouts"].columns == ["step", "prompt", "completion", "exact", "advantage"]
    assert tables["rollouts"].rows[1] == [2, "1+1?", "2", 1.0, 0.5]
    assert json.loads(tables["pairs"].to_json()) == {
        "columns": ["prompt", "chosen", "rejected"],
        "data": [["Be short.\nHi", "Hello", "Go away"]],
    }
    # Of what lies in S3 nothing was copied here: the weights may be large.
    assert not list(tmp_path.glob("cache/**/weights"))


def test_a_phase_without_tables(place):
    assert read_phase_tables(published(place)) == {}
    assert read_phase_tables("/nowhere/phases/key") == {}


def test_rewards_in_one_column_get_one_each(tmp_path):
    tables = read_phase_tables(published(tmp_path / "store", [rollout(1, rewards={"length": 0.25})]))
    assert tables["rollouts"].rows[0][tables["rollouts"].columns.index("reward length")] == 0.25


def test_long_tables_and_texts_are_shortened(tmp_path):
    rows = [rollout(step, completion="x" * 9000) for step in range(3 * MOST_ROWS)]
    table = read_phase_tables(published(tmp_path / "store", rows))["rollouts"]
    assert [row[0] for row in table.rows] == list(range(0, 3 * MOST_ROWS, 3))
    assert len(table.rows[0][2]) == 4004
