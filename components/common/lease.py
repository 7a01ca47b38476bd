"""Leases: who makes a result at this moment, so that two that need the same one make it once.

A lease is the register `leases/<kind>/<key>`. Its token only grows, over take-overs and releases, and stands for the
right to publish (fencing): a holder that was suspended and comes back late finds a higher one and stops. The holder
renews the record; whoever waits watches whether it changes, by its own clock only, and takes over when it has not
changed for a while, or at once when the holder was a process of this machine that is no more.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.common.digests import digest
from components.common.errors import LeaseLost, UserError
from components.common.objects import NEW, Objects, seconds_of
from components.common.objects_json import json_object

HEARTBEAT = "PHASETUNE_HEARTBEAT"
"""The variable that sets the seconds within which a holder shows that it lives; 10 where absent."""
_RENEWALS = 2
"""Renewals in one heartbeat."""
_DEAD = 1.5
"""Heartbeats without a change after which a holder counts as dead: with the time to notice, within two."""
_LONGEST = 1e6
"""Seconds of the longest heartbeat that a record can ask others to wait for."""


def heartbeat() -> float:
    """Seconds within which a holder shows that it lives."""
    return seconds_of(HEARTBEAT, 10.0)


def register_name(kind: str, key: str) -> str:
    """The name of a lease's register."""
    return f"leases/{kind}/{key}"


def parse_lease(data: bytes) -> dict[str, Any]:
    """A lease's record. A damaged one says that nobody holds it: whoever does finds that it is lost, and stops."""
    try:
        record = json_object(data)
    except ValueError:
        record = {}
    token, holder, pulse = record.get("token"), record.get("holder"), record.get("heartbeat")
    known = isinstance(holder, dict) and type(holder.get("pid")) is int and "host" in holder
    if known and isinstance(record.get("id"), str) and isinstance(pulse, int | float) and 0 < pulse <= _LONGEST:
        return {**record, "token": token if type(token) is int else 0}
    return {"token": token if type(token) is int else 0, "holder": None}


def leased_token(objects: Objects, kind: str, key: str) -> int:
    """The newest token that was given out for a result; 0 where there is none."""
    found = objects.look(register_name(kind, key))
    return 0 if found is None else int(parse_lease(found[0])["token"])


def this_process(run: str) -> dict[str, Any]:
    """What a lease says about its holder."""
    return {"host": platform.node(), "pid": os.getpid(), "run": run, **_where(), "began": began_tick(os.getpid())}


def describe(holder: dict[str, Any]) -> str:
    """A holder in words: `process 123 on host, run x`."""
    run = f", run {holder['run']}" if holder.get("run") else ""
    return f"process {holder['pid']} on {holder['host']}{run}"


