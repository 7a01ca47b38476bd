"""End to end: files in, parts and ledger out, as literals and as properties."""

import gzip
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.common.digests import unit_hash
from components.common.errors import DataError
from components.common.examples import SCHEMA, Example, Ledger, read_rows
from components.common.spec import DataSpec
from components.preparing.parts import deal_out
from components.preparing.prepare import prepare
from components.preparing.text_keys import normal_turns
from tests.components.preparing.prepared import closes, flat, pair, rejected_rows, run, write_lines


def test_every_row_is_counted(tmp_path):
    path = write_lines(
        tmp_path / "tasks.jsonl",
        [
            {"instruction": "Double.", "instances": [{"input": "1", "output": "2"}, {"input": "2", "output": "4"}]},
            {"instruction": "double. ", "instances": [{"input": "1", "output": "2"}, {"input": "3", "output": ""}]},
            '{"instruction": ',
            [1, 2],
            {"instruction": "Halve.", "instances": [{"output": "0.5"}]},
        ],
    )
    ledger, train, held_out, out = run(tmp_path, [path], held_out={"fraction": 0}, max_rejected=0.5)
    expected = {
        "rows_in": 5, "expanded": 2, "examples": 3, "duplicates": 1, "rejected": 3, "unsampled": 0, "held_out": 0,
    }  # fmt: skip
    assert ledger.to_dict() == expected
    assert json.loads((out / "ledger.json").read_text()) == expected
    assert [example.messages for example in train] == [
        (("user", "Double.\n1"), ("assistant", "2")),
        (("user", "Double.\n2"), ("assistant", "4")),
        (("user", "Halve."), ("assistant", "0.5")),
    ]
    assert held_out == []
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert [(row["file"], row["line"], row["reason"]) for row in rejected] == [
        (path, 2, "instance 2: `output` is empty"),
        (path, 3, "the line is not JSON: Expecting value"),
        (path, 4, "the row is a list, not an object"),
    ]
    assert [row["row"] for row in rejected][1:] == ['{"instruction": ', [1, 2]]
    assert json.loads((out / "sources.json").read_text()) == [
        {
            "source": "tasks.jsonl", "path": path, "part": "train", "format": "self_instruct",
            "why": "auto: 3 of the first 5 rows have `instruction` and `instances`",
            "rows": 5, "expanded": 2, "examples": 3, "duplicates": 1, "rejected": 3, "unsampled": 0,
        }
    ]  # fmt: skip
    assert sorted(file.name for file in out.iterdir()) == [
        "held_out.keys", "held_out.parquet", "ledger.json", "rejected.jsonl", "sources.json", "train.parquet",
    ]  # fmt: skip


def test_the_rows_on_disk(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl",
        [
            pair(
                "1+1?",
                "2",
                group="g",
                answer="2",
                verifier="exact",
                slice="s",
                difficulty=1,
                topic="sum",
                held_out=False,
            )
        ],
    )
    _, train, _, out = run(tmp_path, [{"path": path, "name": "sums"}])
    (row,) = read_rows(out / "train.parquet")
    example = Example((("user", "1+1?"), ("assistant", "2")), answer="2", verifier="exact")
    assert row == {
        "id": example.content_digest(),
        "source": "sums",
        "group": "g",
        "messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}],
        "rejected": None,
        "answer": "2",
        "verifier": "exact",
        "slice": None,  # in training a slice makes no sense
        "fields": '{"difficulty": 1.0, "topic": "sum"}',
    }
    assert train[0].to_row() == row
    assert pq.read_schema(out / "held_out.parquet").equals(SCHEMA)


def test_duplicates_by_normalised_and_by_exact_text(tmp_path):
    rows = [pair("Say  hi", "HI"), pair("say hi", "hi"), pair("say hi", "hi"), pair("\uff53\uff41\uff59 hi", "hi\n")]
    path = write_lines(tmp_path / "a.jsonl", rows)
    counts = {}
    for how in ("none", "exact", "normalised"):
        ledger, train, _, _ = run(tmp_path, [path], held_out={"fraction": 0}, deduplicate=how)
        counts[how] = ledger.examples, ledger.duplicates
        ids = [example.id for example in train]
        assert len(set(ids)) == len(ids)
    assert counts == {"none": (4, 0), "exact": (3, 1), "normalised": (1, 3)}
    _, train, _, _ = run(tmp_path, [path], held_out={"fraction": 0}, deduplicate="none")
    assert train[2].id == train[1].content_digest() + "-2"


