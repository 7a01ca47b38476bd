"""What is in a store, what can go, and what stays; in a folder and in S3."""

import io
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from components.common import waiting
from components.common.checkpoints import DATA, CheckpointPlace, latest, save
from components.common.lease import acquire, held
from components.common.records import RunInfo, RunRecords, StepRecord
from components.common.store import Store
from components.common.store_gc import _reasons_to_stay, decide, sweep
from components.common.store_inventory import take_inventory
from components.common.waiting import jobs_of, note
from pipelines import store_cli

COMMAND = str(Path(sys.executable).with_name("phasetune"))


def key(letter):
    return letter * 32


def make(store, letter, kind="phases", parent="", content="x" * 100):
    with store.make(kind, key(letter), {"parent_key": key(parent)} if parent else {}) as folder:
        (folder / "weights").write_text(content)
    return store.find(kind, key(letter))


def run(store, number, uses, finished=True):
    """A run that used entries: kind, letter, and of a phase its parent's letter."""
    name = f"r-{number}"
    records = RunRecords(store.place, name)
    records.open(RunInfo(name, "r", {}, "", store.place, "", f"2026-01-0{number}T00:00:00+00:00"))
    for place, (kind, letter, parent) in enumerate(uses, start=1):
        info = {"name": f"tier {place}", "curriculum": "main", "index": place, "parent_key": key(parent or "0")}
        step = f"train.main.{place}.s1" if kind == "phases" else kind
        records.write(StepRecord(step, kind, key(letter), "", False, 1.0, 0.1, info if kind == "phases" else {}))
    if finished:
        records.write(StepRecord("report", "report", name, "", False, 1.0, 0.1))


def letters(decisions, goes):
    return sorted(d.name.split("/")[1][0] for d in decisions if d.what == "entry" and d.goes == goes)


def test_an_inventory_tells_the_phases_names_and_the_runs_that_use_them(store):
    make(store, "a")
    make(store, "b", parent="a", content="12345")
    make(store, "c", kind="scores")
    run(store, 1, [("scores", "c", ""), ("phases", "a", "")])
    run(store, 2, [("phases", "a", ""), ("phases", "b", "a")], finished=False)
    found = take_inventory(store)
    about = {
        (held.kind, held.key[0]): (held.name, held.runs, held.parent[:1], held.size) for held in found.entries.values()
    }
    assert about == {
        ("phases", "a"): ("main 1 tier 1", ("r-2", "r-1"), "0", 100),
        ("phases", "b"): ("main 2 tier 2", ("r-2",), "a", 5),
        ("scores", "c"): ("", ("r-1",), "", 100),
    }
    assert [(item.run, item.finished) for item in found.runs] == [("r-2", False), ("r-1", True)]


def test_what_the_last_runs_use_stays_and_the_rest_goes(store):
    for letter in "abcd":
        make(store, letter)
    run(store, 1, [("phases", "a", "")])
    run(store, 2, [("phases", "b", "")])
    run(store, 3, [("phases", "c", "")])
    decisions = decide(store, 2)
    assert letters(decisions, goes=True) == ["a", "d"]
    assert {d.name[7]: d.reason for d in decisions if d.goes} == {"a": "used last by r-1", "d": "no run refers to it"}
    assert store.find("phases", key("a")) is not None  # deciding changes nothing
    assert sweep(store, decisions) == 200
    assert [store.find("phases", key(letter)) is not None for letter in "abcd"] == [False, True, True, False]
    assert not [item.name for item in store.objects.list("phases") if key("a") in item.name]
    assert (store.whole("phases", key("b")).path / "weights").exists()
    assert letters(decide(store, 2), goes=True) == []