def _where() -> dict[str, str]:
    """What tells whether a process number means the same process here: this boot, and this space of numbers."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return {"boot": boot, "numbers": str(Path("/proc/self/ns/pid").readlink())}
    return {"boot": "", "numbers": ""}


def here() -> str:
    """A short word for this boot and this space of process numbers; empty where they cannot be told."""
    where = _where()
    return digest(where)[:8] if where["boot"] else ""


def ended(pid: int) -> bool:
    """Whether a process of `here` is no more; one that nobody has waited for counts as ended."""
    return not began_tick(pid)


def began_tick(pid: int) -> str:
    """The clock tick at which a living process of this machine began; empty where it is no more."""
    with contextlib.suppress(OSError):
        # The name (in brackets) may hold anything; after it come the state, and as 20th the tick.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    return ""


def surely_dead(holder: dict[str, Any]) -> bool:
    """Whether a holder was a process of this very boot that has ended."""
    here = _where()
    same = bool(here["boot"]) and all(holder.get(name) == here[name] for name in here)
    return same and began_tick(int(holder["pid"])) != holder.get("began")


class Lease:
    """A lease that this process holds; renewed by a thread from `start` to `release`.

    Args:
        objects: Where the record lies.
        name: The record's register.
        record: What it says now.
        version: Its version.

    Attributes:
        token: The fencing token; higher than any that was given out for this result before.
        lost: Whether another process is known to have taken over.
    """

    def __init__(self, objects: Objects, name: str, record: dict[str, Any], version: str) -> None:
        self._objects, self._name, self._record, self._version = objects, name, record, version
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._guards: int | None = None
        self.token = int(record["token"])
        self.lost = False

    def start(self) -> None:
        """Renew from now on; a loss interrupts this thread if it is the main one."""
        if threading.current_thread() is threading.main_thread():
            self._guards = threading.get_ident()
        self._thread.start()

    def _renew(self) -> None:
        interval = float(self._record["heartbeat"]) / _RENEWALS
        while not self._done.wait(interval):
            record = {**self._record, "write": uuid.uuid4().hex}
            try:
                objects = self._objects.patient(interval)
                version = objects.swap(self._name, json.dumps(record).encode(), self._version)
                if version is None:  # a renewal whose answer was lost has been done all the same
                    version = self._ours()
            except (UserError, OSError):
                continue  # the store is away or full; if somebody takes over meanwhile, the next renewal tells
            if version is None:
                self.lost = True
                self._interrupt()
                return
            self._version = version

    def _interrupt(self) -> None:
        """What is made from now on is for nothing: stop it, as a Ctrl-C would."""
        if self._guards is not None and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.pthread_kill(self._guards, signal.SIGINT)

    def error(self) -> LeaseLost:
        """What to tell whoever lost it."""
        what = "/".join(self._name.split("/")[1:])[:24]
        return LeaseLost(
            f"another process took over {what} while this one gave no sign of life",
            "run the same command again: it takes the other's result",
        )

    def check(self) -> None:
        """See that the lease is still ours, by reading the record.

        Raises:
            LeaseLost: If it is not.
        """
        if self._ours() is None:
            self.lost = True
            raise self.error()

    def _ours(self) -> str | None:
        found = self._objects.look(self._name)
        if found is None:
            return None
        record = parse_lease(found[0])
        return found[1] if record["holder"] is not None and record["id"] == self._record["id"] else None

    def release(self) -> None:
        """Stop renewing and let the next one have it; what cannot be said now, the missing renewals will say."""
        self._guards = None
        self._done.set()
        try:
            self._let_go()
        except (KeyboardInterrupt, SystemExit):  # a wish to stop that came in between does not leave it held
            self._let_go()
            raise

    def _let_go(self) -> None:
        if self._thread.is_alive():
            self._thread.join(timeout=2.0)
        record = {**self._record, "holder": None}
        with contextlib.suppress(UserError, OSError):
            for _ in range(5):  # a last renewal may still be on its way
                version = self._ours()
                if version is None:
                    return
                data = json.dumps({**record, "write": uuid.uuid4().hex}).encode()
                if self._objects.patient(5.0).swap(self._name, data, version) is not None:
                    return


class _Watch:
    """For how long a record has not changed, by our own clock, while the store answered."""

    def __init__(self) -> None:
        self._version = ""
        self._seen = 0.0
        self._unchanged = 0.0

    def unchanged(self, version: str, most: float) -> float:
        """Seconds; from one look to the next at most `most` count, for while the store is away nobody can renew."""
        now = time.monotonic()
        self._unchanged = self._unchanged + min(now - self._seen, most) if version == self._version else 0.0
        self._version, self._seen = version, now
        return self._unchanged


def acquire(
    objects: Objects, kind: str, key: str, run: str, ready: Callable[[], bool], waits: Callable[[dict[str, Any]], None]
) -> Lease | None:
    """Take the lease of a result, waiting for whoever has it.

    Args:
        objects: Where leases lie.
        kind: Of the result.
        key: Of the result.
        run: The run that wants it, for whoever waits for us.
        ready: Whether the result is there by now.
        waits: Told who is waited for, once for each.

    Returns:
        The lease, not yet renewed; None where the result came while we waited.
    """
    name, watch, told = register_name(kind, key), _Watch(), ""
    while True:
        found = objects.look(name)
        record: dict[str, Any] = parse_lease(found[0]) if found else {"token": 0, "holder": None}
        holder, version = record["holder"], found[1] if found else NEW
        pulse = float(record.get("heartbeat", heartbeat()))
        silent = watch.unchanged(version, pulse / 4)
        if holder is None or surely_dead(holder) or silent >= _DEAD * pulse:
            lease = _take(objects, name, int(record["token"]), version, run)
            if lease is not None:
                return lease
            continue
        if record["id"] != told:
            told = record["id"]
            waits(holder)
        time.sleep(min(1.0, pulse / 10))
        if ready():
            return None


def in_use(objects: Objects, kind: str, key: str) -> bool:
    """Whether somebody who may be alive holds a result's lease."""
    found = objects.look(register_name(kind, key))
    holder = None if found is None else parse_lease(found[0])["holder"]
    return holder is not None and not surely_dead(holder)


def take_free(objects: Objects, kind: str, key: str, run: str) -> Lease | None:
    """Take the lease of a result, not yet renewed, if nobody has it; waits for nobody."""
    name = register_name(kind, key)
    if in_use(objects, kind, key):
        return None
    found = objects.look(name)
    last, version = (0, NEW) if found is None else (int(parse_lease(found[0])["token"]), found[1])
    return _take(objects, name, last, version, run)


def _take(objects: Objects, name: str, last: int, version: str, run: str) -> Lease | None:
    # Tokens begin at the time: where `gc` has deleted the record meanwhile, they go on growing all the same.
    token = max(last + 1, time.time_ns() // 1_000_000)
    identity = uuid.uuid4().hex
    record = {"token": token, "id": identity, "write": identity, "heartbeat": heartbeat(), "holder": this_process(run)}
    try:
        new = objects.swap(name, json.dumps(record).encode(), version)
    except (KeyboardInterrupt, SystemExit):  # it may have been written all the same
        Lease(objects, name, record, NEW).release()
        raise
    return None if new is None else Lease(objects, name, record, new)


@contextmanager
def held(lease: Lease) -> Iterator[Lease]:
    """Renew a lease until the block ends, however it ends.

    Raises:
        LeaseLost: If another process took over; the block is interrupted where it runs in the main thread.
    """
    try:
        with _terminable():
            lease.start()
            try:
                yield lease
            finally:
                lease.release()
    except KeyboardInterrupt:
        if lease.lost:
            raise lease.error() from None
        raise


@contextmanager
def _terminable() -> Iterator[None]:
    """A SIGTERM ends the block in order, with exit code 143, where nobody else sees to it."""

    def leave(*_: object) -> None:
        raise SystemExit(143)

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
