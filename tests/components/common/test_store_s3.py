"""S3 that answers 500, is silent, and cuts connections; large objects; conditional writes."""

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from components.common import objects_s3
from components.common.errors import UserError
from components.common.objects import NEW, Missing, open_objects
from components.common.objects_s3 import S3Objects
from components.common.store import Store

KEY = "0123456789abcdef" * 2
FAULTS = ["500", "cut-early", "cut", "lost"]


@pytest.fixture
def objects(s3_place):
    return S3Objects(s3_place)


def test_every_request_outlasts_every_fault(disturbed, objects, tmp_path):
    (tmp_path / "file").write_bytes(b"content" * 1000)
    for fault in FAULTS:
        disturbed.faults[:] = [fault]
        objects.write(f"{fault}/plain", b"1" * 2000)
        disturbed.faults[:] = [fault]
        assert objects.read(f"{fault}/plain") == b"1" * 2000
        disturbed.faults[:] = [fault]
        version = objects.swap(f"{fault}/register", b"1", NEW)
        disturbed.faults[:] = [fault]
        version = objects.swap(f"{fault}/register", b"2", version)
        disturbed.faults[:] = [fault]
        assert objects.look(f"{fault}/register") == (b"2", version)
        disturbed.faults[:] = [fault]
        objects.send(tmp_path / "file", f"{fault}/file")
        disturbed.faults[:] = ["", fault]
        objects.fetch(f"{fault}/file", tmp_path / "copy", 7000)
        assert (tmp_path / "copy").read_bytes() == b"content" * 1000
        disturbed.faults[:] = [fault]
        assert objects.size(f"{fault}/file")[0] == 7000
        disturbed.faults[:] = [fault]
        assert {item.name for item in objects.list(fault)} == {f"{fault}/{it}" for it in ("plain", "register", "file")}
        disturbed.faults[:] = [fault]
        objects.remove([f"{fault}/plain", f"{fault}/file"])
        disturbed.faults[:] = [fault]
        objects.forget(f"{fault}/register")
        assert disturbed.faults == []
        assert list(objects.list(fault)) == []


def test_a_server_that_says_nothing_is_asked_again(disturbed, objects, monkeypatch):
    monkeypatch.setenv("PHASETUNE_S3_TIMEOUT", "0.3")
    disturbed.faults[:] = ["silent"]
    version = objects.swap("register", b"1", NEW)
    disturbed.faults[:] = ["silent"]
    assert objects.look("register") == (b"1", version)


def test_an_entry_is_published_and_read_through_a_storm(disturbed, s3_place):
    weather = random.Random(3)
    disturbed.faults[:] = [weather.choice(["500", "cut-early", "cut", "lost", ""]) for _ in range(25)]
    store = Store(s3_place)
    with store.make("phases", KEY, {"steps": 3}) as folder:
        for number in range(8):
            (folder / f"part-{number}").write_bytes(bytes([number]) * 5000)
    disturbed.faults[:] = [weather.choice(["500", "cut-early", "cut", "lost", ""]) for _ in range(25)]
    assert Store(s3_place).whole("phases", KEY).info == {"steps": 3}
    assert (Store(s3_place).find("phases", KEY).path / "part-7").read_bytes() == b"\x07" * 5000


def test_one_that_stays_away_is_said_with_what_to_do(disturbed, s3_place, monkeypatch):
    monkeypatch.setenv("PHASETUNE_S3_PATIENCE", "0.5")
    disturbed.faults[:] = ["500"] * 1000
    with pytest.raises(UserError, match=rf"S3 at {s3_place} did not answer for 0 s: 503") as caught:
        S3Objects(s3_place).read("a")
    assert "PHASETUNE_S3_PATIENCE" in caught.value.remedy