def test_a_parent_of_a_phase_that_stays_goes_only_when_asked_and_is_named(store):
    make(store, "a")
    make(store, "b", parent="a")
    make(store, "c", parent="b")
    make(store, "d")
    run(store, 1, [("phases", "a", ""), ("phases", "d", "")])
    run(store, 2, [("phases", "c", "b")])
    decisions = decide(store, 1)
    assert letters(decisions, goes=True) == ["d"]
    assert {d.name[7]: d.reason for d in decisions if d.reason.startswith("parent")} == {
        "a": f"parent of {key('b')[:12]}, which stays",
        "b": f"parent of {key('c')[:12]}, which stays",
    }
    decisions = decide(store, 1, parents=True)
    assert letters(decisions, goes=True) == ["a", "b", "d"]
    sweep(store, decisions)
    assert store.find("phases", key("b")) is None
    assert store.whole("phases", key("c")) is not None


def staying(decisions):
    return {d.name[: d.name.index("/") + 2]: d.reason for d in decisions if d.what == "entry" and not d.goes}


def test_a_phase_s_optimizer_stays_and_goes_with_its_phase(store):
    for letter in "abc":
        make(store, letter)
        make(store, letter, kind="optimizers")
    make(store, "d", kind="optimizers")
    run(store, 1, [("phases", "a", "")])
    run(store, 2, [("phases", "b", "")])
    found = {(held.kind, held.key[0]): (held.name, held.runs) for held in take_inventory(store).entries.values()}
    assert found["optimizers", "a"] == found["phases", "a"] == ("main 1 tier 1", ("r-1",))
    assert found["optimizers", "d"] == ("", ())
    decisions = decide(store, 1)
    assert staying(decisions) == {"phases/b": "used by r-2", "optimizers/b": "used by r-2"}
    sweep(store, decisions)
    assert [(held.kind, held.key[0]) for held in take_inventory(store).entries.values()] == [
        ("phases", "b"),
        ("optimizers", "b"),
    ]


def test_an_optimizer_stays_for_whatever_reason_its_phase_does(store):
    for letter in "abc":
        make(store, letter, kind="optimizers")
    make(store, "a")
    make(store, "d", parent="a")
    run(store, 1, [("phases", "d", "a")])
    parent = f"parent of {key('d')[:12]}, which stays"
    assert staying(decide(store, 1)) == {"phases/a": parent, "phases/d": "used by r-1", "optimizers/a": parent}
    assert letters(decide(store, 1, parents=True), goes=True) == ["a", "a", "b", "c"]
    lease = acquire(store.objects, "phases", key("b"), "r-9", lambda: False, lambda holder: None)
    with held(lease):  # it is published before its phase; an hour later the phase may still be on its way
        kept = take_inventory(store)
        kept.entries["optimizers", key("b")] = replace(kept.entries["optimizers", key("b")], age=7200.0)
        assert _reasons_to_stay(kept, 1)["optimizers", key("b")].startswith("at work on its phase: ")


