"""An errand as a RayJob of KubeRay (`compute.ray: rayjob`): found or made, waited for, tried again.

Its name follows from the result, so that every run that wants it, and every retry of a step, meets the same one. The
step that waits holds no lease and no GPU; when its pod is evicted the RayJob goes on, and the next pod finds it.
"""

from __future__ import annotations

import contextlib
from datetime import datetime
from typing import Any

from components.common.errand import Done, Errand, failure_in
from components.common.errors import Damaged, LeaseLost, UserError
from components.common.kubernetes_api import Cluster, connect
from components.common.launcher import StepFailed
from components.common.leaving import HURRY, is_retried, lost_before, note_lost, stoppable
from components.common.progress import say
from components.common.rayjob_claim import find_claim, is_ending, release, take
from components.common.rayjob_log import LogFollower
from components.common.rayjob_object import ATTEMPT, DIGEST, RESULT, RUN, rayjob, result_of, selector_of, work_digest
from components.common.rayjob_state import ENDED, Ending, State, ending_of, state_of
from components.common.rayjob_wait import Waiting
from components.common.spec import Spec
from components.common.store import Store

Object = dict[str, Any]


def run_as_rayjob(errand: Errand, spec: Spec) -> Done:
    """Have an errand run as a RayJob, and wait for its end.

    Args:
        errand: What is asked.
        spec: The spec as the errand's stage reads it.

    Raises:
        UserError: What the driver said, or what must be mended before it can run.
        StepFailed: If it failed otherwise, after as many attempts as the spec allows.
        KeyboardInterrupt: On a Ctrl-C; the RayJob is deleted where no other run waits for it.
        SystemExit: On a SIGTERM; the RayJob goes on, except where this run itself is being ended.
    """
    return _Sending(connect(), errand, spec).run()


