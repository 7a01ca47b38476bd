"""Errands and failures that somebody forged: what travels between a waiting step and a driver."""

import base64
import json
import zlib

import pytest

from components.common.errand import Errand, failure_in
from components.common.errors import DataError, UserError
from components.common.session_call import call, resolve


def forged(data: bytes) -> str:
    return base64.urlsafe_b64encode(zlib.compress(data, 9)).decode()


def of(**changes: object) -> bytes:
    values = {"step": "s", "run": "r", "kind": "phases", "key": "k", "target": "t", "arguments": {}}
    return json.dumps(values | changes).encode()


def test_a_bomb_is_not_unpacked(memory_of):
    bomb = base64.urlsafe_b64encode(zlib.compress(b" " * (256 << 20), 9)).decode()
    assert len(bomb) < 1 << 20

    def decode():
        with pytest.raises(ValueError):
            Errand.decoded(bomb)

    assert memory_of(decode) < 32 << 20


@pytest.mark.parametrize(
    "data", [b"[" * 100_000, b"{}", b"[]", b"null", b"\x80\x04.", of(more=1), of()[:-1], "ä".encode("latin-1")]
)
def test_what_is_no_errand_is_refused(data):
    with pytest.raises(ValueError):
        Errand.decoded(forged(data))


@pytest.mark.parametrize(
    "target",
    [
        "os:system",
        "builtins:eval",
        "subprocess:run",
        "components.common.judging:subprocess",  # a module that one of ours imports
        "components.common.adapters:shutil",
        "components.common.launcher:Popen",
        "components.common.objects:uuid",
        "components.common.errand:asdict",  # a function of another package that one of ours imports
        "components.common.spec_phases:model_validator",
        "components/../os:system",
        "componentsx:y",
        "components.common.errand",
        "",
    ],
)
def test_only_functions_of_ours_are_called(target):
    with pytest.raises((ValueError, AttributeError, ImportError)):
        resolve(target)


def test_a_foreign_target_ends_as_an_error_and_runs_nothing(trap):
    told = call("os:system", {"command": f"touch {trap.mark}"})
    assert "is not ours to call" in told["error"]
    assert not trap.sprung


@pytest.mark.parametrize("kind", ["KeyboardInterrupt", "__builtins__", "mendable", "annotations", "os", 3, None])
def test_a_forged_failure_is_a_message_and_nothing_else(kind):
    found = failure_in("phasetune-failed: " + json.dumps({"kind": kind, "message": "m", "remedy": "r"}))
    assert type(found) in (UserError, type(None))
    known = failure_in("phasetune-failed: " + json.dumps({"kind": "DataError", "message": "m", "remedy": "r"}))
    assert type(known) is DataError


def test_a_failure_nested_too_deep_is_passed_over():
    assert failure_in('phasetune-failed: {"kind": ' + "[" * 100_000) is None
