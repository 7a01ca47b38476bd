"""A Kubernetes API server of ours, in this process, that behaves as the real one does where our code looks.

It keeps RayJobs, Workflows, Workloads and pods of one namespace (a second, `EMPTY`, holds nothing), with resource
versions, conflicts, watches that time out and expire, deletion with preconditions and finalizers, and the garbage
collection of what has no owner any more. It can be away, fail, cut its streams, and it remembers every request.
KubeRay's part is played by the test.
"""

from __future__ import annotations

import copy
import re
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.kubernetes_api.connection import Connection, Server

Object = dict[str, Any]
NAMESPACE, EMPTY = "phasetune", "empty"
MERGE_PATCH = "application/merge-patch+json"
"""The one kind of patch that is taken: claims are merged. A client that sends another must not pass unseen."""
KINDS = {
    "rayjobs": ("/apis/ray.io/v1", "RayJob"),
    "workflows": ("/apis/argoproj.io/v1alpha1", "Workflow"),
    "workloads": ("/apis/kueue.x-k8s.io/v1beta2", "Workload"),
    "pods": ("/api/v1", "Pod"),
}
_PATH = re.compile(
    r"(?P<group>/apis?/.+)/namespaces/(?P<namespace>[^/]+)/(?P<plural>[^/]+)(?:/(?P<name>[^/]+)(?P<log>/log)?)?$"
)


