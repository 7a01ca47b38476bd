"""Links in a store in a folder: nothing elsewhere is read, written or deleted through them."""

import json
import os
import time
from pathlib import Path

import pytest

from components.common.checkpoints import CheckpointPlace, clear, latest, save
from components.common.errors import Damaged, UserError
from components.common.lease import take_free
from components.common.objects import LocalObjects, Missing
from components.common.store import Store
from components.common.store_gc import decide, sweep
from components.common.store_inventory import take_inventory

KEY = "0123456789abcdef" * 2
STATE = {"token": 1, "kept": [{"step": 1, "name": "n", "files": {"thesis": {"size": 4, "sha256": "x"}}}]}
POINTER = json.dumps({**STATE, "unfinished": []}).encode()
FOLDERS = [".damaged", ".staging", ".verified", "checkpoints", "leases", "phases", "runs", "waiting"]


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder elsewhere, in which everything is old."""
    folder = tmp_path / "victim"
    for name in ("docs/thesis", "docs/manifest.json", "k/n/thesis", f"{KEY}/manifest.json", "1", "x.json"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    long_ago = time.time() - 1e8
    for path in folder.rglob("*"):
        os.utime(path, (long_ago, long_ago))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "store").mkdir()
    return Store(tmp_path / "store")


def everything(folder):
    return sorted((str(path.relative_to(folder)), path.is_file() and path.read_text()) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", FOLDERS)
def test_gc_deletes_nothing_behind_a_link_in_a_store(store, victim, name):
    before = everything(victim)
    (store.root / name).symlink_to(victim)
    decisions = decide(store, 0)
    assert decisions == []
    sweep(store, decisions)
    store.clear_staging()
    assert everything(victim) == before


@pytest.mark.parametrize(
    "name", [f"phases/{KEY}", f"checkpoints/{KEY}", f"leases/phases/{KEY}", "runs/r", ".damaged/x"]
)
def test_gc_passes_by_links_further_down(store, victim, name):
    before = everything(victim)
    (store.root / name).parent.mkdir(parents=True)
    (store.root / name).symlink_to(victim / "docs")
    decisions = decide(store, 0)
    assert decisions == []
    sweep(store, decisions)
    assert everything(victim) == before
    assert (store.root / name).is_symlink()


@pytest.mark.parametrize("link", ["checkpoints/k/n", "checkpoints/k/pointer", "checkpoints/k", "checkpoints"])
def test_checkpoints_behind_a_link_are_neither_used_nor_deleted(store, victim, tmp_path, link):
    before = everything(victim)
    (store.root / link).parent.mkdir(parents=True, exist_ok=True)
    (store.root / link).symlink_to(victim / "docs" if link.endswith("n") else victim)
    place = CheckpointPlace(store.place, "k", 5)
    if link.endswith("n"):
        store.objects.swap("checkpoints/k/pointer", POINTER, "")
        assert latest(place, tmp_path / "into") is None
        clear(place)
    else:
        for work in (lambda: latest(place, tmp_path / "into"), lambda: clear(place)):
            with pytest.raises(Damaged, match="is a link"):
                work()
        with pytest.raises(UserError, match="is a link"):
            save(place, 1, victim / "docs")
    assert everything(victim) == before


def test_every_way_to_an_object_stops_at_a_link(store, victim, tmp_path):
    before = everything(victim)
    (store.root / "a").symlink_to(victim)
    (store.root / "file").symlink_to(victim / "1")
    objects = LocalObjects(store.root)
    for name in ("a/docs/thesis", "a/docs", "a", "file"):
        for work in (
            lambda name=name: objects.read(name),
            lambda name=name: objects.write(name, b"x"),
            lambda name=name: objects.send(victim / "1", name),
            lambda name=name: objects.size(name),
            lambda name=name: objects.fetch(name, tmp_path / "fetched", 1),
            lambda name=name: objects.look(name),
            lambda name=name: objects.swap(name, b"x", ""),
            lambda name=name: objects.swap(name, b"x", "1"),
        ):
            with pytest.raises(Damaged, match=r"is a link.*\n.*remove"):
                work()
        objects.forget(name)
        objects.remove([name])
        assert list(objects.list(name)) == list(objects.list_registers(name)) == []
    assert list(objects.list("")) == []  # a link is no object
    assert everything(victim) == before
    with pytest.raises(Missing):
        objects.fetch("b", tmp_path / "fetched", 1)


def make(store):
    with store.make("phases", KEY, {}) as folder:
        (folder / "weights").write_text("x")
    return store.path("phases", KEY)


@pytest.mark.parametrize("link", [f"phases/{KEY}", "phases", ".staging"])
def test_no_result_is_found_made_or_deleted_behind_a_link(store, victim, link):
    before = everything(victim)
    (store.root / link).parent.mkdir(exist_ok=True)
    (store.root / link).symlink_to(victim)
    with pytest.raises(Damaged, match="is a link"):
        make(store)
    with pytest.raises(Damaged, match="is a link"):
        store.entries.delete("phases", KEY)
    if link != ".staging":
        with pytest.raises(Damaged, match="is a link"):
            store.whole("phases", KEY)
    assert everything(victim) == before


def test_nothing_is_remembered_or_set_aside_behind_a_link(store, victim):
    (victim / f"phases-{KEY}.json").write_text("mine")
    before = everything(victim)
    (store.root / ".verified").symlink_to(victim)
    (store.root / ".damaged").symlink_to(victim)
    (store.root / ".digests").symlink_to(victim)
    with pytest.raises(Damaged, match="is a link"):
        _ = store.memory
    made = make(store)
    assert store.whole("phases", KEY).path == made
    (made / "weights").write_text("y")
    with pytest.raises(Damaged, match="is a link"):
        store.whole("phases", KEY)
    assert (made / "weights").read_text() == "y"
    store.entries.delete("phases", KEY)
    assert not made.exists()
    assert everything(victim) == before


def test_the_store_itself_may_be_reached_through_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "disk")
    store = Store(tmp_path / "store" / "inner")
    make(store)
    take_free(store.objects, "phases", KEY, "r").release()
    assert store.whole("phases", KEY) is not None
    assert [held.key for held in take_inventory(store).entries.values()] == [KEY]
    assert [(d.what, d.goes) for d in decide(store, 0)] == [("entry", True), ("lease", True)]
    sweep(store, decide(store, 0))
    assert decide(store, 0) == []
