"""Checkpoints of a phase under way, in a folder and in S3."""

import json
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from components.common.checkpoints import (
    DATA,
    CheckpointPlace,
    clear,
    clear_finished,
    latest,
    save,
    unfinished,
)
from components.common.errors import LeaseLost, UserError
from components.common.lease import acquire, held
from components.common.objects import LocalObjects, open_objects

KEY = "0123456789abcdef" * 2


@pytest.fixture
def here(place):
    return CheckpointPlace(place, KEY, 5)


@pytest.fixture
def written(tmp_path):
    """Makes a folder of files of a checkpoint."""

    def write(step):
        folder = tmp_path / f"made-{step}"
        (folder / "rng").mkdir(parents=True)
        (folder / "model.safetensors").write_text(f"weights {step}")
        (folder / "rng" / "rank-0.json").write_text(json.dumps([step]))
        return folder

    return write


def names(place):
    return sorted(
        item.name.partition("/")[2].partition("/")[2] for item in open_objects(place.store).list("checkpoints")
    )


def read(found):
    step, folder = found
    return step, (folder / "model.safetensors").read_text(), json.loads((folder / "rng" / "rank-0.json").read_text())


def test_the_newest_checkpoint_comes_back(here, written, tmp_path):
    assert latest(here, tmp_path / "into") is None
    for step in (10, 20, 30):
        save(here, step, written(step))
    assert read(latest(here, tmp_path / "into")) == (30, "weights 30", [30])
    assert latest(here, tmp_path / "into")[0] == 30  # also twice into one folder


def test_the_place_travels_as_json(here, written, tmp_path):
    save(here, 10, written(10))
    there = CheckpointPlace(**json.loads(json.dumps(asdict(here))))
    assert read(latest(there, tmp_path / "into")) == (10, "weights 10", [10])


def test_only_so_many_are_kept(here, written):
    for step in (10, 20, 30, 40):
        save(here, step, written(step), keep=2)
    steps = {name.split("-")[0] for name in names(here) if "-" in name}
    assert steps == {"30", "40"}


def test_after_a_rollback_the_last_one_saved_counts(here, written, tmp_path):
    save(here, 40, written(40))
    save(here, 20, written(20))
    assert read(latest(here, tmp_path / "into"))[0] == 20


def test_a_damaged_checkpoint_is_skipped_and_named(here, written, tmp_path, monkeypatch):
    monkeypatch.setenv("PHASETUNE_EVENTS", str(tmp_path / "events"))
    save(here, 10, written(10))
    save(here, 20, written(20))
    objects = open_objects(here.store)
    (newest,) = [item.name for item in objects.list("checkpoints") if "/20-" in item.name and "model" in item.name]
    objects.remove([newest])
    assert read(latest(here, tmp_path / "into")) == (10, "weights 10", [10])
    assert "step 20" in json.loads((tmp_path / "events").read_text())["warning"]
    objects.write(newest, b"weights XX")
    assert latest(here, tmp_path / "into")[0] == 10
    assert "model.safetensors has changed" in (tmp_path / "events").read_text()


def test_an_older_token_is_told_that_it_lost(here, written, tmp_path):
    save(CheckpointPlace(here.store, KEY, 6), 10, written(10))
    with pytest.raises(LeaseLost):
        save(here, 20, written(20))
    assert latest(here, tmp_path / "into")[0] == 10


def test_a_worker_learns_that_the_lease_it_works_under_was_taken_over(here, written):
    objects = open_objects(here.store)
    lease = acquire(objects, "phases", KEY, "run", lambda: False, lambda holder: None)
    with held(lease):
        save(CheckpointPlace(here.store, KEY, lease.token), 10, written(10))
        with pytest.raises(LeaseLost):
            save(CheckpointPlace(here.store, KEY, lease.token - 1), 20, written(20))


def test_a_newer_token_goes_on_from_the_old_ones_checkpoint(here, written, tmp_path):
    save(here, 10, written(10))
    newer = CheckpointPlace(here.store, KEY, 6)
    assert latest(newer, tmp_path / "into")[0] == 10
    save(newer, 20, written(20))
    assert latest(newer, tmp_path / "into")[0] == 20


def test_clearing_leaves_nothing_and_spares_a_newer_holders(here, written, tmp_path):
    save(here, 10, written(10))
    clear(here)
    clear(here)
    assert names(here) == []
    assert latest(here, tmp_path / "into") is None
    save(CheckpointPlace(here.store, KEY, 6), 10, written(20))
    clear(here)
    assert latest(here, tmp_path / "into")[0] == 10


def held_by(objects, kind):
    return held(acquire(objects, kind, KEY, "run", lambda: False, lambda holder: None))


