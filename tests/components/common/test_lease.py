"""Leases: one maker for each result, over a folder and over S3."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from components.common import lease as leases
from components.common.errors import LeaseLost, UserError
from components.common.lease import acquire, describe, held, leased_token, register_name, surely_dead, this_process
from components.common.objects import open_objects

KEY = "0123456789abcdef" * 2


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setenv("PHASETUNE_HEARTBEAT", "0.4")


@pytest.fixture
def objects(place):
    return open_objects(place)


def take(objects, ready=lambda: False, waits=lambda holder: None, run="run"):
    return acquire(objects, "phases", KEY, run, ready, waits)


def record(objects):
    return json.loads(objects.look(register_name("phases", KEY))[0])


def elsewhere(monkeypatch):
    """From now on leases are taken by a process of another machine, as far as others can tell."""
    there = {**this_process("there"), "host": "elsewhere", "boot": "another", "pid": 1}
    monkeypatch.setattr(leases, "this_process", lambda run: {**there, "run": run})


def test_a_free_lease_is_taken_at_once_and_says_who_has_it(objects):
    with held(take(objects)) as lease:
        holder = record(objects)["holder"]
        assert holder == this_process("run")
        assert describe(holder).endswith(", run run")
        assert leased_token(objects, "phases", KEY) == lease.token > 0
        lease.check()


def test_tokens_only_grow_also_when_the_record_was_deleted(objects):
    tokens = []
    for number in range(4):
        with held(take(objects)) as lease:
            tokens.append(lease.token)
        if number == 1:
            objects.forget(register_name("phases", KEY))
    assert tokens == sorted(set(tokens))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_it_is_released_however_the_block_ends(objects, error):
    with pytest.raises(error), held(take(objects)):
        raise error
    assert record(objects)["holder"] is None


@pytest.mark.parametrize("wish", [KeyboardInterrupt, SystemExit])
def test_a_wish_to_stop_that_comes_while_it_is_written_leaves_it_free(objects, wish, monkeypatch):
    """Of the record: as the lease is taken, and as it is released."""
    taken, swap = [], objects.swap

    def interrupted(name, data, version):
        monkeypatch.setattr(objects, "swap", swap)
        taken.append(swap(name, data, version))
        raise wish

    monkeypatch.setattr(objects, "swap", interrupted)
    with pytest.raises(wish):
        take(objects)
    assert taken != [None]
    assert record(objects)["holder"] is None

    look = objects.look

    def interrupted_look(name):
        monkeypatch.setattr(objects, "look", look)
        raise wish

    lease = take(objects)
    with pytest.raises(wish), held(lease):
        monkeypatch.setattr(objects, "look", interrupted_look)
    assert objects.look == look
    assert record(objects)["holder"] is None


def test_who_waits_is_told_for_whom_once_and_gets_it_after_the_release(objects):
    told = []
    waiting = threading.Event()

    def waits(holder):
        told.append(describe(holder))
        waiting.set()

    with ThreadPoolExecutor(1) as pool:
        with held(take(objects, run="first")) as first:
            second = pool.submit(take, objects, waits=waits)
            assert waiting.wait(20)
        assert second.result(20).token > first.token
    assert told == [describe(this_process("first"))]


def test_who_waits_uses_the_result_when_it_comes(objects):
    there = threading.Event()
    with held(take(objects)), ThreadPoolExecutor(1) as pool:
        second = pool.submit(take, objects, ready=there.is_set)
        there.set()
        assert second.result(20) is None


def test_a_holder_that_lives_elsewhere_is_waited_for_however_long_it_takes(objects, monkeypatch):
    elsewhere(monkeypatch)
    looks = []

    def ready():
        looks.append(time.monotonic())
        return len(looks) > 40

    with held(take(objects)) as lease:
        assert take(objects, ready=ready) is None  # 40 looks are several heartbeats
        lease.check()


def test_a_holder_that_stops_renewing_is_replaced_and_learns_it(objects, monkeypatch):
    elsewhere(monkeypatch)
    first = take(objects)  # never renewed
    looks = []
    second = take(objects, ready=lambda: looks.append(1) is not None)
    assert second.token > first.token
    assert 1 < len(looks) <= 20  # ten looks make a heartbeat at least: within two
    with pytest.raises(LeaseLost, match="took over phases/0123456789"):
        first.check()
    second.check()


def test_a_holder_that_was_a_process_of_this_machine_and_is_no_more_is_replaced_at_once(objects, monkeypatch):
    monkeypatch.setenv("PHASETUNE_HEARTBEAT", "1000")
    gone = {**this_process("gone"), "began": "1"}  # the number is given anew to a process that began later
    monkeypatch.setattr(leases, "this_process", lambda run: gone)
    first = take(objects)
    assert surely_dead(record(objects)["holder"])
    assert take(objects).token > first.token


def test_one_of_many_that_come_at_once_gets_it(objects):
    start = threading.Barrier(6)
    inside, most, turns = [], [], []

    def one(number):
        start.wait(20)
        with held(take(objects)):
            inside.append(number)
            most.append(len(inside))
            turns.append(number)
            inside.remove(number)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(one, range(6)))
    assert sorted(turns) == list(range(6))
    assert max(most) == 1


def test_a_loss_interrupts_the_work_of_the_main_thread(objects):
    with pytest.raises(LeaseLost), held(take(objects)):
        found = objects.look(register_name("phases", KEY))
        other = {**json.loads(found[0]), "id": "other", "token": 2**62}
        while objects.swap(register_name("phases", KEY), json.dumps(other).encode(), found[1]) is None:
            found = objects.look(register_name("phases", KEY))
        time.sleep(60)
    assert record(objects)["id"] == "other"


def test_a_renewal_whose_answer_was_lost_is_no_loss(objects):
    with held(take(objects)) as lease:
        for _ in range(3):  # as if our own renewals had come through unheard
            found = objects.look(register_name("phases", KEY))
            again = {**json.loads(found[0]), "write": str(time.monotonic())}
            objects.swap(register_name("phases", KEY), json.dumps(again).encode(), found[1])
            time.sleep(0.3)
        assert not lease.lost
        lease.check()


def test_a_heartbeat_that_is_no_time_is_said(monkeypatch):
    for text in ("soon", "0", "-1", "nan"):
        monkeypatch.setenv("PHASETUNE_HEARTBEAT", text)
        with pytest.raises(UserError, match=f"PHASETUNE_HEARTBEAT is '{text}'"):
            leases.heartbeat()


def test_while_the_store_is_away_no_time_passes_for_a_holder():
    watch = leases._Watch()
    assert watch.unchanged("1", 0.1) == 0.0
    time.sleep(0.3)  # nobody can renew meanwhile
    assert watch.unchanged("1", 0.1) == 0.1
    assert watch.unchanged("2", 0.1) == 0.0


def test_a_full_disk_is_said(tiny_disk):
    disk = tiny_disk("64k")
    objects = open_objects(disk)
    first = take(objects)
    with (disk / "other").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(b"x" * 4096)
    with pytest.raises(UserError, match="is full"):
        acquire(objects, "phases", "f" * 32, "run", lambda: False, lambda holder: None)
    with pytest.raises(UserError, match="is full"):
        objects.write("runs/a/run.json", b"x" * 100)
    first.check()  # what stands there is whole
    assert [item.name for item in objects.list("runs")] == []
