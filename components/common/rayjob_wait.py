"""Wait for one RayJob's end: through a queue, cuts, an API that is away, and the loss of its head.

Nothing here has a time-out: the RayJob has its own deadline, and time in Kueue's queue does not count. What is kept
does not grow with the time.
"""

from __future__ import annotations

from typing import Any

from components.common.kubernetes_api import Cluster
from components.common.kubernetes_errors import Expired
from components.common.progress import say
from components.common.rayjob_log import LogFollower
from components.common.rayjob_state import ENDED, Ending, State, ending_of, state_of

Object = dict[str, Any]
_WATCH = 15
"""Seconds of one watch; between two the head is looked after. A signal that comes just before the process begins to
read is only seen when the watch ends, and a pod that is asked to end has 30 s."""
_SHORTEST = 1.0
"""Seconds that a watch takes at least: a server that ends it at once is not asked in a loop."""
_EVERY = 60.0
"""Seconds between two lines about the queue."""
_LOOK = 15.0
"""Seconds between two looks at the head."""
_GRACE = 90.0
"""Seconds for which a head may be gone before the attempt is given up; KubeRay needs some to say so itself."""


class Waiting:
    """The wait for a RayJob's end.

    Args:
        cluster: The cluster; it is asked for as long as this process lives.
        job: The RayJob as it is.
        step: The name of the step that waits.
        result: What the RayJob makes: the kind and the key.
        log: Follows its log once it runs.
    """

    def __init__(
        self, cluster: Cluster, job: Object, step: str, result: tuple[str, str], log: LogFollower | None = None
    ) -> None:
        self.name: str = job["metadata"]["name"]
        self._uid: str = job["metadata"]["uid"]
        self._cluster, self._step, self._result = cluster, step, result
        self._log = log
        self._job: Object = job
        self._version = ""
        self._state: State | None = None
        self._began = cluster.clock()
        self._working_since: float | None = None
        self._told = float("-inf")
        self._head, self._headless_since, self._looked = "", float("inf"), float("-inf")

    def until_end(self) -> Ending:
        """Wait, and say how it ended."""
        version = ""
        while True:
            # Also between two watches: the head and the queue are looked after though nothing has changed.
            ended = self._look(self._job if version else self._cluster.job(self.name))
            if ended is not None:
                return ended
            version = version or self._version
            began = self._cluster.clock()
            try:
                for event in self._cluster.watch(self.name, version, _WATCH):
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] == "BOOKMARK":
                        continue
                    ended = self._look(None if event["type"] == "DELETED" else event["object"])
                    if ended is not None:
                        return ended
            except Expired:
                version = ""
            self._cluster.sleep(max(0.0, _SHORTEST - (self._cluster.clock() - began)))

    def _look(self, job: Object | None) -> Ending | None:
        """Take in how the RayJob is now; returns how it ended if it did."""
        if job is not None and job["metadata"]["uid"] != self._uid:
            job = None  # another of this name came after ours
        if job is not None:
            self._job, self._version = job, job["metadata"]["resourceVersion"]
        state = state_of(job)
        if state in ENDED:
            return self._ended(state, "it was deleted" if state is State.GONE else "")
        if state is not self._state:
            self._changed(state)
        if state is State.QUEUED:
            self._tell_queue()
        if state is State.WORKING and self._head_is_lost():
            return self._ended(State.LOST, "its head is gone")
        return None

    def _changed(self, state: State) -> None:
        print(f"{self._step}: the RayJob {self.name} is {state}", flush=True)
        self._state, self._told = state, float("-inf")
        self._head, self._headless_since, self._looked = "", float("inf"), float("-inf")
        if state is State.WORKING and self._working_since is None:
            self._working_since = self._cluster.clock()
            if self._log is not None:
                self._log.start()

    def _ended(self, state: State, reason: str) -> Ending:
        log = ""
        if self._log is not None and self._working_since is None and state in (State.DONE, State.FAILED):
            self._log.start()  # it ended before we saw it run
            self._working_since = self._cluster.clock()
        if self._log is not None and self._working_since is not None:
            self._log.finish(2.0 if state in (State.GONE, State.LOST) else 15.0)
            log = self._log.tail
        until = self._cluster.clock() if self._working_since is None else self._working_since
        waited = until - self._began
        return ending_of(self.name, state, self._job, waited, log, reason)

    def _tell_queue(self) -> None:
        """Say, now and then, what the RayJob waits for."""
        now = self._cluster.clock()
        if now - self._told < _EVERY:
            return
        self._told = now
        reason = self._queue_reason()
        kind, key = self._result
        holder = f"the RayJob {self.name} in the queue" + (f" ({reason})" if reason else "")
        say(step=self._step, state="waiting", kind=kind, key=key, holder=holder)
        print(f"{self._step}: waiting for {holder}", flush=True)

    def _queue_reason(self) -> str:
        for workload in self._cluster.workloads(f"kueue.x-k8s.io/job-uid={self._uid}"):
            for condition in (workload.get("status") or {}).get("conditions") or []:
                if condition["type"] == "QuotaReserved" and condition["status"] == "False":
                    return str(condition.get("message") or condition.get("reason"))[:300]
        return ""

    def _head_is_lost(self) -> bool:
        """Whether the head that the driver was seen on has been gone for too long.

        A head that KubeRay starts anew is another: nothing of the driver is in it.
        """
        now = self._cluster.clock()
        if now - self._looked < _LOOK:
            return False
        self._looked = now
        heads = [pod["metadata"]["uid"] for pod in self._cluster.pods(self._head_selector()) if _stands(pod)]
        if not self._head and heads:
            self._head = heads[0]
        if not self._head or self._head in heads:
            self._headless_since = float("inf")
            return False
        self._headless_since = min(self._headless_since, now)
        return now - self._headless_since >= _GRACE

    def _head_selector(self) -> str:
        status = self._job.get("status") or {}
        return f"ray.io/cluster={status.get('rayClusterName', '')},ray.io/node-type=head"


def _stands(pod: Object) -> bool:
    phase = (pod.get("status") or {}).get("phase")
    return not pod["metadata"].get("deletionTimestamp") and phase not in ("Failed", "Succeeded")
