import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from components.common.errors import UserError
from components.common.lease import here
from components.common.store import MANIFEST, Store

KEY = "0123456789abcdef" * 2


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def make(store, content="x", info=None, key=KEY):
    with store.make("phases", key, info or {}) as folder:
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_text(content)


def staged(store):
    return [item.name for item in (store.root / ".staging").glob("*")]


def test_a_result_is_found_with_what_its_maker_recorded(store):
    info = {}
    with store.make("phases", KEY, info) as folder:
        (folder / "weights").write_text("abc")
        info["steps"] = 3
    entry = store.find("phases", KEY)
    assert (entry.kind, entry.key, entry.info) == ("phases", KEY, {"steps": 3})
    assert entry.uri == str(store.root / "phases" / KEY)
    assert (entry.path / "weights").read_text() == "abc"
    assert staged(store) == []


def test_the_manifest_lists_every_file_with_size_and_digest(store):
    make(store, "abc")
    assert store.files(store.find("phases", KEY)) == {
        "model/weights": {"size": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    }


def test_there_is_nothing_under_another_kind_or_key_or_in_a_store_not_made_yet(store):
    assert store.find("phases", KEY) is None
    make(store)
    assert store.find("scores", KEY) is None
    assert store.find("phases", "f" * 32) is None


def test_a_result_does_not_exist_before_its_block_ends(store):
    with store.make("phases", KEY, {}) as folder:
        (folder / "weights").write_text("abc")
        assert store.find("phases", KEY) is None
        assert not store.path("phases", KEY).exists()
        assert not (folder / MANIFEST).exists()
    assert store.find("phases", KEY) is not None


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_block_that_raises_leaves_nothing(store, error):
    with pytest.raises(error), store.make("phases", KEY, {}) as folder:
        (folder / "weights").write_text("abc")
        raise error
    assert store.find("phases", KEY) is None
    assert not store.path("phases", KEY).exists()
    assert staged(store) == []


def test_a_killed_maker_leaves_nothing_that_is_found(store):
    program = (
        "import os, sys; from components.common.store import Store\n"
        f"with Store(sys.argv[1]).make('phases', {KEY!r}, {{}}) as folder:\n"
        "    (folder / 'weights').write_text('half'); os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(store.root)], check=False, timeout=30)
    assert len(staged(store)) == 1
    assert store.find("phases", KEY) is None
    make(store)
    assert store.find("phases", KEY) is not None


def test_makers_that_race_in_threads_all_succeed_with_one_result(store):
    start = threading.Barrier(8)

    def one(number):
        with store.make("phases", KEY, {}) as folder:
            (folder / "weights").write_text(str(number))
            start.wait(10)
        return (store.find("phases", KEY).path / "weights").read_text()

    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(one, range(8)))
    assert len(set(read)) == 1
    assert staged(store) == []


def test_makers_that_race_in_processes_all_succeed_with_one_result(store, tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from components.common.store import Store\n"
        "store = Store(sys.argv[1])\n"
        f"with store.make('phases', {KEY!r}, {{}}) as folder:\n"
        "    (folder / 'weights').write_text(sys.argv[2]); Path(sys.argv[3], sys.argv[2]).touch()\n"
        "    while len(list(Path(sys.argv[3]).iterdir())) < 3: time.sleep(0.001)\n"
        f"print((store.find('phases', {KEY!r}).path / 'weights').read_text())\n"
    )
    (tmp_path / "ready").mkdir()
    arguments = [sys.executable, "-c", program, str(store.root)]
    makers = [
        subprocess.Popen([*arguments, str(number), str(tmp_path / "ready")], stdout=subprocess.PIPE) for number in "abc"
    ]
    read = {maker.communicate(timeout=60)[0] for maker in makers}
    assert [maker.returncode for maker in makers] == [0, 0, 0]
    assert len(read) == 1
    assert staged(store) == []


def test_a_folder_without_a_manifest_is_no_result_and_is_replaced_whole(store):
    broken = store.path("phases", KEY)
    broken.mkdir(parents=True)
    (broken / "leftover").write_text("half")
    assert store.find("phases", KEY) is None
    make(store)
    assert sorted(item.name for item in broken.iterdir()) == [MANIFEST, "model"]


def test_makers_that_race_for_a_folder_without_a_manifest_all_succeed(store):
    for attempt in range(40):
        key = f"{attempt:032d}"
        (store.path("phases", key) / "leftover").mkdir(parents=True)
        start = threading.Barrier(4)

        def one(number, key=key, start=start):
            with store.make("phases", key, {}) as folder:
                (folder / "weights").write_text(str(number))
                start.wait(10)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(one, range(4)))
        assert sorted(item.name for item in store.find("phases", key).path.iterdir()) == [MANIFEST, "weights"]


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b'{"info": 5, "files": {}}', b"\xff\xfe\x00", b"null"])
def test_a_damaged_manifest_is_said_with_the_folder_to_delete(store, text):
    make(store)
    (store.path("phases", KEY) / MANIFEST).write_bytes(text)
    with pytest.raises(UserError, match="is damaged") as caught:
        store.find("phases", KEY)
    assert caught.value.remedy == f"delete the folder {store.path('phases', KEY)}; it is made again"


