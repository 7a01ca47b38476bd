"""Ray's Jobs API: a client that waits for a cluster that is away, and says what is wrong where it refuses.

Ray's own client, told three things that it does not know by itself: how long to wait for an answer, that the address
is the spec's whatever RAY_ADDRESS says, and the token of the cluster (RAY_AUTH_TOKEN, or a file RAY_AUTH_TOKEN_PATH).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from components.common.errors import UserError
from components.common.objects import seconds_of
from components.common.progress import say

T = TypeVar("T")
PATIENCE = "PHASETUNE_RAY_PATIENCE"
"""The variable that sets for how many seconds a cluster that does not answer is waited for; 1800 where absent."""
_ANSWER = 30.0
"""Seconds after which a request without an answer counts as failed."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
_QUIET = 10.0
"""Seconds of trouble after which the user is told."""
_LONGEST_LINE = 1 << 16
"""Characters of a line that are kept: progress bars write one for hours, and never end it."""
_SILENCE = 60.0
"""Seconds without a line of the log after which the job is asked after: the connection may be dead."""


class Unknown(Exception):
    """The cluster knows no such job: it never did, or it was restarted."""


class Refused(Exception):
    """The cluster does not do what it was asked to; carries what it said."""


def token() -> str | None:
    """The token of the cluster, from the environment."""
    given = os.environ.get("RAY_AUTH_TOKEN")
    file = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if given is None and file and Path(file).is_file():
        given = Path(file).read_text(encoding="utf-8")
    return (given or "").strip() or None


class Broken(Exception):
    """The connection over which a log came broke."""


