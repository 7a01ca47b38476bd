"""A small API server of Kubeflow Pipelines, v2beta1, in this process: what our commands ask of the real one.

It answers as the real one does: ids, pages, filters, 404 and 409 with Kubeflow's bodies, namespaces by installation,
multipart uploads. It can be away, fail, or do what is asked and lose the answer. Runs move only when told.

What must never be true it writes down, and `stop` raises it: an error raised in here would be a cut connection to the
client, from which it recovers.
"""

from __future__ import annotations

import email.message
import email.parser
import email.policy
import json
import re
import socket
import struct
import threading
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

Object = dict[str, Any]
ROOT = "/apis/v2beta1"


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass
class Fault:
    """What happens to the next requests that match."""

    pattern: str
    times: int
    status: int = 0  # 0: the connection is cut
    late: bool = False  # only after what was asked is done


@dataclass
class KfpServer:
    """The server and all that it holds.

    Attributes:
        namespaces: Of an installation with several users; empty with one.
        token: What a request must carry; empty: nothing.
    """

    namespaces: tuple[str, ...] = ()
    token: str = ""
    pages: int = 2
    pipelines: dict[str, Object] = field(default_factory=dict)
    versions: dict[str, Object] = field(default_factory=dict)
    experiments: dict[str, Object] = field(default_factory=dict)
    runs: dict[str, Object] = field(default_factory=dict)
    schedules: dict[str, Object] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    script: list[Object] = field(default_factory=list)
    """What a run looks like at each of the next looks at it."""
    wrong: list[str] = field(default_factory=list)
    """What must never have been true, and errors of this server's own."""

    def __post_init__(self) -> None:
        self._lock, self._moment = threading.RLock(), datetime(2026, 1, 1, tzinfo=UTC)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"kfp": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        assert not self.wrong, self.wrong

    def count(self, method: str, pattern: str) -> int:
        """How often something was asked."""
        return sum(one == method and re.search(pattern, path) is not None for one, path in self.asked)

    def writes(self) -> list[tuple[str, str]]:
        """What was asked to be changed."""
        return [(method, path.split("?")[0]) for method, path in self.asked if method != "GET"]

    def answer(self, method: str, target: str, body: bytes, headers: email.message.Message) -> Object | str:
        with self._lock:
            self.asked.append((method, target))
            if self.token and headers.get("authorization") != f"Bearer {self.token}":
                raise Refused(401, "Request header error: there is no user identity header.")
            url = urlsplit(target)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            if url.path == f"{ROOT}/healthz":
                return {"multi_user": bool(self.namespaces)}
            parts = re.split(r"[/:]", url.path.removeprefix(f"{ROOT}/"))
            handler = getattr(self, f"_{method.lower()}_{parts[0]}", None)
            if handler is None:
                raise Refused(404, f"Not Found: {method} {url.path}")
            if method == "POST" and parts[1:2] in (["upload"], ["upload_version"]):
                return self._upload(query, _file_of(body, headers))
            given = json.loads(body) if body and "json" in headers.get("content-type", "") else {}
            result: Object = handler(parts[1:], query, given)
            return result

    def _now(self) -> str:
        self._moment += timedelta(seconds=1)
        return f"{self._moment:%Y-%m-%dT%H:%M:%SZ}"

    def _check_namespace(self, namespace: str) -> None:
        if not self.namespaces and namespace:
            raise Refused(400, "Invalid input error: In single-user mode, the namespace must be empty")
        if self.namespaces and not namespace:
            raise Refused(400, "Invalid input error: A valid namespace is required in multi-user mode")
        if self.namespaces and namespace not in self.namespaces:
            raise Refused(403, f"User 'ann' is not authorized with reason: (request: namespace:{namespace!r})")

    def _page(self, name: str, found: list[Object], query: dict[str, str]) -> Object:
        for predicate in json.loads(query.get("filter", "{}")).get("predicates", []):
            assert predicate["operation"] == 1
            found = [one for one in found if one.get(predicate["key"]) == predicate["stringValue"]]
        start, size = int(query.get("page_token") or 0), min(int(query.get("page_size", 10)), self.pages)
        page: Object = {name: found[start : start + size], "total_size": len(found)} if found else {}
        return page | ({"next_page_token": str(start + size)} if start + size < len(found) else {})

    @staticmethod
    def _one(found: dict[str, Object], kind: str, key: str) -> Object:
        if key not in found:
            raise Refused(404, f"{kind} {key} not found.")
        return found[key]

    def _get_pipelines(self, parts: list[str], query: dict[str, str], _: Object) -> Object:
        if not parts:
            self._check_namespace(query.get("namespace", ""))
            kept = [one for one in self.pipelines.values() if one["namespace"] == query.get("namespace", "")]
            return self._page("pipelines", kept, query)
        self._one(self.pipelines, "Pipeline", parts[0])
        if len(parts) == 2:
            mine = [one for one in self.versions.values() if one["pipeline_id"] == parts[0]]
            return self._page("pipeline_versions", [{**one, "pipeline_spec": None} for one in mine], query)
        return self._one(self.versions, "PipelineVersion", parts[2])

    def _post_pipelines(self, _parts: list[str], _query: dict[str, str], body: Object) -> Object:
        namespace = body.get("namespace", "")
        self._check_namespace(namespace)
        if any((one["name"], one["namespace"]) == (body["name"], namespace) for one in self.pipelines.values()):
            raise Refused(409, f"Already exist error: The name {body['name']} already exist. Please specify a new name")
        made = {**body, "namespace": namespace, "pipeline_id": str(uuid.uuid4()), "created_at": self._now()}
        self.pipelines[made["pipeline_id"]] = made
        return made

    def _upload(self, query: dict[str, str], text: bytes) -> Object:
        self._one(self.pipelines, "Pipeline", query["pipelineid"])
        documents = list(yaml.safe_load_all(text))
        if not documents or "pipelineInfo" not in documents[0]:
            raise Refused(400, "Invalid input error: unknown template format")
        if any((v["pipeline_id"], v["name"]) == (query["pipelineid"], query["name"]) for v in self.versions.values()):
            raise Refused(
                409, f"Already exist error: The name {query['name']} already exist. Please specify a new name"
            )
        whole = {"pipeline_spec": documents[0], "platform_spec": documents[1]} if documents[1:] else documents[0]
        made = {
            "pipeline_id": query["pipelineid"],
            "pipeline_version_id": str(uuid.uuid4()),
            "name": query["name"],
            "display_name": query.get("display_name", query["name"]),
            "created_at": self._now(),
            "pipeline_spec": whole,
        }
        self.versions[made["pipeline_version_id"]] = made
        return made

    def _get_experiments(self, parts: list[str], query: dict[str, str], _: Object) -> Object:
        if parts:
            return self._one(self.experiments, "Experiment", parts[0])
        self._check_namespace(query.get("namespace", ""))
        kept = [one for one in self.experiments.values() if one["namespace"] == query.get("namespace", "")]
        return self._page("experiments", kept, query)

    def _post_experiments(self, _parts: list[str], _query: dict[str, str], body: Object) -> Object:
        namespace = body.get("namespace", "")
        self._check_namespace(namespace)
        if any(
            (e["display_name"], e["namespace"]) == (body["display_name"], namespace) for e in self.experiments.values()
        ):
            raise Refused(409, "Already exist error: Failed to create a new experiment")
        made = {"storage_state": "AVAILABLE", **body, "namespace": namespace, "experiment_id": str(uuid.uuid4())}
        self.experiments[made["experiment_id"]] = made | {"created_at": self._now()}
        return self.experiments[made["experiment_id"]]

    def _job(self, body: Object) -> Object:
        """The parts that runs and recurring runs share, seen to be there."""
        self._one(self.experiments, "Experiment", body["experiment_id"])
        self._one(self.versions, "PipelineVersion", body["pipeline_version_reference"]["pipeline_version_id"])
        return {**body, "created_at": self._now()}

    def _get_runs(self, parts: list[str], query: dict[str, str], _: Object) -> Object:
        if not parts:
            kept = [one for one in self.runs.values() if query.get("experiment_id") in (None, one["experiment_id"])]
            return self._page("runs", kept, query)
        run = self._one(self.runs, "Run", parts[0])
        if self.script:
            run |= self.script.pop(0)
        return run

    def _post_runs(self, parts: list[str], _query: dict[str, str], body: Object) -> Object:
        if len(parts) == 2:
            assert parts[1] == "terminate"
            run = self._one(self.runs, "Run", parts[0])
            if run["state"] not in ("PENDING", "RUNNING"):
                raise Refused(400, f"Failed to terminate run {parts[0]}: it is not in state PENDING or RUNNING")
            run["state"] = "CANCELING"
            return {}
        made = {**self._job(body), "run_id": str(uuid.uuid4()), "state": "PENDING", "storage_state": "AVAILABLE"}
        self.runs[made["run_id"]] = made
        return made

    def _get_recurringruns(self, parts: list[str], query: dict[str, str], _: Object) -> Object:
        if parts:
            return self._one(self.schedules, "RecurringRun", parts[0])
        self._check_namespace(query.get("namespace", ""))
        return self._page("recurringRuns", list(self.schedules.values()), query)

    def _post_recurringruns(self, parts: list[str], _query: dict[str, str], body: Object) -> Object:
        if len(parts) == 2:
            found = self._one(self.schedules, "RecurringRun", parts[0])
            assert parts[1] in ("enable", "disable")
            found |= {"mode": parts[1].upper(), "status": f"{parts[1].upper()}D"}
            self._never_two()
            return {}
        cron = body["trigger"]["cron_schedule"]
        # The real one gives moments that were not set as the beginning of time.
        window = {
            # The real one keeps whole seconds.
            name: f"{datetime.fromisoformat(cron.get(name, '1970-01-01T00:00:00Z')).astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
            for name in ("start_time", "end_time")
        }
        made = {
            **self._job(body),
            "trigger": {"cron_schedule": {**cron, **window}},
            "recurring_run_id": str(uuid.uuid4()),
            "status": f"{body['mode']}D",
        }
        self.schedules[made["recurring_run_id"]] = made
        self._never_two()
        return made

    def _never_two(self) -> None:
        """No two schedules of one name fire at any moment."""
        firing = [one["display_name"] for one in self.schedules.values() if one["mode"] == "ENABLE"]
        if len(firing) != len(set(firing)):
            self.wrong.append(f"two fire at once: {firing}")

    def _delete_recurringruns(self, parts: list[str], _query: dict[str, str], _: Object) -> Object:
        self._one(self.schedules, "RecurringRun", parts[0])
        del self.schedules[parts[0]]
        return {}


