"""Kubeflow Pipelines' API as our commands use it: who asks, pages, servers that are away for a while, errors in words.

The client is Kubeflow's own (`kfp_server_api`), imported where it is used. A creation whose answer was lost is looked
for before it is asked for again, so that a cut connection never makes two of anything.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from components.common.errors import UserError

TOKEN, COOKIE, ENDPOINT, UI = "KFP_TOKEN", "KFP_COOKIE", "KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT"
POD_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")
"""Where Kubeflow puts a token into the pods of a user's namespace."""
PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds between the attempts of a request that the server did not answer."""
LONGEST_PAUSE = 60.0
TIMEOUT = (10, 60)
"""Seconds within which the server must be reached, and must answer."""
PAGE = 100
_TOKEN_REMEDY = (
    f"give a token with `--token-file` or {TOKEN}, or a session's cookie in {COOKIE}; "
    "`kubectl create token` makes one for a service account"
)


def client() -> Any:
    """Kubeflow's own client: its models and calls."""
    import kfp_server_api  # type: ignore[import-untyped]  # it ships no types

    return kfp_server_api


@dataclass
class Kubeflow:
    """A server of Kubeflow Pipelines.

    Attributes:
        host: Its address.
        namespace: Of the users' objects; None where the installation has but one user.
        apis: The generated client's parts, by name.
        pause: Sleeps; another in tests.
    """

    host: str
    namespace: str | None
    apis: dict[str, Any]
    pause: Callable[[float], None] = time.sleep

    def url(self, run: str) -> str:
        """The page of a run."""
        return f"{os.environ.get(UI, self.host).rstrip('/')}/#/runs/details/{run}"

    def ask(self, api: str, call: str, *arguments: Any, missing: str = "", **options: Any) -> Any:
        """Call something that may be called twice without harm.

        Args:
            api: The part of the API.
            call: Its function.
            arguments: Of the function.
            missing: What to say where there is no such object.
            options: Of the function.

        Raises:
            UserError: If the server refuses, or does not answer for some time.
        """
        for pause in (*PAUSES, None):
            try:
                return self._once(api, call, *arguments, missing=missing, **options)
            except Away:
                if pause is None:
                    raise
                self.pause(pause)
        raise AssertionError("the last attempt ends in an answer or an error")

    def create(self, api: str, call: str, body: Any, there: Callable[[], Any | None], **options: Any) -> Any:
        """Create an object once: where the answer was lost or another was faster, it is looked for.

        Args:
            api: The part of the API.
            call: Its function.
            body: What to create.
            there: Finds the object if it is there.
            options: Of the function.

        Raises:
            UserError: As `ask`.
        """
        for pause in (*PAUSES, None):
            try:
                return self._once(api, call, body, **options)
            except (Away, Taken) as error:
                if isinstance(error, Away) and pause is not None:
                    self.pause(pause)
                found = there()
                if found is not None:
                    return found
                if isinstance(error, Taken) or pause is None:
                    raise
        raise AssertionError("the last attempt ends in an answer or an error")

    def every(self, api: str, call: str, field: str, *arguments: Any, **options: Any) -> Iterator[Any]:
        """Every object of a listing, page by page."""
        token = ""
        while True:
            page = self.ask(api, call, *arguments, page_token=token, page_size=PAGE, **options)
            yield from getattr(page, field) or []
            token = page.next_page_token or ""
            if not token:
                return

    def _once(self, api: str, call: str, *arguments: Any, missing: str = "", **options: Any) -> Any:
        from urllib3.exceptions import HTTPError

        try:
            answer = getattr(self.apis[api], call)(*arguments, _request_timeout=TIMEOUT, **options)
        except client().ApiException as error:
            raise _in_words(error, self, missing) from error
        except HTTPError as error:
            reason = getattr(error, "reason", None) or error
            raise Away(f"Kubeflow does not answer at {self.host}: {reason}", _AWAY_REMEDY) from error
        return answer

    def multi_user(self) -> bool:
        """Whether the installation has several users, each with a namespace.

        Raises:
            UserError: If what answers is no Kubeflow.
        """
        # The client would take a page to log in for an empty answer.
        answer = self.ask("health", "healthz_service_get_healthz", _preload_content=False)
        try:
            return bool(json.loads(answer.data).get("multi_user"))
        except (ValueError, AttributeError) as error:
            raise UserError(f"{self.host} answers, but not as Kubeflow's API does", _ELSEWHERE_REMEDY) from error


class Away(UserError):
    """The server does not answer, or says that it cannot now."""


class Taken(UserError):
    """Such an object is there already."""


class Absent(UserError):
    """There is no such object."""


_AWAY_REMEDY = "see that the address is that of Kubeflow Pipelines, and that this machine can reach it"
_ABSENT_REMEDY = "Kubeflow's page lists what there is; `phasetune submit` prints the id of its run"
_ELSEWHERE_REMEDY = f"give the address of the API, such as https://HOST/pipeline, and log in: {_TOKEN_REMEDY}"


