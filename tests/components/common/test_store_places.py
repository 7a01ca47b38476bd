"""What every store promises, in a folder and in S3."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from components.common.errors import Damaged, UserError
from components.common.objects import open_objects
from components.common.records import RunInfo, RunRecords, StepRecord
from components.common.step import Reference
from components.common.store import Store, folder_of

KEY = "0123456789abcdef" * 2


def make(store, content="x", info=None, key=KEY):
    with store.make("phases", key, info or {}) as folder:
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_text(content)
        (folder / "empty").touch()
    return store.find("phases", key)


def stored(store):
    """The names of all objects of entries."""
    return sorted(item.name for item in store.objects.list("phases"))


def weights(store):
    (name,) = [name for name in stored(store) if name.endswith("model/weights")]
    return name


def forget_copies(store):
    """As on another machine."""
    if store.place.startswith("s3://"):
        subprocess.run(["rm", "-rf", str(store.root)], check=True)


def test_a_result_is_found_with_its_files_also_on_another_machine(store):
    assert store.find("phases", KEY) is None
    assert store.whole("phases", KEY) is None
    make(store, "abc", {"steps": 3})
    for _ in range(2):
        entry = store.whole("phases", KEY)
        assert (entry.kind, entry.key, entry.info) == ("phases", KEY, {"steps": 3})
        assert (entry.path / "model" / "weights").read_text() == "abc"
        assert (entry.path / "empty").read_bytes() == b""
        assert {name: about["size"] for name, about in store.files(entry).items()} == {"model/weights": 3, "empty": 0}
        forget_copies(store)
    assert store.find("scores", KEY) is None
    assert store.find("phases", "f" * 32) is None


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_block_that_raises_leaves_nothing(store, error):
    with pytest.raises(error), store.make("phases", KEY, {}) as folder:
        (folder / "weights").write_text("abc")
        raise error
    assert store.find("phases", KEY) is None
    assert stored(store) == []
    assert list((store.root / ".staging").iterdir()) == []


def test_of_two_results_the_first_stays_and_the_other_leaves_nothing(store):
    with store.make("phases", KEY, {"maker": 2}) as folder:
        (folder / "weights").write_text("second")
        with store.make("phases", KEY, {"maker": 1}) as other:
            (other / "weights").write_text("first!")
    assert store.find("phases", KEY).info == {"maker": 1}
    assert (store.find("phases", KEY).path / "weights").read_text() == "first!"
    assert len(stored(store)) == 2


def test_makers_that_race_all_succeed_with_one_result(store):
    start = threading.Barrier(6)

    def one(number):
        with store.make("phases", KEY, {}) as folder:
            (folder / "weights").write_text(str(number))
            start.wait(20)
        return (store.find("phases", KEY).path / "weights").read_text()

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(one, range(6)))) == 1
    assert len(stored(store)) == 2


def test_a_killed_maker_leaves_nothing_that_is_found(store):
    program = (
        "import os, sys; from components.common.store import Store\n"
        "store = Store(sys.argv[1])\n"
        "store.objects.swap = store.objects.look = lambda *_: os._exit(9)\n"  # before the manifest
        f"with store.make('phases', {KEY!r}, {{}}) as folder:\n"
        "    (folder / 'weights').write_text('half')\n"
        "    if not sys.argv[1].startswith('s3'): os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, store.place], check=False, timeout=60).returncode == 9
    assert store.find("phases", KEY) is None
    make(store)
    assert store.whole("phases", KEY) is not None


@pytest.mark.parametrize("damage", ["changed", "longer", "gone"])
def test_a_damaged_entry_is_set_aside_named_and_made_again(store, warnings, damage):
    make(store, "abc")
    if damage == "gone":
        store.objects.remove([weights(store)])
    else:
        store.objects.write(weights(store), b"abd" if damage == "changed" else b"abcd")
    assert store.find("phases", KEY) is not None  # who only looks moves nothing
    assert warnings() == []
    assert store.whole("phases", KEY) is None
    (said,) = warnings()
    assert said.startswith(f"phases/{KEY[:12]} in the store is damaged (model/weights ")
    assert ".damaged/" in said
    assert store.find("phases", KEY) is None
    make(store, "abc")
    assert (store.whole("phases", KEY).path / "model" / "weights").read_text() == "abc"


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b'{"info": 5, "files": {}}', b"\xff\xfe\x00", b"null"])
def test_a_damaged_manifest_is_said_by_who_looks_and_set_aside_by_who_needs_it(store, warnings, text):
    make(store)
    store.objects.write(f"phases/{KEY}/manifest.json", text)
    with pytest.raises(Damaged, match=r"the manifest of .* is damaged"):
        store.find("phases", KEY)
    assert store.whole("phases", KEY) is None
    assert "is damaged" in warnings()[0]
    make(store, "abc")
    assert (store.whole("phases", KEY).path / "model" / "weights").read_text() == "abc"


def test_an_entry_that_was_made_again_meanwhile_is_not_set_aside(store, warnings):
    make(store, "abc")
    old = store.entries.raw_manifest("phases", KEY)
    store.set_aside("phases", KEY, old, "some reason")
    make(store, "abc", {"again": True})
    store.set_aside("phases", KEY, old, "some reason")
    assert store.whole("phases", KEY).info == {"again": True}
    assert len(warnings()) == 1


def test_a_step_that_reads_a_damaged_result_says_so_and_the_next_run_makes_it_again(store, warnings):
    entry = make(store, "abc")
    reference = Reference.from_json(Reference(entry.key, entry.uri).to_json())
    assert (reference.folder / "model" / "weights").read_text() == "abc"
    forget_copies(store)
    store.objects.write(weights(store), b"abd")
    with pytest.raises(Damaged) as caught:
        _ = reference.folder
    assert caught.value.remedy == "run the same command again: it is made again"
    assert store.find("phases", KEY) is None
    with pytest.raises(UserError, match="is not in the store any more"):
        _ = reference.folder


def test_a_folder_outside_any_store_is_taken_as_it_is(tmp_path):
    assert Reference("key", str(tmp_path)).folder == tmp_path
    assert folder_of(str(tmp_path / "absent")) == tmp_path / "absent"


def test_what_s3_has_no_more_has_no_folder(s3_place):
    entry = make(Store(s3_place))
    assert (folder_of(entry.uri) / "model" / "weights").read_text() == "x"
    Store(s3_place).entries.delete("phases", KEY)
    assert folder_of(entry.uri) is None


def test_what_was_read_once_is_not_read_again(store, monkeypatch):
    make(store, "abc")
    read = []
    monkeypatch.setattr("components.common.store_entries.digest_file", lambda path: read.append(path) or "no digest")
    monkeypatch.setattr("components.common.store_s3.digest_file", lambda path: read.append(path) or "no digest")
    assert (store.whole("phases", KEY).path / "model" / "weights").read_text() == "abc"
    assert read == []
    path = store.whole("phases", KEY).path / "model" / "weights"
    os.utime(path, (1, 1))  # touched: it is read again
    store.entries._verified.faults(path.parents[1], store.find("phases", KEY).manifest)
    assert read == [path]


def test_a_copy_that_is_damaged_on_this_machine_is_fetched_again(s3_place):
    store = Store(s3_place)
    entry = make(store, "abc")
    (entry.path / "model" / "weights").write_text("abd")
    assert (store.find("phases", KEY).path / "model" / "weights").read_text() == "abc"
    (entry.path / "model" / "weights").unlink()
    assert (store.find("phases", KEY).path / "model" / "weights").read_text() == "abc"


def test_processes_that_fetch_one_entry_at_once_all_get_it(s3_place):
    make(Store(s3_place), "abc")
    forget_copies(Store(s3_place))
    program = (
        "import sys; from components.common.store import Store\n"
        f"print((Store(sys.argv[1]).find('phases', {KEY!r}).path / 'model' / 'weights').read_text())\n"
    )
    fetching = [
        subprocess.Popen([sys.executable, "-c", program, s3_place], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    assert [process.communicate(timeout=60)[0] for process in fetching] == ["abc\n"] * 3
    assert list((Store(s3_place).root / ".staging").iterdir()) == []


def test_nothing_is_fetched_before_it_is_asked_for(s3_place):
    make(Store(s3_place))
    store = Store(s3_place)
    forget_copies(store)
    entry = store.whole("phases", KEY)
    assert entry.uri.startswith(f"{s3_place}/phases/{KEY}/")
    assert not store.root.exists()
    assert entry.path.is_relative_to(store.root)


def test_a_prefix_that_is_copied_elsewhere_is_whole_there(s3_place):
    """Other marks (ETags) than the manifest's are no damage: then the content is looked at."""
    entry = make(Store(s3_place), "abc")
    objects = open_objects(s3_place)
    manifest = json.loads(objects.read(f"phases/{KEY}/manifest.json"))
    for about in manifest["files"].values():
        about["mark"] = '"another"'
    objects.write(f"phases/{KEY}/manifest.json", json.dumps(manifest).encode())
    assert Store(s3_place).whole("phases", KEY).uri == entry.uri


