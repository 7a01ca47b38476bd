"""The few requests that we make to the Kubernetes API, each repeated while the API is away.

By the official client, with objects as plain dictionaries: what a newer server adds must not break an older client.
Credentials come from the pod's service account, or on a laptop from the kubeconfig.
"""

from __future__ import annotations

import functools
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from components.common.errors import UserError
from components.common.kubernetes_errors import Expired, passes, refused, said, status_of
from components.common.progress import say

T = TypeVar("T")
Object = dict[str, Any]
GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"
NAMESPACE = "phasetune"
"""Where nothing says in which namespace we are."""
FIRST_PATIENCE = 300.0
"""Seconds for which a server is asked that has not answered yet: a wrong kubeconfig never will."""
REFUSED_PATIENCE = 60.0
"""Seconds for which a server that has let us in before is asked again when it refuses: tokens and roles are renewed."""
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_ANSWER = 30.0
"""Seconds after which an unanswered request counts as failed."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
_QUIET = 10.0
"""Seconds of trouble after which the user is told."""
_LONGEST_LINE = 4 << 20
"""Bytes of a line of a stream that are kept: an object has at most 1.5 MB."""


def connect(namespace: str | None = None) -> Cluster:
    """The cluster that this pod is in, or that the kubeconfig names.

    Args:
        namespace: Of our objects; that of the pod or of the kubeconfig's context where absent.

    Raises:
        UserError: If there is neither.
    """
    from kubernetes import client, config  # type: ignore[import-untyped]  # it carries no types

    settings = client.Configuration()
    known = ""
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=settings)
            known = _ACCOUNT.read_text(encoding="utf-8").strip() if _ACCOUNT.is_file() else ""
        else:
            place = os.environ.get("KUBECONFIG")  # the client reads it only once, when it is imported
            config.load_kube_config(place, client_configuration=settings)
            known = config.list_kube_config_contexts(place)[1]["context"].get("namespace", "")
    except (config.ConfigException, OSError, KeyError, TypeError) as error:
        raise UserError(
            f"there is no Kubernetes cluster to ask: {error}",
            "set KUBECONFIG to the cluster's file, or run the spec as a pipeline (`phasetune submit`)",
        ) from error
    settings.retries = False  # the repeating is ours
    return Cluster(client.ApiClient(settings), namespace or known or NAMESPACE)


class Cluster:
    """A Kubernetes cluster, one namespace of it.

    Args:
        client: The official client.
        namespace: Of our objects.
        patience: Seconds for which a request is repeated.
        clock: Seconds that only grow.
        sleep: Waits for so many of them.
    """

    def __init__(
        self,
        client: Any,
        namespace: str,
        patience: float = FIRST_PATIENCE,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.namespace = namespace
        self.patience = patience
        self.clock, self.sleep = clock, sleep
        self._client = client

    @functools.cached_property
    def _custom(self) -> Any:
        from kubernetes import client

        return client.CustomObjectsApi(self._client)

    @functools.cached_property
    def _core(self) -> Any:
        from kubernetes import client

        return client.CoreV1Api(self._client)

    def create(self, body: Object) -> Object | None:
        """Make a RayJob; None where there is one of that name.

        Raises:
            UserError: If the cluster does not take it.
        """

        def ask() -> Object:
            made: Object = self._custom.create_namespaced_custom_object(
                GROUP, VERSION, self.namespace, PLURAL, body, field_validation="Strict", _request_timeout=_ANSWER
            )
            return made

        name = body["metadata"]["name"]
        return self._ask(f"make the RayJob {name}", ask, none_for=(409,))

    def job(self, name: str) -> Object | None:
        """A RayJob; None where there is none."""

        def ask() -> Object:
            found: Object = self._custom.get_namespaced_custom_object(
                GROUP, VERSION, self.namespace, PLURAL, name, _request_timeout=_ANSWER
            )
            return found

        return self._ask(f"read the RayJob {name}", ask, none_for=(404,))

    def jobs(self, selector: str) -> list[Object]:
        """The RayJobs with some labels."""
        return self._list("list RayJobs", GROUP, VERSION, PLURAL, selector)

    def patch(self, name: str, body: Object) -> Object | None:
        """Merge something into a RayJob; None where it is gone or, by `metadata.resourceVersion`, has changed."""

        def ask() -> Object:
            merged: Object = self._custom.patch_namespaced_custom_object(
                GROUP, VERSION, self.namespace, PLURAL, name, body, _request_timeout=_ANSWER
            )
            return merged

        return self._ask(f"change the RayJob {name}", ask, none_for=(404, 409))

    def delete(self, job: Object) -> bool:
        """Delete a RayJob with all that belongs to it, if it is still as it was read; returns False where it is not."""
        about = job["metadata"]
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": about["uid"], "resourceVersion": about["resourceVersion"]},
        }

        def ask() -> Object:
            done: Object = self._custom.delete_namespaced_custom_object(
                GROUP, VERSION, self.namespace, PLURAL, about["name"], body=body, _request_timeout=_ANSWER
            )
            return done

        return self._ask(f"delete the RayJob {about['name']}", ask, none_for=(404, 409)) is not None

    def watch(self, name: str, version: str, seconds: int) -> Iterator[Object]:
        """What happens to a RayJob after a version of it, until the server or a cut ends it.

        Args:
            name: Of the RayJob.
            version: `resourceVersion` from which on.
            seconds: After which the server ends it.

        Yields:
            `{"type": ADDED | MODIFIED | DELETED | BOOKMARK, "object": ...}`.

        Raises:
            Expired: If the server does not know that version any more: read the RayJob again.
        """

        def ask() -> Any:
            return self._custom.list_namespaced_custom_object(
                GROUP,
                VERSION,
                self.namespace,
                PLURAL,
                watch=True,
                field_selector=f"metadata.name={name}",
                resource_version=version,
                timeout_seconds=seconds,
                allow_watch_bookmarks=True,
                _preload_content=False,
                _request_timeout=(_ANSWER, seconds + _ANSWER),
            )

        response = self._ask(f"watch the RayJob {name}", ask, none_for=(410,))
        if response is None:
            raise Expired(version)
        for line in _lines(response):
            try:
                event: Object = json.loads(line)
            except ValueError:  # cut in its middle
                return
            if event.get("type") == "ERROR":
                if event["object"].get("code") == 410:
                    raise Expired(version)
                return
            yield event

    def pods(self, selector: str) -> list[Object]:
        """The pods with some labels."""

        def ask() -> list[Object]:
            response = self._core.list_namespaced_pod(
                self.namespace, label_selector=selector, _preload_content=False, _request_timeout=_ANSWER
            )
            found: list[Object] = json.loads(response.data)["items"]
            return found

        return self._ask("list pods", ask) or []

    def log(self, pod: str, container: str, since: int | None, follow: bool) -> Iterator[bytes]:
        """The lines of a container's log, each behind the time at which it was written.

        Args:
            pod: Its pod.
            container: Its name.
            since: Seconds before now from which on; None: all.
            follow: Wait for more until the container ends. The stream may end before that.

        Yields:
            Lines without their end; nothing where the container has not started.
        """
        settings: Object = {} if since is None else {"since_seconds": max(1, since)}

        def ask() -> Any:
            return self._core.read_namespaced_pod_log(
                pod,
                self.namespace,
                container=container,
                follow=follow,
                timestamps=True,
                _preload_content=False,
                _request_timeout=(_ANSWER, 2 * _ANSWER),
                **settings,
            )

        response = self._ask(f"read the log of the pod {pod}", ask, none_for=(400, 404))
        return iter(()) if response is None else _lines(response, to_the_end=not follow)

    def workflows(self, selector: str) -> list[Object]:
        """Argo's Workflows with some labels: the runs of pipelines."""
        return self._list("list Workflows", "argoproj.io", "v1alpha1", "workflows", selector)

    def workflow(self, name: str) -> Object | None:
        """Argo's Workflow of a name; None where there is none."""

        def ask() -> Object:
            found: Object = self._custom.get_namespaced_custom_object(
                "argoproj.io", "v1alpha1", self.namespace, "workflows", name, _request_timeout=_ANSWER
            )
            return found

        return self._ask(f"read the Workflow {name}", ask, none_for=(404,))

    def workloads(self, selector: str) -> list[Object]:
        """Kueue's Workloads with some labels; none where there is no Kueue, or we may not see them."""

        def ask() -> list[Object]:
            return self._items("kueue.x-k8s.io", "v1beta2", "workloads", selector)

        return self._ask("list Workloads", ask, none_for=(403, 404)) or []

    def _list(self, what: str, group: str, version: str, plural: str, selector: str) -> list[Object]:
        return self._ask(what, lambda: self._items(group, version, plural, selector)) or []

    def _items(self, group: str, version: str, plural: str, selector: str) -> list[Object]:
        found: list[Object] = self._custom.list_namespaced_custom_object(
            group, version, self.namespace, plural, label_selector=selector, _request_timeout=_ANSWER
        )["items"]
        return found

    def _ask(self, what: str, ask: Callable[[], T], none_for: tuple[int, ...] = ()) -> T | None:
        """Make a request, again and again while the server is away; None for an answer that tells a state."""
        began, pause, told = self.clock(), _FIRST_PAUSE, False
        while True:
            try:
                return ask()
            except Exception as error:
                status = status_of(error)
                if status in none_for:
                    return None
                away = self.clock() - began
                if not self._goes_on(error, away):
                    words = refused(what, self.namespace, error, away)
                    if words is None:
                        raise
                    raise words from error
                if away > _QUIET and not told:
                    told = True
                    say(warning=f"the Kubernetes API does not answer ({said(error)}); trying again")
            self.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _goes_on(self, error: Exception, away: float) -> bool:
        if status_of(error) in (401, 403):
            return self.patience == float("inf") and away < REFUSED_PATIENCE
        return passes(error) and away < self.patience


def _lines(response: Any, to_the_end: bool = False) -> Iterator[bytes]:
    """The lines of a stream, in bounded memory.

    A stream that is cut, or that ends in order though its writer goes on, may leave a line without its end: that is not
    given, except `to_the_end` of what was there when it was asked for.
    """
    rest = b""
    try:
        for part in response.stream(amt=None, decode_content=False):
            *whole, rest = (rest + part).split(b"\n")
            yield from whole
            if len(rest) > _LONGEST_LINE:
                yield rest
                rest = b""
        if rest and to_the_end:
            yield rest
    except Exception as error:
        if not passes(error):
            raise
    finally:
        response.close()
        response.release_conn()
