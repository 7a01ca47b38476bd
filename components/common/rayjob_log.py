"""Follow the log of a RayJob's driver: what its submitter's pod prints, through every cut, each line once.

The API gives every line the time at which it was written. After a cut we ask for what was written since shortly before,
and pass over what has been printed. A submitter that is started again prints the whole log again; so do we, and say so.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

from components.common.errors import UserError
from components.common.kubernetes_api import Cluster
from components.common.progress import heard, say
from components.common.rayjob_pods import COMPONENT, JOB, SUBMITTER

_LINES, _LENGTH = 200, 20_000
"""The last lines that are kept, and the characters of each."""
_OVERLAP = 30
"""Seconds of the log that are asked for a second time: two clocks need not agree."""
_PAUSE = 2.0
_STAMPS = 1000
"""Lines whose times are remembered."""
_TIME = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d) ?")


class LogFollower:
    """The log of one RayJob.

    Args:
        cluster: The cluster; asked by a thread of ours.
        name: The RayJob's.
        emit: Gets every line.
    """

    def __init__(self, cluster: Cluster, name: str, emit: Callable[[str], None] | None = None) -> None:
        self._cluster, self._name = cluster, name
        self._emit = emit or self._print
        self._last: deque[str] = deque(maxlen=_LINES)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self.run, name=f"log of {name}", daemon=True)
        self._pod = ""
        self._stamps: deque[str] = deque(maxlen=_STAMPS)
        """The times of the lines that were printed, in the order of the log, which need not be that of the times: its
        writers have several streams, and a clock can be set back."""
        self._caught_up = True
        """Whether this stream has come behind what an earlier one showed."""
        self._read_at = 0.0

    @property
    def tail(self) -> str:
        """The last lines."""
        return "\n".join(self._last)

    def start(self) -> None:
        """Follow in the background."""
        self._thread.start()

    def finish(self, seconds: float = 15.0) -> None:
        """Stop following, and read what has come meanwhile: the last lines say why a job failed.

        Args:
            seconds: That this may take.
        """
        self._done.set()
        reader = threading.Thread(target=self._read_rest, daemon=True)
        reader.start()
        reader.join(seconds)

    def run(self) -> None:
        """Follow until told to stop."""
        while not self._done.is_set():
            try:
                self.follow_once(follow=True)
            except UserError as error:  # the job goes on without its log
                say(warning=f"the log of {self._name} cannot be read: {error.message}")
                return
            self._done.wait(_PAUSE)

    def follow_once(self, follow: bool) -> None:
        """Read the log from where we are, until the stream ends.

        Args:
            follow: Wait for more; False: only what is there.
        """
        pod = self._newest_pod()
        if pod is None:
            return
        if pod != self._pod:
            if self._pod:
                self._emit("(the submitter was started again; its log begins anew)")
            self._pod = pod
            self._stamps.clear()
        since = int(self._cluster.clock() - self._read_at) + _OVERLAP if self._stamps else None
        self._caught_up = not self._stamps
        again = 0
        for raw in self._cluster.log(pod, SUBMITTER, since, follow):
            stamp, line = _stamped(raw.decode("utf-8", "replace"))
            if self._caught_up or self._is_new(stamp, again):
                self._take(stamp, line)
            else:
                again += stamp == self._stamps[-1]
            self._read_at = self._cluster.clock()
            if follow and self._done.is_set():
                return

    def _is_new(self, stamp: str, again: int) -> bool:
        """Whether a line of a stream that shows old lines first has not been printed, and so nothing behind it.

        Args:
            stamp: The line's time.
            again: Lines with the time of the last one that was printed that this stream has shown before this one.
        """
        self._caught_up = again >= self._stamps.count(self._stamps[-1]) or stamp > max(self._stamps)
        return self._caught_up

    def _take(self, stamp: str, line: str) -> None:
        self._stamps.append(stamp)
        event = heard(line)
        if event is not None:
            say(**event)
        self._last.append(line[:_LENGTH])
        self._emit(line)

    def _read_rest(self) -> None:
        self._thread.join()
        try:
            self.follow_once(follow=False)
        except UserError:  # what was read until here must do
            return

    def _newest_pod(self) -> str | None:
        pods = self._cluster.pods(f"{JOB}={self._name},{COMPONENT}=ray-submitter")
        newest = max(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp")), default=None)
        return None if newest is None else str(newest["metadata"]["name"])

    def _print(self, line: str) -> None:
        print(f"[{self._name}] {line}", flush=True)


def _stamped(line: str) -> tuple[str, str]:
    """The time of a line in UTC, comparable as text, and the line; a line without a time counts as the oldest."""
    found = _TIME.match(line)
    if found is None:
        return "", line
    whole = found[1]
    if found[3] != "Z":  # the node's own zone
        whole = datetime.fromisoformat(whole + found[3]).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{(found[2] or '').ljust(9, '0')}", line[found.end() :]