class Cluster:
    """A Ray cluster, by its Jobs API.

    Args:
        address: `http(s)://HOST:PORT`.
        first_patience: Seconds for which the first answer is waited for: an address that is wrong never answers.
    """

    def __init__(self, address: str, first_patience: float = 60.0) -> None:
        self.address = address.rstrip("/")
        self._patience = seconds_of(PATIENCE, 1800.0)
        self._first = min(first_patience, self._patience)
        self._answered = False
        self._client = _client(self.address)

    def hurry(self, seconds: float) -> None:
        """Wait no longer than this for any answer from now on."""
        self._patience = self._first = seconds

    def look(self, name: str) -> Any | None:
        """A job's details (`JobDetails` of Ray), or None where the cluster knows no such job."""
        try:
            return self._ask(lambda: self._client.get_job_info(name))
        except Unknown:
            return None

    def submit(self, name: str, entrypoint: str, environment: dict[str, str], metadata: dict[str, str]) -> bool:
        """Start a job; returns False where one of that name was there already.

        Raises:
            Refused: If the cluster does not take it.
        """
        try:
            self._ask(
                lambda: self._client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=name,
                    runtime_env={"env_vars": environment},
                    metadata=metadata,
                )
            )
        except Refused:
            # Also where an answer was lost on its way: the repeated request meets the job of the first one.
            if self.look(name) is None:
                raise
            return False
        return True

    def stop(self, name: str) -> None:
        """Ask a job to end."""
        try:
            self._ask(lambda: self._client.stop_job(name))
        except (Unknown, Refused):  # it has ended, or the cluster lost it
            return

    def lines(self, name: str, skip: int) -> Iterator[tuple[str | None, int]]:
        """Follow a job's log to its end.

        Args:
            name: Of the job.
            skip: Characters that were read before.

        Yields:
            Lines without their end, and the characters read up to there; one that is too long comes in pieces. None
            instead of a line now and then while the log is silent.

        Raises:
            Broken: If the connection breaks.
        """
        rest, place = "", 0
        for chunk in self._chunks(name):
            if chunk is None:
                yield None, skip
                continue
            rest += chunk[max(0, skip - place) :] if place < skip else chunk
            place += len(chunk)
            *whole, rest = rest.split("\n")
            for line in whole:
                skip += len(line) + 1
                yield line, skip
            if len(rest) > _LONGEST_LINE:
                skip += len(rest)
                yield rest, skip
                rest = ""
        if rest:
            yield rest, skip + len(rest)

    def _chunks(self, name: str) -> Iterator[str | None]:
        """Pieces of a job's log from its beginning; None for every minute of silence."""
        loop = asyncio.new_event_loop()
        pieces = self._client.tail_job_logs(name)
        waits: asyncio.Future[str] | None = None
        try:
            while True:
                waits = waits or asyncio.ensure_future(anext(pieces), loop=loop)
                loop.run_until_complete(asyncio.wait([waits], timeout=_SILENCE))
                if not waits.done():
                    yield None
                    continue
                done, waits = waits, None
                try:
                    piece = done.result()
                except StopAsyncIteration:
                    return
                except (OSError, RuntimeError, _aiohttp_error()) as error:
                    raise Broken(str(error)) from error
                yield piece
        finally:
            if waits is not None:
                waits.cancel()
                loop.run_until_complete(asyncio.wait([waits]))
            loop.run_until_complete(pieces.aclose())
            loop.close()

    def _ask(self, request: Callable[[], T]) -> T:
        """Make a request, again and again while nobody answers it."""
        began, attempt = time.monotonic(), 0
        while True:
            try:
                answer = request()
                self._answered = True
                return answer
            except Exception as error:
                reason = self._passing(error)
            patience = self._patience if self._answered else self._first
            away = time.monotonic() - began
            if away > patience:
                raise UserError(
                    f"the Ray cluster at {self.address} has not answered for {away:.0f} s: {reason}",
                    "check `compute.ray`, the network, and whether the cluster runs; then run the same command again: "
                    f"a job that is under way is found again ({PATIENCE} sets how long it is tried)",
                )
            if away > _QUIET:
                say(warning=f"the Ray cluster at {self.address} does not answer; trying again")
            time.sleep(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(attempt, 8)))
            attempt += 1

    def _passing(self, error: Exception) -> str:
        """What an error says that may pass; any other is raised in words of ours."""
        import requests  # type: ignore[import-untyped]  # it carries no types
        from ray.exceptions import AuthenticationError

        said = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, AuthenticationError):
            raise UserError(
                f"the Ray cluster at {self.address} does not let us in: {said}",
                "set RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH, a file) to the cluster's token",
            ) from error
        if isinstance(error, requests.exceptions.SSLError):
            raise UserError(
                f"the certificate of the Ray cluster at {self.address} is not trusted: {said}",
                "set REQUESTS_CA_BUNDLE to the file of its authority",
            ) from error
        if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
            raise UserError(f"compute.ray: {self.address} is no address: {said}", "give http://HOST:8265") from error
        if isinstance(error, requests.exceptions.RequestException | ConnectionError | TimeoutError):
            return said
        if isinstance(error, RuntimeError):
            status = _status(str(error))
            if status == 404:
                raise Unknown(said) from error
            if status in (408, 429, 502, 503, 504) or _busy(str(error)):
                return said
            raise Refused(str(error)) from error
        raise error


def _aiohttp_error() -> type[Exception]:
    """What Ray's client raises for a connection that breaks, beside the system's errors."""
    import aiohttp

    return aiohttp.ClientError


def _status(said: str) -> int:
    """The HTTP status that Ray's client tells in its error; 0 where there is none."""
    _, _, rest = said.partition("status code ")
    number = rest[:3]
    return int(number) if number.isdecimal() else 0


def _busy(said: str) -> bool:
    """Whether the dashboard answers but the cluster behind it is not there yet, or is starting again."""
    return any(
        word in said for word in ("Failed to get head node agent", "Agent info not found", "RpcError", "UNAVAILABLE")
    )


def _client(address: str) -> Any:
    from ray.dashboard.modules.dashboard_sdk import SubmissionClient
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # it tells of every log's end

    class Client(JobSubmissionClient):  # type: ignore[misc]  # Ray carries no types
        """Asks nothing when it is made, and waits for no answer for ever."""

        def __init__(self) -> None:
            known = token()
            headers = {"Authorization": f"Bearer {known}"} if known else None
            # Not its own constructor, which takes RAY_ADDRESS for the address where it is set.
            SubmissionClient.__init__(self, address=address, headers=headers)

        def _do_request(self, *args: Any, **kwargs: Any) -> Any:
            return super()._do_request(*args, **{"timeout": _ANSWER, **kwargs})

    return Client()
