"""HTTP as the API server speaks it: requests with a body in JSON, and streams in chunks."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Listens on a port of this machine.

    Args:
        answer: Answers a request, with its connection, method and body.
    """

    daemon_threads = True

    def __init__(self, answer: Callable[[Connection, str, Any], None]) -> None:
        self.answer = answer
        super().__init__(("127.0.0.1", 0), Connection)


class Connection(BaseHTTPRequestHandler):
    """A client's connection: one answer to each request, or a stream that goes on."""

    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        return

    def _any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length) if length else b""
        try:
            self.server.answer(self, self.command, json.loads(raw) if raw else None)
        except (BrokenPipeError, ConnectionResetError):  # whoever asked has gone
            self.close_connection = True

    do_GET = do_POST = do_PATCH = do_DELETE = _any

    def send(self, code: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def stream(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def stream_json(self, value: Any) -> None:
        self.stream(json.dumps(value).encode() + b"\n")

    def end_stream(self) -> None:
        self.wfile.write(b"0\r\n\r\n")
