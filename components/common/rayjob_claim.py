"""Who waits for a RayJob. The last one who stops waiting deletes it.

A run of a pipeline is named in the RayJob's `ownerReferences` by its Workflow, never by a pod: pods are evicted and
retried, and the RayJob outlives them. When every Workflow that is named there is gone, Kubernetes deletes the RayJob by
itself. A run on a laptop has no Workflow and leaves an annotation of its own.

Beside its claim a run leaves how many of its attempts had failed before: an attempt may work for days, so a pod that is
retried cannot tell from their ends which of them belong together.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from components.common.digests import digest
from components.common.kubernetes_api import Cluster
from components.common.launcher import StepFailed
from components.common.rayjob_pods import COMPONENT, PART_OF
from components.common.rayjob_state import ENDED, state_of

Object = dict[str, Any]
WORKFLOW, WORKFLOW_UID, KFP_RUN = "PHASETUNE_WORKFLOW", "PHASETUNE_WORKFLOW_UID", "KFP_RUN_ID"
"""Variables of a pipeline's pods: its Workflow's name and uid, and the id of the run."""
RUN_LABEL = "pipeline/runid"
"""The label by which KFP names the run of a Workflow."""
_WAITS = "waits.phasetune/"
"""What annotations of runs without a Workflow begin with."""
_FAILED = "failed.phasetune/"
"""What annotations begin with that say how many attempts of a run had failed before."""
_OVER = frozenset({"Succeeded", "Failed", "Error"})
"""Phases of a Workflow that has ended."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a run leaves at a RayJob that it waits for.

    Attributes:
        run: Its id.
        workflow: The name of its Workflow; empty on a laptop.
        uid: The Workflow's.
    """

    run: str
    workflow: str = ""
    uid: str = ""

    @property
    def annotation(self) -> str:
        """The name of the annotation of a run without a Workflow."""
        return _WAITS + digest(self.run)

    @property
    def _failures(self) -> str:
        """The name of the annotation that counts the run's failed attempts."""
        return _FAILED + digest(self.uid or self.run)

    def failed_before(self, job: Object) -> int:
        """How many attempts of the run had failed when it came to wait for a RayJob."""
        return int((job["metadata"].get("annotations") or {}).get(self._failures, 0))

    @property
    def owner(self) -> Object:
        """The entry of a run with a Workflow in `ownerReferences`; it keeps nobody from deleting the Workflow."""
        return {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "name": self.workflow,
            "uid": self.uid,
            "blockOwnerDeletion": False,
        }

    def stands_in(self, job: Object) -> bool:
        """Whether a RayJob has it."""
        about = job["metadata"]
        if self.uid:
            return any(owner["uid"] == self.uid for owner in about.get("ownerReferences") or [])
        return self.annotation in (about.get("annotations") or {})

    def put_into(self, about: Object, failed: int = 0) -> None:
        """Add it to the metadata of a RayJob that is to be made, when so many attempts of the run have failed."""
        if failed:
            about.setdefault("annotations", {})[self._failures] = str(failed)
        if self.uid:
            about.setdefault("ownerReferences", []).append(self.owner)
        else:
            about.setdefault("annotations", {})[self.annotation] = self.run

    def change(self, job: Object, stands: bool, failed: int = 0) -> Object:
        """The patch that adds it to a RayJob, or takes it away; refused by the API where the RayJob has changed."""
        about: Object = {"resourceVersion": job["metadata"]["resourceVersion"], "annotations": {}}
        if stands and failed:
            about["annotations"][self._failures] = str(failed)
        if self.uid:
            others = [one for one in job["metadata"].get("ownerReferences") or [] if one["uid"] != self.uid]
            about["ownerReferences"] = [*others, self.owner] if stands else others
        else:
            about["annotations"][self.annotation] = self.run if stands else None
        return {"metadata": about}


def find_claim(cluster: Cluster, run: str) -> Claim:
    """What this process's run leaves at RayJobs: its Workflow where it is a pipeline's, else its own id.

    Args:
        cluster: The cluster.
        run: The run's id.

    Raises:
        StepFailed: If its Workflow is gone: nobody would look after a RayJob without it, and nobody waits for one.
    """
    name, uid, kfp = (os.environ.get(variable, "") for variable in (WORKFLOW, WORKFLOW_UID, KFP_RUN))
    if name and uid:
        return Claim(run, name, uid)
    if name:
        found = cluster.workflow(name)
        if found is None:
            raise StepFailed(f"the run is being ended: its Workflow {name} is gone")
        return Claim(run, name, found["metadata"]["uid"])
    return of_pipeline(cluster, run, kfp) or Claim(run)