def _in_words(error: Any, kubeflow: Kubeflow, missing: str) -> UserError:
    """A refusal of the API as the user can mend it."""
    status, said = error.status or 0, _said(error)
    if status == 401:
        return UserError(f"Kubeflow at {kubeflow.host} does not know who asks: {said}", _TOKEN_REMEDY)
    if status == 403:
        where = f" in the namespace {kubeflow.namespace}" if kubeflow.namespace else ""
        return UserError(f"Kubeflow at {kubeflow.host} does not allow it{where}: {said}", "check --namespace and token")
    if status == 404:
        return Absent(missing or f"Kubeflow at {kubeflow.host} has no such thing: {said}", _ABSENT_REMEDY)
    if status == 409:
        return Taken(f"Kubeflow at {kubeflow.host} has one already: {said}", "choose another name")
    if status == 429 or status >= 500:
        return Away(f"Kubeflow at {kubeflow.host} cannot answer now ({status}): {said}", "try again in a while")
    if status == 0:
        return UserError(f"no secure connection to {kubeflow.host}: {said}", "give its authority with `--ca-file`")
    return UserError(f"Kubeflow at {kubeflow.host} refuses ({status}): {said}", "mend what it names")


def _said(error: Any) -> str:
    """What the server says is wrong, one line."""
    text = error.body if error.body is not None else error.reason
    text = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    try:
        values = json.loads(text)
        text = str(values.get("message") or values.get("error") or text)
    except (ValueError, AttributeError):
        pass
    return (text.splitlines() or [""])[0][:400] or str(error.reason)


def connect(host: str | None, namespace: str | None, token_file: Path | None, ca_file: Path | None) -> Kubeflow:
    """The server, seen to answer.

    Args:
        host: Its address; `KF_PIPELINES_ENDPOINT` where absent.
        namespace: The user's, where the installation has several users.
        token_file: Holds a token, which is read anew for every request; where absent KFP_TOKEN, or the token that
            Kubeflow puts into pods.
        ca_file: The certificates that vouch for the server, where the usual ones do not.

    Raises:
        UserError: If there is no such server, it does not let us in, or it needs a namespace; or what is given is no
            address, or no file of certificates.
    """
    host = host or os.environ.get(ENDPOINT, "")
    _check_address(host)
    if ca_file is not None:
        _check_authorities(ca_file)
    kfp_server_api = client()
    configuration = kfp_server_api.Configuration(host=host.rstrip("/"))
    if ca_file is not None:
        configuration.ssl_ca_cert = str(ca_file)
    _log_in(configuration, token_file)
    speaker = kfp_server_api.ApiClient(configuration, cookie=os.environ.get(COOKIE))
    parts = {
        "runs": kfp_server_api.RunServiceApi,
        "schedules": kfp_server_api.RecurringRunServiceApi,
        "pipelines": kfp_server_api.PipelineServiceApi,
        "uploads": kfp_server_api.PipelineUploadServiceApi,
        "experiments": kfp_server_api.ExperimentServiceApi,
        "health": kfp_server_api.HealthzServiceApi,
    }
    kubeflow = Kubeflow(configuration.host, namespace, {name: part(speaker) for name, part in parts.items()})
    several = kubeflow.multi_user()
    if several and not namespace:
        raise UserError(f"the Kubeflow at {host} has several users", "give yours with `--namespace NAME`")
    if not several:
        kubeflow.namespace = None  # it refuses any
    return kubeflow


def _check_address(host: str) -> None:
    """See that it is an address: the client would try for long what can never answer.

    Raises:
        UserError: If it is none.
    """
    if not host:
        raise UserError("which Kubeflow is meant is not said", f"give its address with `--host URL` or {ENDPOINT}")
    if "@" in host:  # it would stand in every message
        raise UserError("the address of Kubeflow holds a user or a password", _TOKEN_REMEDY)
    if "://" not in host:
        raise UserError(f"{host!r} is no address", f"write it in full: --host https://{host}")
    try:
        parts = urlsplit(host)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a port that is no number, and of brackets
        whole = False
    if not whole or re.search(r"[\s\x00-\x1f\x7f]", host):  # urlsplit drops some of these
        raise UserError(f"{host!r} is no address", "write it in full: --host https://HOST/pipeline")


def _check_authorities(file: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except OSError as error:  # also what ssl says of a file that holds no certificate
        reason = error.strerror or error
        raise UserError(f"the certificates {file} cannot be read: {reason}", "check `--ca-file`") from error


def _log_in(configuration: Any, token_file: Path | None) -> None:
    """Say who asks: by a file, a variable, or what a pod has."""
    file = token_file or (POD_TOKEN if TOKEN not in os.environ and POD_TOKEN.is_file() else None)
    token = os.environ.get(TOKEN, "")

    def read(told: Any) -> None:
        if file is not None:
            try:
                told.api_key["authorization"] = file.read_text(encoding="utf-8").strip()
            except OSError as error:
                raise UserError(f"the token file {file} cannot be read: {error}", "check `--token-file`") from error

    if file is not None or token:
        configuration.api_key["authorization"] = token
        configuration.api_key_prefix["authorization"] = "Bearer"
        configuration.refresh_api_key_hook = read


def equals(key: str, value: str) -> str:
    """A filter of listings: one field has this value."""
    return json.dumps({"predicates": [{"operation": 1, "key": key, "stringValue": value}]})