def test_finding_while_results_are_made_sees_whole_results_or_none(store):
    keys = [f"{number:032d}" for number in range(30)]
    seen, done = [], threading.Event()

    def look():
        while not done.is_set():
            for key in keys:
                entry = store.find("phases", key)
                if entry is not None:
                    seen.append((entry.path / "model" / "weights").read_text() == key and entry.info == {"key": key})

    with ThreadPoolExecutor(3) as pool:
        looking = [pool.submit(look) for _ in range(3)]
        for key in keys:
            make(store, key, {"key": key}, key)
        done.set()
        for look_out in looking:
            look_out.result()
    assert seen
    assert all(seen)


@pytest.fixture
def full_disk(tiny_disk):
    """A disk of 1 MB."""
    return tiny_disk("1m")


def test_a_full_disk_is_said_and_leaves_nothing_that_is_found(full_disk):
    store = Store(full_disk / "store")
    with pytest.raises(UserError, match=r"the disk of the store .* is full"), store.make("phases", KEY, {}) as folder:
        (folder / "weights").write_bytes(b"x" * 2_000_000)
    assert store.find("phases", KEY) is None
    assert staged(store) == []


def fill(file):
    with file.open("wb", buffering=0) as out, pytest.raises(OSError, match="No space"):
        while True:
            out.write(b"x" * 4096)


def test_a_disk_that_fills_before_the_manifest_leaves_nothing_that_is_found(full_disk):
    store = Store(full_disk / "store")
    with pytest.raises(UserError, match="is full"), store.make("phases", KEY, {"long": "x" * 5000}) as folder:
        fill(folder / "weights")
    assert store.find("phases", KEY) is None
    make(store)
    assert store.find("phases", KEY) is not None


def test_a_store_that_is_a_file_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"the store .*file cannot be written"):
        make(Store(tmp_path / "file"))
    assert Store(tmp_path / "file").find("phases", KEY) is None


def test_a_store_elsewhere_is_refused():
    with pytest.raises(UserError, match="'gs://bucket/store' is neither a folder nor S3"):
        Store("gs://bucket/store")
    with pytest.raises(UserError, match="names no bucket"):
        Store("s3://")


def test_clearing_spares_what_is_young_or_has_a_living_maker(store):
    with store.make("phases", KEY, {}) as folder:
        other = folder.with_name(f"phases-{KEY[:12]}-elsewhere-{2**22 + 5}-abcdef12")
        broken = folder.with_name("broken-abcdef12")
        young = folder.with_name(f"phases-{KEY[:12]}-elsewhere-{2**22 + 6}-abcdef12")
        killed = folder.with_name(f"phases-{KEY[:12]}-{here()}-{2**22 + 7}-abcdef12")
        for item in (other, broken, young, killed):
            item.mkdir()
        for item in (folder, other, broken):
            os.utime(item, (1, 1))
        assert store.clear_staging() == 3
        assert sorted(item.name for item in folder.parent.iterdir()) == sorted([folder.name, young.name])


def test_clearing_takes_a_maker_for_ended_that_nobody_has_waited_for(store):
    maker = subprocess.Popen(["true"])
    os.waitid(os.P_PID, maker.pid, os.WEXITED | os.WNOWAIT)
    (store.root / ".staging" / f"phases-{KEY[:12]}-{here()}-{maker.pid}-abcdef12").mkdir(parents=True)
    assert store.clear_staging() == 1
    maker.wait()


def test_a_file_that_the_maker_calls_manifest_does_not_pass_for_ours(store):
    with store.make("phases", KEY, {"a": 1}) as folder:
        (folder / MANIFEST).write_text("{}")
    assert store.find("phases", KEY).info == {"a": 1}
    assert json.loads(Path(store.path("phases", KEY), MANIFEST).read_text())["key"] == KEY


def test_a_stray_file_under_the_key_is_set_aside(store):
    store.path("phases", KEY).parent.mkdir(parents=True)
    store.path("phases", KEY).write_text("")
    assert store.find("phases", KEY) is None
    make(store)
    assert store.find("phases", KEY) is not None