def test_digests_of_users_files_stay_on_this_machine(s3_place, cache):
    assert Store(s3_place).memory.is_relative_to(cache)


def test_two_servers_do_not_share_copies(s3_place, monkeypatch):
    here = Store(s3_place).root
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert Store(s3_place).root != here


def test_records_lie_in_the_store(place):
    records = RunRecords(place, "r-1")
    info = RunInfo("r-1", "r", {}, "d", place, "out", "2026-01-01T00:00:00+00:00")
    with pytest.raises(FileNotFoundError, match="r-1"):
        records.info()
    assert records.read("prepare") is None
    records.open(info)
    for seconds in (1.0, 2.0):
        records.write(StepRecord("prepare", "prepared", KEY, "uri", False, seconds, 0.5))
    assert RunRecords(place, "r-1").info() == info
    assert RunRecords(place, "r-1").read("prepare").seconds == 2.0
    assert open_objects(place).read("runs/r-1/prepare.json") is not None


def test_a_full_disk_for_copies_is_said_and_nothing_half_is_taken_for_whole(s3_place, monkeypatch, tiny_disk):
    make(Store(s3_place), "x" * 2_000_000)
    disk = tiny_disk("1m")
    with monkeypatch.context() as patch:
        patch.setenv("PHASETUNE_CACHE", str(disk))
        store = Store(s3_place)
        with pytest.raises(UserError, match="is full"):
            _ = store.find("phases", KEY).path
        with pytest.raises(UserError, match="is full"), store.make("phases", "f" * 32, {}) as folder:
            (folder / "weights").write_bytes(b"x" * 2_000_000)
        assert store.find("phases", "f" * 32) is None
        assert not list(Path(disk).rglob("manifest.json"))
    assert (Store(s3_place).find("phases", KEY).path / "model" / "weights").stat().st_size == 2_000_000