def _file_of(body: bytes, headers: email.message.Message) -> bytes:
    """The uploaded file of a multipart request."""
    head = f"content-type: {headers['content-type']}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    (part,) = [
        part for part in message.iter_parts() if part.get_param("name", header="content-disposition") == "uploadfile"
    ]
    content: bytes = part.get_payload(decode=True)
    return content


class _Handler(BaseHTTPRequestHandler):
    kfp: KfpServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # an answer's body would wait 40 ms for the client to confirm its head

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        fault = next(
            (f for f in self.kfp.faults if f.times and re.search(f.pattern, f"{self.command} {self.path}")), None
        )
        if fault is not None:
            fault.times -= 1
            if fault.late:
                self.kfp.answer(self.command, self.path, body, self.headers)
            if fault.status:
                return self._send(fault.status, {"error": "Internal Server Error", "code": 13, "message": "a fault"})
            return self._cut()
        try:
            self._send(200, self.kfp.answer(self.command, self.path, body, self.headers))
        except Refused as error:
            self._send(error.status, {"error": error.message, "code": 5, "message": error.message, "details": []})
        except ConnectionError:  # the client is gone
            self._cut()
        except Exception as error:
            self.kfp.wrong.append(f"{self.command} {self.path}: {error!r}")
            self._cut()

    do_GET = do_POST = do_DELETE = _serve  # the names that http.server looks for

    def _send(self, status: int, content: Object | str) -> None:
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "text/html" if isinstance(content, str) else "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _cut(self) -> None:
        """End the connection as a crash does, with a reset."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""