def test_a_preference_pair_is_told_apart_by_its_rejected_reply(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl", [pair("q", "a"), pair("q", "a", rejected="b"), pair("q", "a", rejected="c")]
    )
    for how in ("exact", "normalised"):
        assert run(tmp_path, [path], held_out={"fraction": 0}, deduplicate=how)[0].examples == 3


def test_weights_and_held_out_part_follow_the_hash_of_the_key(tmp_path):
    rows = [pair(f"Question  {n}", "a", **({"group": f"g{n // 3}"} if n % 2 else {})) for n in range(400)]
    path = write_lines(tmp_path / "a.jsonl", rows)
    ledger, train, held_out, _ = run(tmp_path, [{"path": path, "weight": 0.5}], 5, held_out={"fraction": 0.3})

    def key(row: dict) -> str:
        return row.get("group") or normal_turns([("user", row["prompt"])])

    sampled = [row for row in rows if unit_hash(key(row), 5, "sample:a.jsonl") < 0.5]
    held = [row["prompt"] for row in sampled if unit_hash(key(row), 5, "held_out") < 0.3]
    assert [example.messages[0][1] for example in held_out] == held
    assert [example.messages[0][1] for example in train] == [r["prompt"] for r in sampled if r["prompt"] not in held]
    assert ledger == Ledger(400, 0, len(sampled), 0, 0, 400 - len(sampled), len(held))
    assert 160 < len(sampled) < 240
    assert 30 < len(held) < 90


def test_a_row_can_say_on_which_side_it_stands(tmp_path):
    rows = [
        pair("p1", "a", group="g"),
        pair("p2", "a", group="g", held_out=True, slice="unseen_wording"),
        pair("P1 ", "b", group="h", slice="unseen_wording"),  # shares the prompt of the first
        pair("p4", "a", group="h"),
        pair("p5", "a", group="k", held_out=False, slice="unseen_wording"),
    ]
    ledger, train, held_out, _ = run(tmp_path, [write_lines(tmp_path / "a.jsonl", rows)], held_out={"fraction": 0})
    assert [example.messages[0][1] for example in held_out] == ["p1", "p2", "P1 ", "p4"]
    assert [example.slice for example in held_out] == [None, "unseen_wording", "unseen_wording", None]
    assert [(example.messages[0][1], example.slice) for example in train] == [("p5", None)]
    assert ledger.held_out == 4


def test_a_row_that_wishes_to_train_trains_whatever_the_fraction(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [pair(f"q{n}", "a", held_out=n == 0) for n in range(20)])
    assert run(tmp_path, [path], held_out={"fraction": 0.99})[0] == Ledger(20, 0, 20, 0, 0, 0, 1)


def test_held_out_sources_are_held_out_whole_and_take_their_relatives_along(tmp_path):
    test = write_lines(tmp_path / "test.jsonl", [pair("q1", "a"), pair("q2", "b", group="g", held_out=False)])
    rows = [pair("Q1", "A"), pair("q1", "other"), pair("q3", "c", group="g"), pair("q4", "d")]
    train_file = write_lines(tmp_path / "train.jsonl", rows)
    ledger, train, held_out, out = run(
        tmp_path, [train_file], held_out={"fraction": 0, "sources": [{"path": test, "name": "exam"}]}
    )
    assert [(example.source, example.messages[0][1]) for example in held_out] == [
        ("exam", "q1"),
        ("exam", "q2"),
        ("train.jsonl", "q1"),
        ("train.jsonl", "q3"),
    ]
    assert [example.messages[0][1] for example in train] == ["q4"]
    assert ledger == Ledger(6, 0, 5, 1, 0, 0, 4)
    assert [report["part"] for report in json.loads((out / "sources.json").read_text())] == ["held_out", "train"]


def test_several_formats_in_one_folder(tmp_path):
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.json").write_text(json.dumps([{"instruction": "i", "output": "o"}]))
    (folder / "a.csv.gz").write_bytes(gzip.compress(b'question,answer\nq,"1 and 1\n#### 2"\n'))
    write_lines(folder / "deep" / "c.jsonl", [{"messages": [{"role": "user", "content": "hi"}] * 2}])
    write_lines(folder / ".hidden.jsonl", ["broken"])
    (folder / "README.md").write_text("no data")
    ledger, train, _, out = run(tmp_path, [str(folder)], held_out={"fraction": 0}, max_rejected=0.4)
    assert ledger == Ledger(3, 0, 2, 0, 1, 0, 0)
    assert [report["format"] for report in json.loads((out / "sources.json").read_text())] == [
        "gsm8k",
        "alpaca",
        "messages",
    ]
    assert {example.source for example in train} == {"data"}