def test_checkpoints_of_a_phase_that_is_trained_again_for_its_optimizer_stay(store, tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    (made / "state").write_text("abc")
    make(store, "a")
    save(CheckpointPlace(store.place, key("a"), 0), 10, made)
    with held(acquire(store.objects, "optimizers", key("a"), "r-9", lambda: False, lambda holder: None)):
        assert [d.goes for d in decide(store, 1) if d.what == "checkpoints"] == [False]
    assert [d.goes for d in decide(store, 1) if d.what == "checkpoints"] == [True]


def test_data_that_a_phase_keeps_go_and_stay_with_its_checkpoints(store, tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    (made / "data").write_text("abc")
    make(store, "a")
    for letter in "ab":
        save(CheckpointPlace(store.place, key(letter), 0, DATA), 0, made)
    with held(acquire(store.objects, "phases", key("b"), "r-9", lambda: False, lambda holder: None)):
        found = {d.name: (d.goes, d.reason) for d in decide(store, 1) if d.what == "checkpoints"}
    assert found[f"checkpoints/{key('a')}{DATA}"] == (True, "the phase is finished")
    goes, reason = found[f"checkpoints/{key('b')}{DATA}"]
    assert not goes and reason.startswith("in use: ")


def test_a_parent_is_known_from_a_runs_record_too(store):
    make(store, "a")
    make(store, "b")
    run(store, 1, [("phases", "a", "")])
    run(store, 2, [("phases", "b", "a")])
    assert letters(decide(store, 1), goes=True) == []


def test_what_is_under_way_stays(store):
    make(store, "a")
    make(store, "b")
    run(store, 1, [("phases", "a", "")], finished=False)
    assert letters(decide(store, 0), goes=True) == []  # b may be of that run: its record is written last
    run(store, 1, [("phases", "a", "")])
    assert letters(decide(store, 0), goes=True) == ["a", "b"]
    lease = acquire(store.objects, "phases", key("a"), "r-9", lambda: False, lambda holder: None)
    with held(lease):
        decisions = decide(store, 0)
        assert letters(decisions, goes=False) == ["a", "b"]
        assert [d.goes for d in decisions if d.what == "lease"] == [False]
        sweep(store, decisions)
        lease.check()
    assert [d.goes for d in decide(store, 0) if d.what == "lease"] == [True]


def test_checkpoints_of_finished_phases_go_and_of_others_stay(store, tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    (made / "state").write_text("abc")
    make(store, "a")
    for letter in "ab":
        save(CheckpointPlace(store.place, key(letter), 0), 10, made)
    run(store, 1, [("phases", "a", "")])
    decisions = decide(store, 1)
    assert {d.name[12]: d.goes for d in decisions if d.what == "checkpoints"} == {"a": True, "b": False}
    sweep(store, decisions)
    assert latest(CheckpointPlace(store.place, key("a"), 0), tmp_path / "into") is None
    assert latest(CheckpointPlace(store.place, key("b"), 0), tmp_path / "into")[0] == 10
    assert list(take_inventory(store).checkpoints) == [key("b")]


def test_what_a_phase_worked_out_before_its_first_step_goes_with_its_checkpoints(store, tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    (made / "pairs").write_text("abc")
    make(store, "a")
    for letter in "ab":
        save(CheckpointPlace(store.place, key(letter), 0, DATA), 0, made)
    assert {d.name[12]: d.goes for d in decide(store, 1) if d.what == "checkpoints"} == {"a": True, "b": False}
    with held(acquire(store.objects, "phases", key("a"), "r-9", lambda: False, lambda holder: None)):
        assert not [d for d in decide(store, 1) if d.what == "checkpoints" and d.goes]


def test_what_was_set_aside_goes(store):
    make(store, "a")
    (weights,) = [item.name for item in store.objects.list("phases") if item.name.endswith("weights")]
    store.objects.write(weights, b"y" * 100)
    assert store.whole("phases", key("a")) is None
    decisions = decide(store, 5)
    assert [d.goes for d in decisions if d.what == "damaged"] == [True]
    sweep(store, decisions)
    assert list(store.objects.list(".damaged")) == []


def test_who_was_killed_while_it_waited_is_forgotten(store, monkeypatch):
    for name in ("gone", "waits"):
        note(store.objects, "phases-abc-1", name)
    assert decide(store, 0) == []
    monkeypatch.setattr(waiting, "_GONE", 0.0)
    assert [(one.what, one.name, one.goes) for one in decide(store, 0)] == [
        ("sign of life", "waiting/phases-abc-1/gone", True),
        ("sign of life", "waiting/phases-abc-1/waits", True),
    ]
    sweep(store, decide(store, 0)[:1])
    assert jobs_of(store.objects, "gone") == []
    assert jobs_of(store.objects, "waits") == ["phases-abc-1"]


def test_files_that_no_manifest_names_go_when_they_are_old(s3_place, monkeypatch):
    store = Store(s3_place)
    entry = make(store, "a")
    run(store, 1, [("phases", "a", "")])
    store.objects.write(f"phases/{key('a')}/late/weights", b"late")
    store.objects.write(f"phases/{key('b')}/killed/weights", b"half")
    assert not [d for d in decide(store, 1) if d.what == "unfinished files"]
    monkeypatch.setattr("components.common.store_gc.DAY", -1.0)
    decisions = decide(store, 1)
    going = sorted(d.name.split("/")[2] for d in decisions if d.what == "unfinished files")
    assert going == ["killed", "late"]
    sweep(store, decisions)
    assert (Store(s3_place).whole("phases", key("a"))).uri == entry.uri
    assert len(list(store.objects.list("phases"))) == 2


def test_copies_of_what_s3_has_no_more_go(s3_place):
    store = Store(s3_place)
    copy = make(store, "a").path
    store.objects.remove([item.name for item in store.objects.list("phases")])
    decisions = decide(store, 1)
    assert [d.name for d in decisions if d.goes] == [str(copy)]
    sweep(store, decisions)
    assert not copy.exists()


def test_a_deletion_that_is_killed_leaves_no_entry(store):
    make(store, "a")
    program = (
        "import os, shutil, sys; from components.common.store import Store\n"
        "shutil.rmtree = lambda *_, **__: os._exit(9)\n"
        "store = Store(sys.argv[1]); store.objects.remove = lambda *_: os._exit(9)\n"
        f"store.entries.delete('phases', {key('a')!r})\n"
    )
    assert subprocess.run([sys.executable, "-c", program, store.place], check=False, timeout=60).returncode == 9
    assert store.find("phases", key("a")) is None
    make(store, "a")
    assert store.whole("phases", key("a")) is not None


@pytest.fixture
def phasetune(monkeypatch):
    """Calls `phasetune store`, which must end with this exit code; returns what it prints."""

    def call(*arguments, code=0):
        shown = io.StringIO()
        monkeypatch.setattr(store_cli, "console", Console(file=shown, width=200, soft_wrap=True))
        assert CliRunner().invoke(store_cli.app, arguments).exit_code == code, shown.getvalue()
        return shown.getvalue()

    return call


def test_the_command(store, phasetune):
    make(store, "a")
    make(store, "b", parent="a", content="12345")
    make(store, "c")
    run(store, 1, [("phases", "c", "")])
    run(store, 2, [("phases", "b", "a")])
    place = ["--store", store.place]
    listed = phasetune("ls", *place)
    assert "main 1 tier 1" in listed and "3 results, 205 B; 2 runs" in listed
    assert {held["key"][0] for held in json.loads(phasetune("ls", "--json", *place))["entries"]} == {"a", "b", "c"}
    assert "3 results read, all whole" in phasetune("verify", *place)
    said = phasetune("gc", "--keep-runs", "1", "--dry-run", *place)
    assert f"would delete entry phases/{key('c')}  100 B  (used last by r-1)" in said
    assert f"keep phases/{key('a')}  100 B  (parent of {key('b')[:12]}, which stays; --parents deletes it)" in said
    assert "100 B would be freed, and 0 leases nobody holds; 2 results stay" in said
    assert store.find("phases", key("c")) is not None
    done = json.loads(phasetune("gc", "--keep-runs", "1", "--json", *place))
    assert done["bytes"] == 100
    assert store.find("phases", key("c")) is None
    (weights,) = [i.name for i in store.objects.list("phases") if i.name.endswith("weights") and key("b") in i.name]
    store.objects.write(weights, b"54321")
    assert f"damaged: phases/{key('b')}: weights has changed" in phasetune("verify", *place, code=1)
    (fault,) = json.loads(phasetune("verify", "--json", *place, code=1))["damaged"]
    assert fault["key"] == key("b")


def test_the_installed_command_ends_with_the_code(tmp_path):
    store = Store(tmp_path / "store")
    path = make(store, "a").path / "weights"
    path.write_text("y" * 100)
    ended = subprocess.run([COMMAND, "store", "verify", "--store", store.place], capture_output=True, timeout=60)
    assert ended.returncode == 1
    command = [COMMAND, "store", "ls", "--store", str(tmp_path / "no")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "there is no store at" in ended.stderr


def test_a_killed_holders_lease_goes(store):
    program = (
        "import sys, time; from components.common.store import Store\n"
        "from components.common.lease import acquire\n"
        f"acquire(Store(sys.argv[1]).objects, 'phases', {key('a')!r}, 'r', lambda: False, lambda holder: None)\n"
        "print('held', flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, store.place], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    assert list(take_inventory(store).makers()) == [("phases", key("a"))]
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=30)
    assert take_inventory(store).makers() == {}
    assert [d.goes for d in decide(store, 0) if d.what == "lease"] == [True]
