"""A small server that speaks Ray's Jobs API, in a thread of this process, and fails as it is told."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

from aiohttp import WSMsgType, web

TOKEN = "open sesame"


class Jobs:
    """The server.

    Attributes:
        plans: What becomes of the jobs that are submitted, in order: how each ends, and its log.
        jobs: The jobs by name, as the API tells them.
        faults: Answers to the next requests instead of the right ones: a status, or `cut` (of a log, in its middle).
        asked: Every request: method and path.
    """

    def __init__(self, made: Callable[[], None]) -> None:
        self.plans: list[tuple[str, str]] = []
        self.jobs: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, str] = {}
        self.faults: list[int | str] = []
        self.asked: list[str] = []
        self._made = made
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self.address = ""
        threading.Thread(target=self._serve, daemon=True).start()
        assert self._ready.wait(20)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application(middlewares=[self._gate])
        app.add_routes([
            web.post("/api/jobs/", self._submit),
            web.get("/api/jobs/{name}", self._look),
            web.post("/api/jobs/{name}/stop", self._stop),
            web.get("/api/jobs/{name}/logs/tail", self._tail),
        ])  # fmt: skip
        runner = web.AppRunner(app)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        self._loop.run_forever()

    @web.middleware
    async def _gate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.path}")
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.Response(status=403, text="Forbidden: Invalid authentication token")
        if self.faults and (self.faults[0] != "cut") and not request.path.endswith("/tail"):
            return web.Response(status=int(self.faults.pop(0)), text="upstream is away")
        return await handler(request)

    def known(self, name: str, status: str, **metadata: str) -> dict[str, Any]:
        """A job is there."""
        details = {"type": "SUBMISSION", "submission_id": name, "entrypoint": "x", "metadata": metadata}
        self.jobs[name] = {**details, "status": status, "message": ""}
        self.logs.setdefault(name, "")
        return self.jobs[name]

    async def _submit(self, request: web.Request) -> web.Response:
        asked = await request.json()
        name = asked["submission_id"]
        if name in self.jobs:
            return web.Response(status=400, text=f"Job with submission_id {name} already exists.")
        status, self.logs[name] = self.plans.pop(0)
        self.known(name, "RUNNING", **asked["metadata"])["asked"] = asked
        self.jobs[name]["then"] = status
        return web.json_response({"job_id": name, "submission_id": name})

    async def _look(self, request: web.Request) -> web.Response:
        job = self.jobs.get(request.match_info["name"])
        if job is None:
            return web.Response(status=404, text="Job does not exist")
        return web.json_response({name: value for name, value in job.items() if name not in ("asked", "then")})

    async def _stop(self, request: web.Request) -> web.Response:
        self.jobs[request.match_info["name"]]["status"] = "STOPPED"
        return web.json_response({"stopped": True})

    async def _tail(self, request: web.Request) -> web.WebSocketResponse:
        name = request.match_info["name"]
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        log = self.logs[name]
        if self.faults[:1] == ["cut"]:
            self.faults.pop(0)
            await socket.send_str(log[: len(log) // 2])
            assert request.transport is not None
            request.transport.abort()
            return socket
        for start in range(0, len(log), 7):
            await socket.send_str(log[start : start + 7])
        job = self.jobs[name]
        then = job.pop("then", None)
        if then == "LOST":
            del self.jobs[name]
        elif then == "FOREVER":
            while job["status"] == "RUNNING" and (await socket.receive()).type is not WSMsgType.CLOSE:
                pass
        elif then is not None:
            if then == "SUCCEEDED":
                self._made()
            job.update(
                status=then,
                end_time=int(time.time() * 1000),
                message=f"exit code 1, last lines:\n{log[-200:]}" if then == "FAILED" else "",
            )
        await socket.close()
        return socket