def of_pipeline(cluster: Cluster, run: str, kfp: str) -> Claim | None:
    """The claim of a run of KFP; None where no Workflow of it is there.

    Args:
        cluster: The cluster.
        run: The run's id, ours.
        kfp: KFP's id of it.
    """
    for workflow in cluster.workflows(f"{RUN_LABEL}={kfp}") if kfp else []:
        return Claim(run, workflow["metadata"]["name"], workflow["metadata"]["uid"])
    return None


def is_ending(cluster: Cluster, claim: Claim) -> bool:
    """Whether the Workflow of a claim is being ended, has ended or is gone, so that nobody waits; False on a laptop."""
    if not claim.uid:
        return False
    workflow = cluster.workflow(claim.workflow)
    if workflow is None or workflow["metadata"]["uid"] != claim.uid or workflow["metadata"].get("deletionTimestamp"):
        return True
    spec, status = workflow.get("spec") or {}, workflow.get("status") or {}
    if status.get("finishedAt") or status.get("phase") in _OVER:
        return True
    return bool(spec.get("shutdown")) or spec.get("activeDeadlineSeconds") == 0  # the latter is how KFP ends a run


def take(cluster: Cluster, job: Object, claim: Claim, failed: int = 0) -> Object | None:
    """Add a claim to a RayJob; returns it as it is then, None where it is gone.

    Args:
        cluster: The cluster.
        job: The RayJob.
        claim: The run's.
        failed: How many attempts of the run have failed.
    """
    name, uid, found = job["metadata"]["name"], job["metadata"]["uid"], job
    while not claim.stands_in(found):
        changed = cluster.patch(name, claim.change(found, True, failed))
        if changed is not None:
            return changed
        again = cluster.job(name)  # another run was quicker, or KubeRay wrote to it
        if again is None or again["metadata"]["uid"] != uid or again["metadata"].get("deletionTimestamp"):
            return None
        found = again
    return found


def release(cluster: Cluster, name: str, claim: Claim) -> bool:
    """Take a claim away from a RayJob; the last one that is taken away deletes it. Returns whether it did.

    Another run may come meanwhile: the RayJob is only deleted as it was when nobody waited for it.
    """
    while True:
        job = cluster.job(name)
        if job is None or job["metadata"].get("deletionTimestamp") or not claim.stands_in(job):
            return False
        if not _others(job, claim):
            if cluster.delete(job):
                return True
        elif cluster.patch(name, claim.change(job, stands=False)) is not None:
            return False


def cancel_run(cluster: Cluster, run: str, kfp: str = "", ended: bool = True) -> list[str]:
    """Take a run's claims away from all RayJobs: what no other run waits for is deleted.

    To be called when the run's steps have been told to end: a step that is still at work would make its RayJob again.

    Args:
        cluster: The cluster, in the namespace of the RayJobs.
        run: The run's id, ours; empty where it is not known.
        kfp: KFP's id of it; empty for a run on a laptop.
        ended: Whether also from those that have ended, which hold no machines and tell why.

    Returns:
        The names of the RayJobs that were deleted.

    Raises:
        UserError: If the cluster does not answer, or does not allow it.
    """
    pipeline = of_pipeline(cluster, run, kfp)
    claims = [*([Claim(run)] if run else []), *([] if pipeline is None else [pipeline])]
    [(part, name)] = PART_OF.items()
    deleted = []
    for job in cluster.jobs(f"{part}={name},{COMPONENT}=ray-job"):
        name = job["metadata"]["name"]
        if not ended and state_of(job) in ENDED:
            continue
        for claim in claims:
            if claim.stands_in(job) and release(cluster, name, claim):
                deleted.append(name)
    return deleted


def _others(job: Object, claim: Claim) -> bool:
    about = job["metadata"]
    owners = [owner for owner in about.get("ownerReferences") or [] if owner["uid"] != claim.uid]
    waits = [one for one in about.get("annotations") or {} if one.startswith(_WAITS) and one != claim.annotation]
    # A claim by a Workflow leaves no annotation, so one of the same run is another's: it waits on a laptop too.
    own = claim.uid and claim.annotation in (about.get("annotations") or {})
    return bool(owners or waits or own)