class _Sending:
    """One errand on its way, over all of its attempts."""

    def __init__(self, cluster: Cluster, errand: Errand, spec: Spec) -> None:
        self._cluster, self._errand, self._spec = cluster, errand, spec
        self._digest = work_digest(errand, spec)
        self._claim = find_claim(cluster, errand.run)
        self._learned: set[int] = set()
        """Attempts of this run whose end is known; those of other runs do not count."""
        self._failed, self._last = lost_before(Store(spec.store).objects, errand)
        """How many of them failed, those included that earlier pods of this step waited for; and the last one's end."""
        self._highest = 0

    def run(self) -> Done:
        try:
            with stoppable():
                return self._until_done()
        except (KeyboardInterrupt, SystemExit) as stop:
            self._leave(isinstance(stop, KeyboardInterrupt))
            raise

    def _until_done(self) -> Done:
        waited = 0.0
        while True:
            job = self._attach()
            ours = _made_by(job) == self._errand.run
            if state_of(job) is State.DONE:
                return Done(ours, waited)
            ending = self._wait(job)
            waited += ending.waited
            if ending.state is State.LOST:
                self._give_up(job)
            if self._result_is_there():  # however it ended: its last lines may have been cut, not its work
                self._tidy()
                return Done(ours, waited)
            self._learn(job, ending)

    def _attach(self) -> Object:
        """The RayJob to wait for, which names this run as one that waits; or one that has made the result meanwhile."""
        while True:
            under_way = []
            for job in self._jobs():
                number, state = int(job["metadata"]["labels"][ATTEMPT]), state_of(job)
                self._highest = max(self._highest, number)
                if state not in ENDED:
                    under_way.append(job)
                elif state is State.DONE and self._result_is_there():
                    return job
                elif state is not State.GONE and number not in self._learned and self._just_failed(job):
                    self._learn_again(job, ending_of(job["metadata"]["name"], state, job))
            found = self._taken(under_way[0]) if under_way else self._made()
            if found is not None:
                self._cluster.patience = float("inf")  # it has answered: what comes now passes
                return found

    def _just_failed(self, job: Object) -> bool:
        """Whether an earlier pod of this very step waited for an attempt that failed, and Kubeflow retries the step."""
        ended = (job.get("status") or {}).get("endTime")
        return is_retried(datetime.fromisoformat(ended).timestamp() if ended else None) and self._claim.stands_in(job)

    def _learn_again(self, job: Object, ending: Ending) -> None:
        """As `_learn`, of what an earlier pod of this step has learned."""
        try:
            self._learn(job, ending)
        except UserError as error:
            delete = f"kubectl -n {self._cluster.namespace} delete rayjob {ending.name}"
            raise type(error)(
                f"{error.message} (said by the RayJob {ending.name})", f"{error.remedy}; to try again at once: {delete}"
            ) from error

    def _jobs(self) -> list[Object]:
        """The RayJobs of the result, the first attempt first."""
        jobs = [
            job
            for job in self._cluster.jobs(selector_of(self._errand))
            if (job["metadata"].get("annotations") or {}).get(RESULT) == result_of(self._errand)
        ]
        return sorted(jobs, key=lambda job: int(job["metadata"]["labels"][ATTEMPT]))

    def _taken(self, job: Object) -> Object | None:
        self._compare(job)
        found = take(self._cluster, job, self._claim, self._failed)
        if found is not None:
            self._failed = max(self._failed, self._claim.failed_before(found))
            print(f"{self._errand.step}: waiting for the RayJob {found['metadata']['name']}", flush=True)
        return found

    def _made(self) -> Object | None:
        """The next attempt; None where another run was quicker."""
        self._see_limit()  # an earlier pod may have come to it
        body = rayjob(self._errand, self._spec, self._highest + 1)
        self._claim.put_into(body["metadata"], self._failed)
        name = body["metadata"]["name"]
        made = self._cluster.create(body)
        if made is not None:
            print(f"{self._errand.step}: made the RayJob {name} in {self._cluster.namespace}", flush=True)
            return made
        found = self._cluster.job(name)
        if found is not None:
            if found["metadata"].get("deletionTimestamp"):
                self._highest += 1
            else:
                self._compare(found)
        return None

    def _compare(self, job: Object) -> None:
        about = job["metadata"].get("annotations") or {}
        if about.get(DIGEST) != self._digest or about.get(RESULT) != result_of(self._errand):
            name = job["metadata"]["name"]
            raise UserError(
                f"the RayJob {name} makes {about.get(RESULT, 'something else')} in another way: its store or its image "
                f"are not those of {self._errand.step}",
                f"wait for its end, or delete it: kubectl -n {self._cluster.namespace} delete rayjob {name}",
            )

    def _wait(self, job: Object) -> Ending:
        patient = connect(self._cluster.namespace)
        patient.patience = float("inf")
        about = connect(self._cluster.namespace)  # a connection of its own, for a thread of its own
        about.patience = float("inf")
        log = LogFollower(about, job["metadata"]["name"])
        return Waiting(patient, job, self._errand.step, (self._errand.kind, self._errand.key), log).until_end()

    def _learn(self, job: Object, ending: Ending) -> None:
        """Note that an attempt failed; raises where no other attempt is to be made.

        Raises:
            UserError: What the driver or KubeRay says that the user can mend.
            StepFailed: If there were as many attempts as the spec allows, or the run is being ended.
        """
        if ending.state is State.DONE:
            ending = Ending(ending.name, State.FAILED, "ended well", "its result is not in the store")
        attempt = int(job["metadata"]["labels"][ATTEMPT])
        self._learned.add(attempt)
        self._highest = max(self._highest, attempt)
        self._failed, self._last = max(self._failed, self._claim.failed_before(job) + 1), str(ending)
        if ending.state is State.LOST:
            note_lost(Store(self._spec.store).objects, self._errand, self._failed, self._last)
        told = failure_in(ending.log) or failure_in(ending.message)
        if told is not None and not isinstance(told, LeaseLost):  # of a lost lease another attempt knows better
            raise told
        if ending.state is State.REFUSED:
            raise UserError(
                f"KubeRay does not take the RayJob {ending.name}: {ending.message}",
                "see k8s/versions.yaml for the version of KubeRay that it is written for",
            )
        if is_ending(self._cluster, self._claim):
            raise StepFailed(f"{ending}; the run is being ended")
        self._see_limit()
        say(warning=f"{self._errand.step}: {ending}; trying again")
        print(f"{self._errand.step}: {ending}; trying again", flush=True)

    def _see_limit(self) -> None:
        if self._failed >= self._spec.compute.kubernetes.attempts:
            raise StepFailed(f"{self._failed} RayJobs of {self._errand.step} failed; the last one, {self._last}")

    def _give_up(self, job: Object) -> None:
        """Delete an attempt whose head is gone, which nobody else would end before its deadline."""
        while True:
            found = self._cluster.job(job["metadata"]["name"])
            if found is None or found["metadata"]["uid"] != job["metadata"]["uid"] or self._cluster.delete(found):
                return

    def _result_is_there(self) -> bool:
        try:
            return Store(self._spec.store).find(self._errand.kind, self._errand.key) is not None
        except Damaged:  # the next attempt sets it aside
            return False

    def _tidy(self) -> None:
        """Leave nothing of a laptop's run behind; those of a pipeline's go with its Workflow."""
        if not self._claim.uid:
            for job in self._jobs():
                release(self._cluster, job["metadata"]["name"], self._claim)

    def _leave(self, interrupted: bool) -> None:
        """Stop waiting. A pod that is evicted comes again; a run that is being ended does not."""
        self._cluster.patience = HURRY
        with contextlib.suppress(UserError):
            if interrupted or not self._claim.uid or is_ending(self._cluster, self._claim):
                for job in self._jobs():
                    if self._claim.stands_in(job):
                        release(self._cluster, job["metadata"]["name"], self._claim)


def _made_by(job: Object) -> str:
    return str((job["metadata"].get("annotations") or {}).get(RUN, ""))