def test_what_a_killed_process_left_of_a_finished_phase_goes_with_what_no_pointer_names(here, written):
    objects = open_objects(here.store)
    with held_by(objects, "phases") as lease:
        place = CheckpointPlace(here.store, KEY, lease.token)
        save(place, 10, written(10))
        save(replace(place, part=DATA), 20, written(20))
        objects.write(f"{place.folder}/5-1-aaaaaaaa/model.safetensors", b"half deleted")
    assert unfinished(objects) == {KEY}
    clear_finished(here.store, KEY, "later")
    clear_finished(here.store, KEY, "later")
    assert (names(here), unfinished(objects)) == ([], set())


@pytest.mark.parametrize("kind", ["phases", "optimizers"])
def test_what_somebody_works_with_is_not_cleared(here, written, tmp_path, kind):
    objects = open_objects(here.store)
    with held_by(objects, kind) as lease:
        save(CheckpointPlace(here.store, KEY, lease.token), 10, written(10))
        clear_finished(here.store, KEY, "later")
        assert latest(here, tmp_path / "into")[0] == 10
    clear_finished(here.store, KEY, "later")
    assert names(here) == []


SAVING = """
import json, os, sys
from pathlib import Path
from components.common import objects
from components.common.checkpoints import CheckpointPlace, save
left = int(sys.argv[3])
def dying(method):
    def call(*arguments, **named):
        global left
        if not left: os.kill(os.getpid(), 9)
        left -= 1
        return method(*arguments, **named)
    return call
place = CheckpointPlace(**json.loads(sys.argv[1]))
kind = type(objects.open_objects(place.store))
for name in ("send", "swap", "remove"): setattr(kind, name, dying(getattr(kind, name)))
save(place, 20, Path(sys.argv[2]))
"""
"""Saves a checkpoint, and dies by `kill -9` before the n-th change of the store."""


@pytest.mark.parametrize("changes", [0, 1, 2, 3])
def test_killed_while_it_saves_it_leaves_the_checkpoint_before(here, written, tmp_path, changes):
    save(here, 10, written(10))
    command = [sys.executable, "-c", SAVING, json.dumps(asdict(here)), str(written(20)), str(changes)]
    assert subprocess.run(command, check=False, timeout=60).returncode == -9
    assert read(latest(here, tmp_path / "into")) == (10, "weights 10", [10])
    save(here, 30, written(30))
    assert read(latest(here, tmp_path / "into")) == (30, "weights 30", [30])
    clear(here)
    assert names(here) == []  # also what the killed one had begun to write


def test_killed_in_the_middle_of_a_file_it_leaves_the_checkpoint_before(here, written, tmp_path):
    save(here, 10, written(10))
    large = written(20)
    with (large / "optimizer.safetensors").open("wb") as file:
        file.truncate(200_000_000)
    command = [sys.executable, "-c", SAVING, json.dumps(asdict(here)), str(large), "99"]
    saving = subprocess.Popen(command)
    before = len(names(here))
    while len(names(here)) == before and saving.poll() is None:  # the first files have come
        time.sleep(0.005)
    saving.kill()
    assert saving.wait(timeout=30) == -9
    assert read(latest(here, tmp_path / "into")) == (10, "weights 10", [10])


def test_a_full_disk_is_said_and_leaves_the_checkpoint_before(written, tmp_path, tiny_disk):
    disk = tiny_disk("1m")
    place = CheckpointPlace(str(disk / "store"), KEY, 0)
    save(place, 10, written(10))
    large = written(20)
    (large / "optimizer").write_bytes(b"x" * 2_000_000)
    with pytest.raises(UserError, match="is full"):
        save(place, 20, large)
    assert read(latest(place, tmp_path / "into")) == (10, "weights 10", [10])
    save(place, 30, written(30))
    assert read(latest(place, tmp_path / "into"))[0] == 30


def test_a_late_write_of_an_old_version_changes_no_register(tmp_path):
    objects = LocalObjects(Path(tmp_path))
    versions = [objects.swap("a/b", b"0", "")]
    for number in range(1, 5):
        versions.append(objects.swap("a/b", str(number).encode(), versions[-1]))
    assert [objects.swap("a/b", b"late", version) for version in ["", *versions[:-1]]] == [None] * 5
    assert objects.look("a/b") == (b"4", versions[-1])


def test_what_a_killed_copy_has_left_is_deleted_with_the_object(tmp_path):
    folder = tmp_path / "checkpoints" / "k" / "10"
    folder.mkdir(parents=True)
    (folder / ".weights.123-abcdef12").write_bytes(b"half")
    LocalObjects(tmp_path).remove(["checkpoints/k/10/weights"])
    assert list(tmp_path.iterdir()) == []
