"""An errand as a job of a Ray cluster that stands, by Ray's Jobs API (`compute.ray: http://HOST:8265`).

The job's name follows from the result, so two runs that want the same one share a job, and a step that was killed
finds its job again. A job that fails is followed by the next attempt, which goes on from the last checkpoint. The
driver runs in the cluster's own image: nothing is uploaded, and no secret is passed on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from components.common.digests import digest
from components.common.errand import ERRAND, Done, Errand, errand_name, failure_in
from components.common.errors import LeaseLost, UserError
from components.common.launcher import STOPPING, StepFailed
from components.common.leaving import (
    HURRY,
    is_retried,
    lost_before,
    nobody_comes_again,
    note_lost,
    run_is_ending,
    stoppable,
)
from components.common.objects import Objects, open_objects
from components.common.progress import heard, say
from components.common.ray_jobs import Broken, Cluster, Refused
from components.common.spec import Spec
from components.common.store import Store
from components.common.waiting import jobs_of, leave, note, noted

ENTRYPOINT = "python -m components.common.ray_driver"
_DIGEST, _RUN, _FAILED = "phasetune-digest", "phasetune-run", "phasetune-failed"
"""What a job says of itself: which result of which store it makes, the run that started it, and how many attempts of
that run had failed before. A job may work for days: their ends do not tell which of them belong together."""
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_LAST_LINES, _LONGEST = 200, 20_000
"""Lines of the log that are kept, and characters of each."""
_PAUSE, _BETWEEN = 0.5, 5.0
"""Seconds between two looks at a job, and between two jobs."""
_MUTE = 300.0
"""Seconds for which a job counts as running though nobody answers for its log."""
_MOST_JOBS = 1000
"""Jobs of one name that are looked through; a cluster keeps those that ended for as long as it stands."""


def run_on_cluster(errand: Errand, spec: Spec) -> Done:
    """Have an errand run by the cluster's Jobs API, and wait for its end.

    Raises:
        UserError: What the driver said, or what must be mended before it can run.
        StepFailed: If it failed otherwise, after as many attempts as the spec allows.
        KeyboardInterrupt: On a Ctrl-C; the job is stopped where no other run waits for it.
        SystemExit: On a SIGTERM. In a pod the job goes on, except where the run itself is being ended; see `leaving`.
    """
    with stoppable():
        return _until_done(errand, spec)


def _until_done(errand: Errand, spec: Spec) -> Done:
    cluster, store = Cluster(spec.compute.ray), Store(spec.store)
    # Another run's job may have made it since we looked in the store.
    made = partial(_is_made, store, errand)
    began, limit = time.time(), spec.compute.kubernetes.attempts
    failed, said = lost_before(store.objects, errand)
    for attempt in range(1, _MOST_JOBS if failed < limit else 1):
        job = _Job(cluster, store.objects, errand, spec, errand_name(errand, attempt), failed)
        with job.left_in_order():
            if job.find_or_start(made):
                job.wait()
            elif made():
                return Done(ours=False, waited=0.0)
            elif not job.is_retried:
                continue
        if job.status == "SUCCEEDED":
            return Done(job.ours, max(0.0, job.running_since - began))
        failed, said = max(failed, job.failed + 1), f"the job {job.name} ended as {job.status}: {job.reason}"
        if job.status == "LOST":
            note_lost(store.objects, errand, failed, said)
        if failed >= limit:
            break
        if run_is_ending(errand.run):
            said += "; the run is being ended"
            break
        told = f"{errand.step}: {said}; another one goes on from the last checkpoint"
        print(told, flush=True)  # in a pod nobody reads events
        say(warning=told)
        time.sleep(0.0 if job.is_retried else _BETWEEN)
    raise StepFailed(f"{errand.step} in the Ray cluster at {cluster.address}: {said or 'too many jobs of one name'}")


def _is_made(store: Store, errand: Errand) -> bool:
    return store.find(errand.kind, errand.key) is not None


def addresses_of(spec: Spec) -> list[str]:
    """The Ray clusters that a spec sends jobs to, by their Jobs APIs."""
    return [place for place in spec.compute.places if place.startswith("http")]


def cancel_on_cluster(spec: Spec, run: str) -> list[str]:
    """Stop the jobs that a run waits for and no other run does, in whichever of the spec's clusters they are.

    A job that may go on, as a cluster does not answer, stays noted as the run's, so that the next call finds it.

    Returns:
        The jobs' names.

    Raises:
        UserError: If the store or a cluster does not answer, when every cluster that does has stopped its jobs.
    """
    clusters, objects = [Cluster(address) for address in addresses_of(spec)], open_objects(spec.store)
    stopped: list[str] = []
    away: dict[str, UserError] = {}
    for name in jobs_of(objects, run):
        if not leave(objects, name, run):
            continue
        done = False
        try:
            for cluster in clusters:
                if cluster.address not in away:
                    try:
                        cluster.stop(name)
                    except UserError as error:
                        away[cluster.address] = error
            done = not away
        finally:
            if not done:
                note(objects, name, run)
        stopped += [name] if done else []
    if away:
        raise next(iter(away.values()))
    return stopped


def digest_of(errand: Errand, spec: Spec) -> str:
    """What two jobs that make the same thing have in common: not who asks."""
    return digest([errand.kind, errand.key, open_objects(spec.store).place])


class _Job:
    """One job, from its start or from where it is found to its end.

    Attributes:
        name: Of the job.
        ours: Whether the run that asks started it.
        status: How it ended: SUCCEEDED, FAILED, STOPPED, or LOST where the cluster forgot it.
        reason: What is known of why.
        running_since: Unix time from which its driver ran.
        failed: How many attempts of the run that asks had failed before it.
        is_retried: Whether it had failed before we came, for this very run, and it is Kubeflow who tries again.
    """

    def __init__(
        self, cluster: Cluster, objects: Objects, errand: Errand, spec: Spec, name: str, failed: int = 0
    ) -> None:
        self._cluster, self._objects, self._errand, self._spec = cluster, objects, errand, spec
        self._read, self._whole = 0, False
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self._details: Any | None = None
        self.name, self.failed = name, failed
        self.ours = False
        self.status, self.reason = "", ""
        self.running_since = float("inf")
        self.is_retried = False

    def find_or_start(self, made: Callable[[], bool]) -> bool:
        """Find the job under way, or start it where there is none of its name.

        Args:
            made: Whether the result is there by now; nothing is started then.

        Returns:
            Whether there is anything to wait for: the job may have ended before we came, and be that of another store.

        Raises:
            UserError: What the driver of a job that Kubeflow tries again has said.
        """
        found = self._cluster.look(self.name)
        if found is None:
            if made():
                return False
            self._submit()
            found = self._cluster.look(self.name)
            if found is None:  # the cluster was restarted at this very moment
                return True
        elif found.status.value in _ENDED:
            self._learn_again(found)
            return False
        self._details, self.ours = found, _about(found, _RUN) == self._errand.run
        if self.ours:
            self.failed = max(self.failed, _failed_before(found))
        return self._makes_ours(found)

    def _makes_ours(self, found: Any) -> bool:
        return _about(found, _DIGEST) == digest_of(self._errand, self._spec)

    def _learn_again(self, found: Any) -> None:
        """Take in how a job ended that an earlier pod of this step waited for; one that was stopped did not fail."""
        ended = None if found.end_time is None else found.end_time / 1000
        if found.status.value == "FAILED" and _about(found, _RUN) == self._errand.run and self._makes_ours(found):
            self.is_retried = is_retried(ended)
        if not self.is_retried:
            return
        self.status, self.reason, self.failed = "FAILED", str(found.message or ""), _failed_before(found)
        try:
            self._learn()
        except UserError as error:
            delete = f"ray job delete {self.name} --address {self._cluster.address}"
            raise type(error)(
                f"{error.message} (said by the job {self.name})", f"{error.remedy}; to try again at once: {delete}"
            ) from error

    def _submit(self) -> None:
        variables = {
            **self._spec.compute.kubernetes.environment,
            ERRAND: self._errand.encoded(),
            "RAY_JOB_STOP_WAIT_TIME_S": str(int(STOPPING)),  # a phase saves its state first; Ray gives it 3 s
        }
        about = {_DIGEST: digest_of(self._errand, self._spec), _RUN: self._errand.run, _FAILED: str(self.failed)}
        try:
            self._cluster.submit(self.name, ENTRYPOINT, variables, about)
        except Refused as error:
            raise UserError(
                f"the Ray cluster at {self._cluster.address} does not take the job {self.name}: "
                + str(error).strip().splitlines()[-1][:300],
                "its Ray must have the version of ours, and its image must hold phasetune",
            ) from error
        print(f"{self._errand.step}: the job {self.name} in the Ray cluster at {self._cluster.address}", flush=True)

    def wait(self) -> None:
        """Wait for the job's end.

        Raises:
            UserError: What the driver said.
        """
        run = self._errand.run
        with noted(self._objects, self.name, run):
            self._follow()
        with suppress(UserError):  # the store is away: soon our last sign of life is too old to count
            leave(self._objects, self.name, run)
        if self.status != "SUCCEEDED":
            self._learn()

    def _learn(self) -> None:
        """Shorten the reason to its last line; raises what the driver said that the user can mend."""
        told = failure_in("\n".join(self._last)) or failure_in(self.reason)
        self.reason = (self.reason.strip().splitlines() or ["nothing is known of why"])[-1][:500]
        if told is not None and not isinstance(told, LeaseLost):  # of a lost lease another attempt knows better
            raise told

    def _follow(self) -> None:
        """Read the log to its end, and through every break of the connection."""
        mute_since: float | None = None
        while self._details is not None:
            status = str(self._details.status.value)
            if status != "PENDING":
                self.running_since = min(self.running_since, time.time())
            if status != "PENDING" and not self._whole:
                mute_since = None if self._read_log() else mute_since or time.monotonic()
            if status in _ENDED:
                self.status, self.reason = status, str(self._details.message or "")
                return
            if mute_since is not None and time.monotonic() - mute_since > _MUTE:
                self.status, self.reason = "LOST", "nobody on the cluster's head answers for it"
                return
            time.sleep(_PAUSE)
            self._details = self._cluster.look(self.name)
        self.status, self.reason = "LOST", "the cluster does not know it any more: its head was restarted"

    def _read_log(self) -> bool:
        """Print what is new in the log; returns whether it could be reached."""
        before = self._read
        try:
            for line, place in self._cluster.lines(self.name, self._read):
                if line is None:
                    details = self._cluster.look(self.name)
                    if details is None or details.status.value in _ENDED:
                        return True
                    continue
                self._read = place
                self._last.append(line[:_LONGEST])
                event = heard(line)
                if event is not None:
                    say(**event)
                print(f"[{self.name}] {line}", flush=True)
        except Broken:
            return self._read > before
        self._whole = True  # only of a job that has ended does a log end
        return True

    @contextmanager
    def left_in_order(self) -> Iterator[None]:
        """Stop the job on the way out where nobody waits for it any more; see `leaving`."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit) as stop:
            self._cluster.hurry(HURRY)
            if nobody_comes_again(stop, self._errand.run):
                self._give_up(STOPPING if isinstance(stop, KeyboardInterrupt) else 0.0)
            else:
                print(f"{self._errand.step}: told to leave; the job {self.name} goes on", flush=True)
            raise

    def _give_up(self, seconds: float) -> None:
        """Stop waiting; the last one stops the job.

        Args:
            seconds: For which its end is waited for, which comes when it has saved its state. A pod has no time to.
        """
        with suppress(UserError):
            last = leave(self._objects.patient(HURRY), self.name, self._errand.run)
            found = self._cluster.look(self.name)
            if not last or found is None or found.status.value in _ENDED or not self._makes_ours(found):
                return
            self._cluster.stop(self.name)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                details = self._cluster.look(self.name)
                if details is None or str(details.status.value) in _ENDED:
                    return
                time.sleep(0.2)


def _about(found: Any, what: str) -> str | None:
    """What a job says of itself."""
    return dict(found.metadata or {}).get(what)


def _failed_before(found: Any) -> int:
    """How many attempts of the run that started a job had failed before."""
    return int(_about(found, _FAILED) or 0)
