"""What the Kubernetes API answers when it does not do what it was asked to: what may pass, and what must be mended."""

from __future__ import annotations

import json

from components.common.errors import UserError

_PASSING = (408, 425, 429)


class Expired(Exception):
    """The server does not know the version any more from which it is asked to tell changes."""


def status_of(error: Exception) -> int:
    """The HTTP status of an error; 0 where there was no answer."""
    from kubernetes.client.exceptions import ApiException  # type: ignore[import-untyped]  # it carries no types

    return int(error.status or 0) if isinstance(error, ApiException) else 0


def passes(error: Exception) -> bool:
    """Whether an error may be gone when the request is repeated."""
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    if isinstance(error, ApiException):
        status = status_of(error)
        if status == 0:
            return "CERTIFICATE_VERIFY_FAILED" not in str(error)
        return status in _PASSING or (status >= 500 and status != 501)  # 501: the server will never know how
    # The last: an answer that was cut.
    return isinstance(error, HTTPError | ConnectionError | TimeoutError | json.JSONDecodeError)


def said(error: Exception) -> str:
    """What the server said, in one line."""
    try:
        told = json.loads(error.body)["message"]  # type: ignore[attr-defined]  # of the client's error
    except (AttributeError, ValueError, KeyError, TypeError):
        told = str(error)
    return (str(told).strip().splitlines() or [type(error).__name__])[0][:500]


def refused(what: str, namespace: str, error: Exception, away: float) -> UserError | None:
    """A failure in words for the user; None where it is not theirs to mend.

    Args:
        what: Was asked, as `list pods`.
        namespace: In which.
        error: How it failed.
        away: Seconds for which it was tried.
    """
    status = status_of(error)
    if status in (401, 403):
        return UserError(
            f"the Kubernetes API refuses to {what} in the namespace {namespace}: {said(error)}",
            "give the service account its role (k8s/base/access), or your own account one like it",
        )
    if status == 404:
        return UserError(
            f"the Kubernetes API cannot {what} in the namespace {namespace}: {said(error)}",
            "install KubeRay, and apply k8s/ to the cluster: the namespace or the kind RayJob is not there",
        )
    if status in (400, 413, 422):
        return UserError(
            f"the Kubernetes API does not accept to {what}: {said(error)}",
            "see `compute.kubernetes` and the versions in k8s/versions.yaml",
        )
    if passes(error):
        return UserError(
            f"the Kubernetes API has not answered for {away:.0f} s, asked to {what}: {said(error)}",
            "check the kubeconfig and the network, and run the same command again: a RayJob that is there is found",
        )
    return None