def test_flat_oasst_messages_become_trees(tmp_path):
    def message(name: str, parent: str | None, role: str, text: str | None, tree: str) -> dict:
        return {"message_id": name, "parent_id": parent, "role": role, "text": text, "message_tree_id": tree}

    rows = [
        message("m1", None, "prompter", "Q", "t"),
        message("n1", None, "prompter", "alone", "u"),
        message("m3", "m2", "prompter", "Q2", "t"),  # before its parent
        message("m2", "m1", "assistant", "A", "t"),
        message("m4", "m3", "assistant", "A2", "t"),
        message("m5", "m1", "assistant", "B", "t"),
        message("x", "lost", "assistant", "?", "t"),
    ]
    path = write_lines(tmp_path / "oasst.jsonl", rows)
    ledger, train, _, out = run(tmp_path, [path], held_out={"fraction": 0}, max_rejected=0.6)
    assert [example.messages for example in train] == [
        (("user", "Q"), ("assistant", "A"), ("user", "Q2"), ("assistant", "A2")),
        (("user", "Q"), ("assistant", "B")),
    ]
    assert {example.group for example in train} == {"t"}
    # Three rows: the tree with two paths, the tree without a reply, and the message without a parent.
    assert ledger == Ledger(3, 1, 2, 0, 2, 0, 0)
    assert [json.loads(line)["line"] for line in (out / "rejected.jsonl").read_text().splitlines()] == [2, 7]


def test_the_optional_columns_of_a_tree_are_its_first_messages(tmp_path):
    first = flat("a", None, "prompter", "Q", group="g", difficulty=2)
    path = write_lines(tmp_path / "flat.jsonl", [first, flat("b", "a", "assistant", "A", group="other")])
    _, (example,), _, _ = run(tmp_path, [path], held_out={"fraction": 0})
    assert (example.group, example.fields) == ("g", {"message_tree_id": "a", "difficulty": 2.0})


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_rows_nested_too_deep_are_rejected_whole(tmp_path, suffix, processes):
    rows = [
        json.dumps(pair("q", "a")),
        *('{"prompt": "q", "completion": ' + "[" * n + "]" * n + "}" for n in (399, 900)),
    ]
    path = tmp_path / f"a.{suffix}"
    path.write_text("[" + ",\n".join(rows) + "]" if suffix == "json" else "\n".join(rows))
    ledger, _, _, out = run(tmp_path, [str(path)], processes=processes, held_out={"fraction": 0}, max_rejected=1)
    (first, shallow), (second, deep) = rejected_rows(out)
    assert (first, shallow) == ("`completion` is a list, not a string", json.loads(rows[1]))
    assert (second, deep) == ("the row is nested deeper than 400 levels", rows[2])
    assert closes(ledger, out)


def test_broken_unicode_costs_one_row(tmp_path):
    rows = [
        '{"prompt": "half \\ud83d", "completion": "a"}',
        '{"prompt": "q", "completion": "a", "topic": "\\udc00"}',
        '{"prompt": "q", "completion": "a", "group": "\\udc00"}',
        pair("whole \U0001f600", "a"),
    ]
    ledger, train, _, out = run(tmp_path, [write_lines(tmp_path / "a.jsonl", rows)], max_rejected=0.9)
    assert (ledger.rejected, train[0].messages[0][1]) == (3, "whole \U0001f600")
    assert "half of a surrogate pair" in (out / "rejected.jsonl").read_text()


def test_alpaca_rows_are_verifiable_and_grouped(tmp_path):
    rows = [
        {"instruction": f"{n % 20}+1? ({n})", "output": f"{n % 20 + 1}", "group": n % 20, "answer": n % 20 + 1,
         "verifier": "last_number"}
        for n in range(200)
    ]  # fmt: skip
    path = write_lines(tmp_path / "a.jsonl", [*rows, {**rows[0], "group": [1]}])
    ledger, train, held_out, out = run(tmp_path, [path], held_out={"fraction": 0.3})
    assert (len(train) + len(held_out), ledger.rejected) == (200, 1)
    assert held_out
    assert {example.group for example in train}.isdisjoint({example.group for example in held_out})
    assert all(example.answer == example.response and example.verifier for example in train + held_out)
    assert rejected_rows(out) == [("`group` is a list, not a string", {**rows[0], "group": [1]})]
    assert closes(ledger, out)


