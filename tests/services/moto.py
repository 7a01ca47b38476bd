"""An S3 server (moto's) in this process or, run as a program, in one of its own, and what leads its clients there."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest


def one_at_a_time() -> None:
    """Let moto answer what concerns an object one request after another, as if each were atomic, as S3's are.

    Moto's server has a thread for each request, and looks at a condition and then writes: of simultaneous writes under
    one condition, two go through now and then, on a busy machine.
    """
    from moto.s3.responses import S3Response

    answer, lock = S3Response._key_response, threading.Lock()

    def in_turn(self: S3Response, request: Any, full_url: str) -> Any:
        with lock:  # the request is read by now, so a client that stops in the middle of one holds up nobody
            return answer(self, request, full_url)

    if answer.__name__ != in_turn.__name__:  # else done already
        S3Response._key_response = in_turn  # type: ignore[method-assign]  # what this is for


def command(port: int) -> list[str]:
    """What starts a server as a process, without a bucket."""
    return [sys.executable, "-P", __file__, "-H", "127.0.0.1", "-p", str(port)]  # -P: this file is not the library


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """A server with one bucket, `bucket`, until the context is left; gives its address."""
    import boto3
    from moto.server import ThreadedMotoServer

    one_at_a_time()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for each request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=address, **keys).create_bucket(Bucket="bucket")
        yield address
    finally:
        server.stop()


def point_at(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Lead this process and those that it starts to the server at an address."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")


if __name__ == "__main__":
    from moto.server import main

    one_at_a_time()
    main()
