"""What nobody of ours put into a store: `ls`, `verify` and `gc` pass it by, and delete nothing because of it."""

import json
import time

import pytest

from components.common.checkpoints import CheckpointPlace, clear, latest, save, unfinished
from components.common.errand import Errand
from components.common.errors import Damaged
from components.common.lease import acquire, held, in_use, leased_token, register_name, take_free
from components.common.leaving import lost_before, note_lost
from components.common.names import listed_parts
from components.common.records import RunInfo, RunRecords, StepRecord
from components.common.store import Store
from components.common.store_gc import Decision, decide, sweep
from components.common.store_inventory import take_inventory
from components.common.waiting import jobs_of, note

KEY = "0123456789abcdef" * 2
DEEP = b"[" * 100_000
PLAIN = {"size": 1, "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}  # of an "x"
HOLDER = {"token": 3, "id": "i", "heartbeat": 1.0, "holder": {"host": "h", "pid": 1, "run": "r"}}


def make(store, key=KEY):
    with store.make("phases", key, {}) as folder:
        (folder / "weights").write_text("x")


def used(store, *keys):
    """A finished run that used phases."""
    records = RunRecords(store.place, "r")
    records.open(RunInfo("r", "r", {}, "", store.place, "", "2026-01-01T00:00:00+00:00"))
    for number, key in enumerate(keys):
        records.write(StepRecord(f"train.main.{number}.s1", "phases", key, "", False, 1.0, 0.1))
    records.write(StepRecord("report", "report", "r", "", False, 1.0, 0.1))


def checkpointed(store, folder, key):
    folder.mkdir(exist_ok=True)
    (folder / "state").write_text("good")
    save(CheckpointPlace(store.place, key, 0), 10, folder)


def stored(store):
    folders = ("waiting", "phases", "checkpoints", "leases", ".damaged", "runs")
    return sorted(item.name for folder in folders for item in store.objects.list(folder))


def test_a_name_out_of_a_listing_has_plain_parts_or_none():
    assert listed_parts("phases/k/manifest.json") == ["phases", "k", "manifest.json"]
    for name in ("phases//manifest.json", "phases/", "/x", "", "phases/../x", "phases/./x", "a\0/b"):
        assert listed_parts(name) == []


@pytest.mark.parametrize("old", [False, True])
def test_an_empty_part_of_a_name_costs_nothing_beside_it(s3_place, tmp_path, monkeypatch, old):
    store = Store(s3_place)
    for letter in "ab":
        make(store, letter * 32)
    used(store, "a" * 32, "b" * 32)
    checkpointed(store, tmp_path / "made", "c" * 32)
    before = stored(store)
    manifest = store.entries.raw_manifest("phases", "a" * 32)
    strays = ["phases//manifest.json", "phases//a/weights", f"phases/{'a' * 32}//x", f"phases/{'b' * 32}/../x"]
    strays += ["waiting/", "waiting/x", "waiting//x", "waiting/k//x"]
    strays += [
        "checkpoints//x",
        "checkpoints/",
        "leases/phases/",
        "leases//k",
        ".damaged//x",
        "runs//x.json",
        "phases/",
    ]
    for name in strays:
        store.objects.write(name, manifest)
    if old:
        for limit in ("store_gc.DAY", "store_gc._FORGOTTEN", "waiting._GONE"):
            monkeypatch.setattr(f"components.common.{limit}", -1.0)
        before = [name for name in before if not name.startswith("checkpoints")]  # nobody came back to them
    decisions = decide(store, 5)
    assert [d.name for d in decisions if d.goes] == ([f"checkpoints/{'c' * 32}"] if old else [])
    sweep(store, decisions)
    assert sorted(set(stored(store)) - set(strays)) == before
    assert set(stored(store)) >= set(strays)
    assert unfinished(store.objects) == (set() if old else {"c" * 32})
    assert list(store.entries.listed()) == [("phases", "a" * 32), ("phases", "b" * 32)]


@pytest.mark.parametrize("key", ["", ".", "..", "a/b", "elsewhere", "a\0"])
def test_nothing_is_deleted_by_a_key_that_is_no_single_name(store, key, tmp_path):
    make(store)
    before = stored(store)
    if key == "elsewhere":  # an absolute path: one of the test's own, for where this fails, it is deleted
        (tmp_path / key).mkdir()
        key = str(tmp_path / key)
    with pytest.raises(ValueError, match="is no "):
        store.entries.delete("phases", key)
    for what in ("entry", "lease", "checkpoints", "damaged", "unfinished files", "sign of life"):
        going = [Decision("entry", f"phases/{KEY}", 1, True, ""), Decision(what, f"phases/{key}", 0, True, "")]
        if what != "entry" and key == "a/b":
            continue  # these have names of several parts
        with pytest.raises(ValueError, match="is no "):
            sweep(store, going)
    assert stored(store) == before


@pytest.mark.parametrize("name", ["phases", ".damaged", ""])
def test_a_sweep_deletes_nothing_by_less_than_two_parts(store, tmp_path, name):
    make(store)
    before = stored(store)
    for what in ("checkpoints", "unfinished files", "damaged", "lease", "entry"):
        with pytest.raises(ValueError, match="is no "):
            sweep(store, [Decision(what, name, 0, True, "")])
    (tmp_path / "elsewhere").mkdir()
    for folder in (tmp_path / "elsewhere", store.root, store.root / "phases"):
        with pytest.raises(ValueError, match="is no "):
            sweep(store, [Decision("folder", str(folder), 0, True, "")])
    assert stored(store) == before
    assert (tmp_path / "elsewhere").is_dir()


@pytest.mark.parametrize("name", ["leases/x", "leases/a/b/c/d", "phases/x", "checkpoints/x", "runs/x", ".damaged/x"])
def test_a_stray_object_ends_nothing_and_stays(store, name):
    make(store)
    used(store, KEY)
    store.objects.write(name, b"{}")
    decisions = decide(store, 5)
    assert [d.name for d in decisions if d.goes and d.what != "checkpoints"] == []
    sweep(store, decisions)
    assert store.objects.read(name) == b"{}"
    assert store.whole("phases", KEY) is not None


@pytest.mark.parametrize("name", ["waiting/x", "waiting/a/b/c"])
def test_a_stray_beside_those_who_wait_is_passed_by(store, name):
    store.objects.write(name, b"")
    note(store.objects, "job", "r")
    assert jobs_of(store.objects, "r") == ["job"]


RECORDS = [b"", b"[", b"\xff", b"null", b"[]", DEEP, b'{"no": "name of ours"}', b"{}"]


@pytest.mark.parametrize("body", RECORDS)
def test_a_damaged_record_is_named(store, body):
    used(store, KEY)
    for step in ("run", "report"):
        store.objects.write(f"runs/r/{step}.json", body)
    for read in (RunRecords(store.place, "r").info, lambda: RunRecords(store.place, "r").read("report")):
        with pytest.raises(Damaged, match=r"the record .*runs/r/(run|report)\.json is damaged: "):
            read()


@pytest.mark.parametrize("body", [*RECORDS, b'{"failed": [], "said": "x", "ended": 1}'])
def test_a_damaged_note_of_a_lost_attempt_tells_nothing(store, body):
    errand = Errand("train", "r", "phases", KEY, "components.training.step:run", {})
    note_lost(store.objects, errand, 2, "the job was lost")
    assert lost_before(store.objects, errand) == (2, "the job was lost")
    (name,) = [item.name for item in store.objects.list("runs") if "/lost/" in item.name]
    store.objects.write(name, body)
    assert lost_before(store.objects, errand) == (0, "")


LEASES = [b"[", b"{}", b"null", b"[]", DEEP, b"\xff", b'{"token": 1, "holder": 3}', b'{"token": "x", "holder": null}']
LEASES += [json.dumps({**HOLDER, **part}).encode() for part in ({"heartbeat": "x"}, {"heartbeat": float("nan")})]
LEASES += [json.dumps({**HOLDER, **part}).encode() for part in ({"id": 3}, {"holder": {"host": "h"}})]


@pytest.mark.parametrize("body", LEASES)
def test_a_damaged_lease_is_nobody_s(store, body):
    make(store)
    used(store, KEY)
    assert store.objects.swap(register_name("phases", KEY), body, "") is not None
    assert take_inventory(store).makers() == {}
    assert [(d.what, d.goes) for d in decide(store, 5)] == [("entry", False), ("lease", True)]
    assert not in_use(store.objects, "phases", KEY)
    assert leased_token(store.objects, "phases", KEY) in (0, 1, 3)
    with held(take_free(store.objects, "phases", KEY, "r")) as lease:
        lease.check()
        assert in_use(store.objects, "phases", KEY)


def test_a_damaged_lease_is_taken_by_who_wants_it(store):
    store.objects.swap(register_name("phases", KEY), b"{}", "")
    begun = time.monotonic()
    with held(acquire(store.objects, "phases", KEY, "r", lambda: False, lambda holder: None)) as lease:
        lease.check()
    assert time.monotonic() - begun < 5.0  # it is not waited for


BAD_FILES = [{"a": {}}, {"a": {"size": "x", "sha256": "y"}}, {"a": {"size": 1}}, {"a": {"size": 1, "sha256": None}}]
BAD_FILES += [{"a": {"size": True, "sha256": "y"}}, {"a": {"size": 1.5, "sha256": "y"}}, {"a\ud800": PLAIN}, {"a": 3}]
MANIFESTS = [json.dumps({"files": files, "info": {}, "created": 1, "attempt": "a"}).encode() for files in BAD_FILES]


MANIFESTS += [b'{"files": {}, "info": {}, "created": 1%s}' % (b"0" * 400)]


@pytest.mark.parametrize("body", [DEEP, *MANIFESTS])
def test_a_manifest_that_is_none_is_damaged(store, warnings, body):
    make(store)
    used(store, KEY)
    store.objects.write(f"phases/{KEY}/manifest.json", body)
    with pytest.raises(Damaged, match=r"the manifest of .* is damaged"):
        store.find("phases", KEY)
    (going,) = [d for d in decide(store, 5) if d.what == "entry"]
    assert going.goes and "is damaged" in going.reason
    assert store.whole("phases", KEY) is None
    (warning,) = warnings()
    assert "is damaged" in warning
    make(store)
    assert store.whole("phases", KEY) is not None


@pytest.mark.parametrize(
    "body", [DEEP, b"[]", b"{", b'{"kind": "phases", "key": "k", "info": "text"}', b'{"info": [1]}']
)
def test_a_damaged_record_of_a_run_keeps_nothing_and_ends_nothing(store, body):
    make(store)
    used(store, KEY)
    store.objects.write("runs/r/train.main.7.s1.json", body)
    store.objects.write("runs/s/run.json", body)
    assert [d.goes for d in decide(store, 5) if d.what == "entry"] == [False]


def test_phases_that_name_each_other_as_parents_end_nothing(store):
    for key, parent in (("a" * 32, "b" * 32), ("b" * 32, "a" * 32), ("c" * 32, "c" * 32)):
        with store.make("phases", key, {"parent_key": parent}) as folder:
            (folder / "weights").write_text("x")
    used(store, "a" * 32, "c" * 32)
    assert {d.name[7]: d.reason[:9] for d in decide(store, 5)} == {"a": "used by r", "b": "parent of", "c": "used by r"}
    used(store, "a" * 32, "b" * 32)
    assert [d.goes for d in decide(store, 5)] == [False, False, True]


ITEM = {"step": 20, "name": "20-0-x", "files": {"state": PLAIN}}
STATES = [{}, {"token": 1}, {"token": "x", "kept": [], "unfinished": []}, {"token": 1, "kept": 3, "unfinished": []}]
STATES += [
    {"token": 1, "kept": [bad], "unfinished": []} for bad in (3, {}, {**ITEM, "files": []}, {**ITEM, "step": "x"})
]
STATES += [{"token": 1, "kept": [{**ITEM, "files": {"state": {"size": 1}}}], "unfinished": []}]
STATES += [{"token": 1, "kept": [], "unfinished": [{"name": "x"}]}]
POINTERS = [b"", b"[", b"null", DEEP, *(json.dumps(state).encode() for state in STATES)]


@pytest.mark.parametrize("body", POINTERS)
def test_a_damaged_pointer_is_named_and_counts_as_none(place, tmp_path, warnings, body):
    here, store = CheckpointPlace(place, KEY, 5), Store(place)
    checkpointed(store, tmp_path / "made", KEY)
    pointer = f"{here.folder}/pointer"
    _, version = store.objects.look(pointer)
    store.objects.swap(pointer, body, version)
    assert latest(here, tmp_path / "into") is None
    (warning,) = warnings()
    assert f"{here.folder}/pointer is damaged" in warning
    (tmp_path / "into").mkdir()
    save(here, 30, tmp_path / "made")
    assert latest(here, tmp_path / "into")[0] == 30
    _, version = store.objects.look(pointer)
    store.objects.swap(pointer, body, version)
    clear(here)
    assert store.objects.look(pointer) is None


def test_what_is_no_number_of_a_register_is_passed_by(tmp_path):
    store = Store(tmp_path / "store")
    name = register_name("phases", KEY)
    version = store.objects.swap(name, b"{}", "")
    for stray in ("007", "٣", "-1", "x"):
        (store.root / name / stray).write_bytes(b"")
    (store.root / name / "9").mkdir()
    (store.root / name / "8").symlink_to("nowhere")
    assert store.objects.look(name) == (b"{}", version)
    assert decide(store, 0)[0].name == name


def test_a_folder_in_the_place_of_a_manifest_is_none(tmp_path):
    store = Store(tmp_path / "store")
    (store.root / "phases" / KEY / "manifest.json").mkdir(parents=True)
    assert store.find("phases", KEY) is None
    assert decide(store, 0) == []
    (store.root / ".staging").mkdir()
    (store.root / ".staging" / f"a-b-c-{'9' * 30}-d").mkdir()
    assert decide(store, 0) == []  # whose number no process can have


@pytest.mark.parametrize("body", [DEEP, b"[1]", b"3", b"["])
def test_a_damaged_note_of_what_was_read_costs_only_time(store, body):
    make(store)
    folder = store.find("phases", KEY).path
    (note,) = (store.root / ".verified").iterdir()
    note.write_bytes(body)
    assert store.find("phases", KEY).path == folder