def test_parts_have_even_row_groups_whatever_the_batches(tmp_path):
    rows = [{"id": str(n), "source": "s", "messages": [{"role": "user", "content": "q"}]} for n in range(21000)]
    spool = tmp_path / "spool.arrow"
    with pa.ipc.new_stream(str(spool), SCHEMA) as writer:
        for start in range(0, len(rows), 700):
            writer.write_batch(pa.RecordBatch.from_pylist(rows[start : start + 700], SCHEMA))
    held_out = [n % 5 == 0 for n in range(len(rows))]
    assert deal_out(spool, held_out, tmp_path / "train", tmp_path / "held") == 4200
    train, held = pq.ParquetFile(tmp_path / "train"), pq.ParquetFile(tmp_path / "held")
    assert train.read(["id"])["id"].to_pylist() == [str(n) for n in range(21000) if n % 5]
    assert held.read(["id"])["id"].to_pylist() == [str(n) for n in range(0, 21000, 5)]
    assert [train.metadata.row_group(group).num_rows for group in range(train.num_row_groups)] == [8192, 8192, 416]


def test_the_result_does_not_depend_on_the_processes(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("components.preparing.containers.CHUNK_BYTES", 1 << 12)
    rows = [pair(f"q{n % 700}", f"a{n % 900}", group=f"g{n % 50}") if n % 40 else pair("", "x") for n in range(2000)]
    path = write_lines(tmp_path / "a.jsonl", rows)
    seen: list[tuple[str, int]] = []
    outs = [run(tmp_path, [{"path": path, "weight": 0.8}], processes=count)[3] for count in (1, 2)]
    assert not caplog.records  # the processes lived
    for name in ("train.parquet", "held_out.parquet", "rejected.jsonl", "ledger.json", "sources.json"):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()
    prepare(DataSpec.model_validate({"train": [{"path": path}]}), 17, tmp_path, lambda *step: seen.append(step))
    assert seen[-1] == ("a.jsonl", 2000)


TEXTS = st.sampled_from(["", "one", "Two", " two ", "three", "4", "five", "six", "7"])
ROWS = st.lists(
    st.fixed_dictionaries(
        {"prompt": TEXTS, "completion": TEXTS},
        optional={
            "group": st.sampled_from(["a", "b", "c"]),
            "held_out": st.sampled_from([True, False, "perhaps"]),
            "slice": st.just("s"),
        },
    )
    | st.just("{"),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(
    train=ROWS,
    test=ROWS,
    weight=st.sampled_from([0.5, 1.0]),
    fraction=st.sampled_from([0.0, 0.3]),
    deduplicate=st.sampled_from(["none", "exact", "normalised"]),
)
def test_the_ledger_closes_and_the_parts_share_nothing(train, test, weight, fraction, deduplicate):
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        held = {"path": write_lines(here / "test.jsonl", test), "format": "flan"}
        source = {"path": write_lines(here / "train.jsonl", train), "format": "flan", "weight": weight}
        try:
            ledger, kept, held_out, out = run(
                here,
                [source],
                held_out={"fraction": fraction, "sources": [held]},
                max_rejected=1,
                deduplicate=deduplicate,
            )
        except DataError as error:
            assert "no example" in error.message or "all" in error.message
            return
        ledger.check()
        assert ledger.rows_in == len(train) + len(test)
        assert (len(kept) + len(held_out), len(held_out)) == (ledger.examples, ledger.held_out)
        assert len((out / "rejected.jsonl").read_text().splitlines()) == ledger.rejected
        assert not {normal_turns(e.prompt) for e in kept} & {normal_turns(e.prompt) for e in held_out}
        assert not ({e.group for e in kept} & {e.group for e in held_out}) - {None}
        assert all(e.slice is None for e in kept)
        assert not any(e.source == "test.jsonl" for e in kept)
        ids = [e.id for e in (*kept, *held_out)]
        assert len(set(ids)) == len(ids)


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, 60), min_size=1), st.sets(st.integers(0, 60)), st.randoms())
def test_new_rows_do_not_move_old_ones(old, new, random):
    def sides(numbers: list[int]) -> dict[str, bool]:
        rows = [pair(f"q{n}", "a", **({"group": f"g{n // 4}"} if n % 8 < 4 else {})) for n in numbers]
        source = {"path": write_lines(here / "a.jsonl", rows), "format": "flan", "weight": 0.7}
        try:
            _, kept, held_out, _ = run(here, [source], held_out={"fraction": 0.3})
        except DataError:
            return {}
        return {e.id: False for e in kept} | {e.id: True for e in held_out}

    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        more = sorted(old | new)
        random.shuffle(more)
        before, after = sides(sorted(old)), sides(more)
        if before and after:
            assert {name: after[name] for name in before} == before
