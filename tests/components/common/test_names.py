"""Names out of a shared place lead nowhere else: those of manifests, of checkpoints' pointers, of adapters."""

import hashlib
import json

import pytest

from components.common.adapters import Stack, read_stack, write_stack
from components.common.checkpoints import CheckpointPlace, clear, latest, save
from components.common.errors import Damaged
from components.common.names import plain_name, plain_path
from components.common.objects import open_objects
from components.common.store import Store

KEY = "0123456789abcdef" * 2
EVIL = b"evil"
ABOUT = {"size": 4, "sha256": hashlib.sha256(EVIL).hexdigest()}
OUTSIDE = ["../escaped", "a/../../escaped", "/escaped", "a//escaped", "a/", ".", "..", "", "a/./b", "a\0b"]


@pytest.mark.parametrize("name", [*OUTSIDE, None, 3])
def test_a_name_that_leads_elsewhere_is_refused(name):
    with pytest.raises(ValueError, match="is no name of a file inside"):
        plain_path(name)
    with pytest.raises(ValueError, match="is no name of a file inside"):
        plain_name(name)


def test_other_names_are_taken_as_they_are():
    names = ["a", ".hidden", "a/b.c/..d", "...", "with space", "ü"]
    assert [plain_path(name) for name in names] == names
    assert plain_name("10-3-abc") == "10-3-abc"
    with pytest.raises(ValueError, match="is no single name"):
        plain_name("a/b")


def everything(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


@pytest.mark.parametrize("what", ["file", "absolute", "attempt"])
def test_a_manifest_that_names_files_elsewhere_is_damaged_and_writes_nothing(place, tmp_path, warnings, what):
    store, escaped = Store(place), tmp_path / "escaped"
    file = {"file": "../../../../escaped", "absolute": str(escaped), "attempt": "escaped"}[what]
    attempt = "a/../../../../../.." if what == "attempt" else "a"
    manifest = {"kind": "phases", "key": KEY, "created": 0.0, "files": {file: ABOUT}, "info": {}, "attempt": attempt}
    store.objects.write(f"phases/{KEY}/manifest.json", json.dumps(manifest).encode())
    store.objects.write(f"phases/{KEY}/{attempt}/{file}", EVIL) if place.startswith("s3://") else None
    before = everything(tmp_path)
    with pytest.raises(Damaged, match=r"the manifest of .* is damaged: .* is no "):
        _ = store.find("phases", KEY).path
    assert everything(tmp_path) == before
    assert store.whole("phases", KEY) is None
    assert "is damaged" in warnings()[0]
    assert not escaped.exists()


@pytest.mark.parametrize("what", ["name", "file"])
def test_a_checkpoint_with_names_that_lead_elsewhere_is_not_used(place, tmp_path, warnings, what):
    here, objects = CheckpointPlace(place, KEY, 0), open_objects(place)
    made, into = tmp_path / "made", tmp_path / "deep" / "into"
    made.mkdir()
    (made / "state").write_text("good")
    into.mkdir(parents=True)
    save(here, 10, made)
    pointer = f"{here.folder}/pointer"
    data, version = objects.look(pointer)
    state = json.loads(data)
    bad = {"step": 20, "name": "20-0-x", "files": {"state": ABOUT}}
    bad.update({"name": "a/../../victim"} if what == "name" else {"files": {"../../victim/state": ABOUT}})
    (file,) = bad["files"]
    (tmp_path / "deep" / "victim").mkdir()
    (tmp_path / "deep" / "victim" / "state").write_text("mine")
    victim = f"{here.folder}/{bad['name']}/{file}"  # where the store looks for it
    if not place.startswith("s3://"):
        (tmp_path / "store" / here.folder / "20-0-x").mkdir()
        (tmp_path / "store" / here.folder / "a").mkdir()
    objects.write(victim, EVIL)
    objects.swap(pointer, json.dumps({**state, "kept": [bad, *state["kept"]]}).encode(), version)

    step, folder = latest(here, into)
    assert (step, (folder / "state").read_text(), folder.parent) == (10, "good", into)
    assert (tmp_path / "deep" / "victim" / "state").read_text() == "mine"
    (warning,) = warnings()
    assert "step 20" in warning
    assert "is damaged" in warning
    clear(here)
    assert objects.read(victim) == EVIL  # nor is anything deleted by such a name


@pytest.mark.parametrize(
    "stack",
    [
        {"merged": ["../outside"], "active": "adapter-0"},
        {"merged": ["adapter-0", "a/b"], "active": None},
        {"merged": [], "active": "/outside"},
        {"merged": [], "active": ".."},
        {"merged": 3, "active": None},
        {"active": "adapter-0"},
        [],
    ],
)
def test_a_stack_that_names_other_than_subfolders_is_damaged(tmp_path, stack):
    (tmp_path / "adapters.json").write_text(json.dumps(stack))
    with pytest.raises(Damaged, match=r"adapters\.json is damaged"):
        read_stack(tmp_path)


def test_a_stack_comes_back(tmp_path):
    assert read_stack(tmp_path) == Stack()
    (tmp_path / "from" / "adapter-0").mkdir(parents=True)
    (tmp_path / "to").mkdir()
    write_stack(tmp_path / "to", Stack(("adapter-0",), "adapter-1"), tmp_path / "from")
    assert read_stack(tmp_path / "to") == Stack(("adapter-0",), "adapter-1")