class Answer(Exception):
    """An answer that is no success."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.body = {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}


class ApiServer:
    """The server.

    Attributes:
        address: To ask it at.
        requests: Of every request the method, the path, and the query's values by name.
        faults: How the next requests fail, taken from the front: a status, or `cut` (closed without an answer), or
            `lost` (done, then closed without an answer).
        on_create: Called with every new RayJob, in a thread of its own: what KubeRay does about it.
        on_delete: Called with every RayJob that is gone, likewise.
        check: Returns what is wrong with a new RayJob.
        watch_seconds: After which the server ends a watch at the latest.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.faults: list[int | str] = []
        self.on_create: Callable[[Object], None] = lambda job: None
        self.on_delete: Callable[[Object], None] = lambda job: None
        self.check: Callable[[Object], list[str]] = lambda job: []
        self.watch_seconds = 30.0
        self._objects: dict[tuple[str, str], Object] = {}
        self._events: list[tuple[int, str, str, Object]] = []
        self._version, self._forgotten, self._cuts = 100, 0, 0
        self._logs: dict[str, list[tuple[str, str]]] = {}
        self._ended: set[str] = set()
        self._away = self._closed = False
        self._changed = threading.Condition(threading.RLock())
        self._server = Server(self.answer)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """End the server and its streams."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def kubeconfig(self, path: Path, namespace: str = NAMESPACE) -> Path:
        """Write a kubeconfig that names this server."""
        names = {"cluster": "c", "user": "u", "namespace": namespace}
        values = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "x",
            "contexts": [{"name": "x", "context": names}],
            "clusters": [{"name": "c", "cluster": {"server": self.address}}],
            "users": [{"name": "u", "user": {"token": "secret-token"}}],
        }
        path.write_text(yaml.safe_dump(values))
        return path

    # What a test does to the cluster.

    def put(self, plural: str, name: str, **parts: Any) -> Object:
        """Make an object, as somebody else does: `labels` and `metadata` go to its metadata, the rest beside it."""
        group, kind = KINDS[plural]
        metadata = {"name": name, "labels": parts.pop("labels", {}), **parts.pop("metadata", {})}
        made = {"apiVersion": group.removeprefix("/apis/").removeprefix("/api/"), "kind": kind, "metadata": metadata}
        with self._changed:
            return self._create(plural, {**made, **parts})

    def get(self, plural: str, name: str) -> Object | None:
        """An object as it is now."""
        with self._changed:
            return copy.deepcopy(self._objects.get((plural, name)))

    def names(self, plural: str) -> list[str]:
        """The names of the objects of a kind that are there."""
        with self._changed:
            return [name for kind, name in self._objects if kind == plural]

    def change(self, plural: str, name: str, patch: Object) -> None:
        """Change an object, as a controller does: by a merge patch."""
        with self._changed:
            self._patch(plural, name, patch)

    def status(self, job: str, machines: str, driver: str = "", **more: Any) -> None:
        """Change a RayJob's status, as KubeRay does."""
        self.change("rayjobs", job, {"status": {"jobDeploymentStatus": machines, "jobStatus": driver, **more}})

    def remove(self, plural: str, name: str) -> None:
        """Delete an object with all that it alone owns."""
        with self._changed:
            self._delete(plural, name, {})

    def print(self, pod: str, *lines: str, at: str | None = None) -> None:
        """Write lines to a pod's log."""
        with self._changed:
            stamp = at or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            self._logs.setdefault(pod, []).extend((stamp, line) for line in lines)
            self._changed.notify_all()

    def end_log(self, pod: str) -> None:
        """End a pod's container: whoever follows its log comes to the end."""
        with self._changed:
            self._logs.setdefault(pod, [])
            self._ended.add(pod)
            self._changed.notify_all()

    def cut(self) -> None:
        """Cut every stream that is open."""
        with self._changed:
            self._cuts += 1
            self._changed.notify_all()

    def forget(self) -> None:
        """Forget all changes until now: watches of older versions are expired."""
        with self._changed:
            self._version += 1
            self._forgotten = self._version
            self._cuts += 1
            self._changed.notify_all()

    def go_away(self) -> None:
        """Close every connection without an answer, until `come_back`."""
        self._away = True
        self.cut()

    def come_back(self) -> None:
        """Answer again."""
        self._away = False

    def asked(self, method: str, part: str = "") -> list[str]:
        """The paths that were asked with a method."""
        return [path for how, path, _ in list(self.requests) if how == method and part in path]

    # What the API does.

    def answer(self, handler: Connection, method: str, body: Object | None) -> None:
        """Answer one request."""
        url = urlsplit(handler.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.requests.append((method, url.path, query))
        fault: int | str = "cut" if self._away else self.faults.pop(0) if self.faults else ""
        if fault == "cut":
            handler.close_connection = True
            return
        try:
            if isinstance(fault, int):
                raise Answer(fault, "InternalError", "injected")
            code, value = self._do(handler, method, url.path, query, body)
        except Answer as refusal:
            code, value = refusal.code, refusal.body
        if fault == "lost":
            handler.close_connection = True
        elif value is not None:
            handler.send(code, value)

    def _do(
        self, handler: Connection, method: str, path: str, query: dict[str, str], body: Object | None
    ) -> tuple[int, Object | None]:
        found = _PATH.match(path)
        if found is None or KINDS.get(found["plural"], ("",))[0] != found["group"]:
            raise Answer(404, "NotFound", "the server could not find the requested resource")
        if found["namespace"] == EMPTY and method == "GET" and not found["name"]:
            return 200, {"kind": "List", "metadata": {"resourceVersion": str(self._version)}, "items": []}
        if found["namespace"] != NAMESPACE:
            raise Answer(403, "Forbidden", f"not allowed in the namespace {found['namespace']}")
        plural, name = found["plural"], found["name"]
        if found["log"]:
            self._send_log(handler, name, query)
            return 200, None
        if query.get("watch", "").lower() == "true":
            self._send_watch(handler, plural, query)
            return 200, None
        with self._changed:
            if method == "POST":
                return 201, copy.deepcopy(self._create(plural, body or {}))
            if method == "PATCH":
                kind = handler.headers.get("Content-Type", "")
                if kind != MERGE_PATCH:
                    raise Answer(
                        415, "UnsupportedMediaType", f"the body of the request was in an unknown format: {kind}"
                    )
                return 200, copy.deepcopy(self._patch(plural, name, body or {}))
            if method == "DELETE":
                return 200, self._delete(plural, name, (body or {}).get("preconditions") or {})
            if name:
                return 200, copy.deepcopy(self._there(plural, name))
            items = [
                copy.deepcopy(one)
                for (kind, _), one in self._objects.items()
                if kind == plural and _selected(one, query)
            ]
            return 200, {"kind": "List", "metadata": {"resourceVersion": str(self._version)}, "items": items}

    def _there(self, plural: str, name: str) -> Object:
        found = self._objects.get((plural, name))
        if found is None:
            raise Answer(404, "NotFound", f'{plural} "{name}" not found')
        return found

    def _create(self, plural: str, body: Object) -> Object:
        name = body["metadata"]["name"]
        if (plural, name) in self._objects:
            raise Answer(409, "AlreadyExists", f'{plural} "{name}" already exists')
        wrong = self.check(body) if plural == "rayjobs" else []
        if wrong:
            raise Answer(400, "BadRequest", "strict decoding error: " + "; ".join(wrong))
        made = copy.deepcopy(body)
        made["metadata"] |= {
            "namespace": NAMESPACE,
            "uid": str(uuid.uuid4()),
            "creationTimestamp": datetime.now(UTC).isoformat(),
        }
        self._objects[plural, name] = made
        self._happened("ADDED", plural, made)
        if plural == "rayjobs":
            threading.Thread(target=self.on_create, args=(copy.deepcopy(made),), daemon=True).start()
        return made

    def _patch(self, plural: str, name: str, body: Object) -> Object:
        found = self._there(plural, name)
        expected = (body.get("metadata") or {}).get("resourceVersion")
        if expected is not None and expected != found["metadata"]["resourceVersion"]:
            raise Answer(
                409, "Conflict", "the object has been modified; please apply your changes to the latest version"
            )
        merged = _merged(found, body)
        self._objects[plural, name] = merged
        self._happened("MODIFIED", plural, merged)
        return merged

    def _delete(self, plural: str, name: str, preconditions: Object) -> Object:
        found = self._there(plural, name)
        for field, value in preconditions.items():
            if value != found["metadata"][field]:
                raise Answer(409, "Conflict", f"precondition failed: {field} in precondition: {value}")
        if found["metadata"].get("finalizers"):
            found["metadata"]["deletionTimestamp"] = datetime.now(UTC).isoformat()
            self._happened("MODIFIED", plural, found)
            return copy.deepcopy(found)
        del self._objects[plural, name]
        self._happened("DELETED", plural, found)
        if plural == "rayjobs":
            threading.Thread(target=self.on_delete, args=(copy.deepcopy(found),), daemon=True).start()
        self._collect_garbage()
        return {"kind": "Status", "status": "Success"}

    def _collect_garbage(self) -> None:
        alive = {one["metadata"]["uid"] for one in self._objects.values()}
        for (plural, name), one in list(self._objects.items()):
            owners = one["metadata"].get("ownerReferences") or []
            if owners and not any(owner["uid"] in alive for owner in owners):
                self._delete(plural, name, {})
                return  # which begins anew

    def _happened(self, kind: str, plural: str, one: Object) -> None:
        self._version += 1
        one["metadata"]["resourceVersion"] = str(self._version)
        self._events.append((self._version, kind, plural, copy.deepcopy(one)))
        self._changed.notify_all()

    def _send_watch(self, handler: Connection, plural: str, query: dict[str, str]) -> None:
        seen = int(query.get("resourceVersion") or 0)
        end = time.monotonic() + min(self.watch_seconds, float(query.get("timeoutSeconds") or 3600))
        with self._changed:
            cuts, forgotten = self._cuts, seen < self._forgotten
        handler.begin_stream()
        if forgotten:
            expired = {
                "kind": "Status",
                "code": 410,
                "reason": "Expired",
                "message": f"too old resource version: {seen}",
            }
            handler.stream_json({"type": "ERROR", "object": expired})
            handler.end_stream()
            return
        while True:
            with self._changed:
                # Read together: a bookmark must not pass over what happens while we wait.
                fresh, version = [event for event in self._events if event[0] > seen], self._version
                if not fresh and self._cuts == cuts and not self._closed:
                    self._changed.wait(min(0.5, max(0.0, end - time.monotonic())))
                if self._cuts != cuts or self._closed:
                    handler.close_connection = True  # without the stream's end, as when a proxy is restarted
                    return
            for number, kind, what, one in fresh:
                seen = number
                if what == plural and _selected(one, query):
                    handler.stream_json({"type": kind, "object": one})
            if time.monotonic() >= end:
                about = {"resourceVersion": str(version), "creationTimestamp": None}
                if not fresh:
                    handler.stream_json({"type": "BOOKMARK", "object": {"kind": "x", "metadata": about}})
                handler.end_stream()
                return

    def _send_log(self, handler: Connection, pod: str, query: dict[str, str]) -> None:
        with self._changed:
            if pod not in self._logs:
                raise Answer(400, "BadRequest", f'container in pod "{pod}" is waiting to start: ContainerCreating')
            cuts = self._cuts
        since = datetime.min.replace(tzinfo=UTC)
        if "sinceSeconds" in query:
            since = datetime.fromtimestamp(int(time.time()) - int(query["sinceSeconds"]), UTC)
        handler.begin_stream()
        sent = 0
        while True:
            with self._changed:
                fresh, done = self._logs[pod][sent:], pod in self._ended or query.get("follow", "").lower() != "true"
                if not fresh and not done and self._cuts == cuts and not self._closed:
                    self._changed.wait(0.5)
                if self._cuts != cuts or self._closed:
                    handler.close_connection = True
                    return
            for stamp, line in fresh:
                sent += 1
                if datetime.fromisoformat(stamp) >= since:
                    handler.stream(f"{stamp} {line}\n".encode())
            if done and not fresh:
                handler.end_stream()
                return


def _merged(old: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7386)."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    made = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            made.pop(key, None)
        else:
            made[key] = _merged(made.get(key), value)
    return made


def _selected(one: Object, query: dict[str, str]) -> bool:
    labels = one["metadata"].get("labels") or {}
    for part in filter(None, query.get("labelSelector", "").split(",")):
        key, _, value = part.partition("=")
        if labels.get(key) != value:
            return False
    field = query.get("fieldSelector", "")
    return not field or field == f"metadata.name={one['metadata']['name']}"