def test_one_that_is_not_there_is_said(s3_place, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("PHASETUNE_S3_PATIENCE", "0.3")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9"):
        S3Objects(s3_place).read("a")


def test_while_it_is_away_the_user_is_told(disturbed, s3_place, tmp_path, monkeypatch):
    monkeypatch.setenv("PHASETUNE_EVENTS", str(tmp_path / "events"))
    monkeypatch.setattr(objects_s3, "_QUIET", -1.0)
    disturbed.faults[:] = ["500", "500"]
    assert S3Objects(s3_place).read("a") is None
    assert "trying again for up to 300 s" in json.loads((tmp_path / "events").read_text().splitlines()[0])["warning"]


def test_a_command_that_waits_says_so_in_the_terminal(disturbed, s3_place, capsys, monkeypatch):
    monkeypatch.setattr(objects_s3, "_QUIET", -1.0)
    disturbed.faults[:] = ["500", "500"]
    assert S3Objects(s3_place).read("a") is None
    assert capsys.readouterr().err == f"warning: S3 at {s3_place} is in trouble; trying again for up to 300 s\n"


def test_a_bucket_that_is_not_there_is_said_at_once(s3_place):
    with pytest.raises(UserError, match="NoSuchBucket"):
        S3Objects("s3://no-such-bucket/store").write("a", b"")


def test_without_credentials_it_is_said_what_to_set(s3_place, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError) as caught:
        S3Objects(s3_place).read("a")
    assert "AWS_SECRET_ACCESS_KEY" in caught.value.remedy


def test_a_large_object_goes_in_parts_and_comes_back(objects, disturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(objects_s3, "PART", 5 * 2**20)  # the least that S3 takes
    content = random.Random(1).randbytes(12 * 2**20)
    (tmp_path / "large").write_bytes(content)
    disturbed.faults[:] = ["500", "", "lost", "cut-early", "", "500"]
    objects.send(tmp_path / "large", "large")
    assert objects.size("large")[0] == len(content)
    disturbed.faults[:] = ["", "cut", "500", "cut"]
    objects.fetch("large", tmp_path / "copy", len(content))
    assert (tmp_path / "copy").read_bytes() == content


def test_parts_that_were_finished_unheard_are_finished(objects, disturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(objects_s3, "PART", 5 * 2**20)
    (tmp_path / "large").write_bytes(b"x" * 12 * 2**20)
    disturbed.faults[:] = ["", "", "", "", "lost"]  # begin, three parts, end
    objects.send(tmp_path / "large", "large")
    assert objects.size("large")[0] == 12 * 2**20


def test_an_upload_that_fails_leaves_no_parts(objects, disturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(objects_s3, "PART", 5 * 2**20)
    (tmp_path / "large").write_bytes(b"x" * 12 * 2**20)
    disturbed.faults[:] = ["", *["500"] * 9]
    with pytest.raises(UserError):
        objects.patient(0.0).send(tmp_path / "large", "large")
    disturbed.faults[:] = []
    objects.end_uploads(-1.0)
    assert objects.end_uploads(-1.0) == 0
    assert objects.size("large") is None


def test_what_is_missing_or_short_is_said(objects, tmp_path):
    objects.write("short", b"123")
    with pytest.raises(Missing):
        objects.fetch("short", tmp_path / "copy", 4)
    with pytest.raises(Missing):
        objects.fetch("absent", tmp_path / "copy", 0)
    assert objects.read("absent") is None
    assert objects.size("absent") is None
    objects.remove(["absent"])


def test_one_of_many_swaps_wins(place):
    objects = open_objects(place)
    version = NEW
    for turn in range(10):
        start = threading.Barrier(6)

        def one(number, start=start, version=version, turn=turn):
            start.wait(20)
            return objects.swap("leases/a/b", f"{turn} {number}".encode(), version)

        with ThreadPoolExecutor(6) as pool:
            won = [new for new in pool.map(one, range(6)) if new is not None]
        assert len(won) == 1
        version = won[0]
        assert objects.look("leases/a/b")[1] == version
    objects.forget("leases/a/b")
    assert objects.look("leases/a/b") is None
    assert objects.swap("leases/a/b", b"late", version) is None
    assert objects.look("leases/a/b") is None


def test_listings_know_objects_and_registers(place):
    objects = open_objects(place)
    objects.write("runs/a/run.json", b"12345")
    objects.write("runs-elsewhere/x", b"1")
    version = objects.swap("leases/phases/k", b"1", NEW)
    objects.swap("leases/phases/k", b"22", version)
    assert [(item.name, item.size) for item in objects.list("runs")] == [("runs/a/run.json", 5)]
    assert [(item.name, item.size) for item in objects.list_registers("leases")] == [("leases/phases/k", 2)]
    assert all(item.age < 60 for item in objects.list("runs"))
