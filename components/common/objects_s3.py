"""Objects in S3, or in a server that speaks its language: conditional writes, checksums, and patience.

Credentials, region and `AWS_ENDPOINT_URL` come from the environment as usual. Every request is repeated, with random
pauses, while the server answers 5xx, times out or cuts the connection, for up to `PHASETUNE_S3_PATIENCE` seconds.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import math
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

from components.common.errors import UserError
from components.common.objects import NEW, Listed, Missing, Objects, disk_errors, seconds_of
from components.common.progress import EVENTS, say

A = TypeVar("A")
T = TypeVar("T")

PATIENCE = "PHASETUNE_S3_PATIENCE"
"""The variable that sets for how many seconds a request is repeated; 300 where absent."""
TIMEOUT = "PHASETUNE_S3_TIMEOUT"
"""The variable that sets the seconds after which an unanswered request counts as failed; 60 where absent."""
PART = 16 * 2**20
"""Bytes of a part of a large object."""
_MOST_PARTS = 9000
_THREADS = 8
_FIRST_PAUSE = 0.1
"""Seconds of which the first pause is at most twice, and each later one twice the one before."""
_QUIET = 5.0
"""Seconds of trouble after which the user is told."""
_CONDITION = ("404", "NoSuchKey", "NotFound", "412", "PreconditionFailed", "416", "InvalidRange", "NoSuchUpload")
"""Answers that are no failure but an answer: there is no such object, or another version."""
_PASSING = ("SlowDown", "RequestTimeout", "ConditionalRequestConflict", "OperationAborted", "BadDigest", "429")
_lock = threading.Lock()


@functools.lru_cache(maxsize=8)
def _client(process: int, settings: tuple[str | None, ...]) -> Any:
    """One client for each process (a fork must not share connections) and each setting of the environment."""
    import boto3
    from botocore.config import Config

    seconds = seconds_of(TIMEOUT, 60.0)
    config = Config(
        connect_timeout=min(10.0, seconds),
        read_timeout=seconds,
        retries={"total_max_attempts": 1, "mode": "standard"},  # the repeating is ours
        max_pool_connections=2 * _THREADS,
        tcp_keepalive=True,
    )
    return boto3.session.Session().client("s3", config=config)


def _checksum(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def _code(error: Exception) -> str:
    response = getattr(error, "response", None) or {}  # errors of the connection have one too: None
    return str(response.get("Error", {}).get("Code", ""))


def _passes(error: Exception) -> bool:
    """Whether an error may be gone when the request is repeated."""
    from botocore import exceptions as said
    from botocore.parsers import ResponseParserError

    if isinstance(error, said.ClientError):
        status = int(error.response["ResponseMetadata"]["HTTPStatusCode"])
        return (status >= 500 and status != 501) or _code(error) in _PASSING  # 501: the server will never know how
    if isinstance(error, said.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return False
    way = (said.HTTPClientError, said.ConnectionError, said.IncompleteReadError, said.CredentialRetrievalError)
    return isinstance(error, (*way, ResponseParserError, ConnectionError, TimeoutError))


@functools.lru_cache(maxsize=64)
def _tell(warning: str) -> None:
    """Tell the user, once: through the run's driver, or in the terminal where a command asks by itself."""
    if EVENTS in os.environ:
        say(warning=warning)
    else:
        print(f"warning: {warning}", file=sys.stderr)


class S3Objects(Objects):
    """Objects below an S3 prefix.

    Args:
        place: `s3://bucket/prefix`.
        patience: Seconds for which a request is repeated; as the environment says where absent.

    Raises:
        UserError: If the place names no bucket.
    """

    def __init__(self, place: str, patience: float | None = None) -> None:
        self.bucket, _, prefix = place.removeprefix("s3://").partition("/")
        if not self.bucket:
            raise UserError(f"store: {place!r} names no bucket", "give s3://bucket/prefix")
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self.place = f"s3://{self.bucket}/{self._prefix}".rstrip("/")
        self._patience = seconds_of(PATIENCE, 300.0) if patience is None else patience
        self._stopped = threading.Event()

    def patient(self, seconds: float) -> S3Objects:
        """See `Objects`."""
        return S3Objects(self.place, min(seconds, self._patience))

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _ask(self, request: Callable[[Any], T]) -> T:
        """Make a request, again and again while it fails in a way that may pass."""
        from botocore.exceptions import BotoCoreError, ClientError

        names = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", TIMEOUT)
        failed, attempt = 0.0, 0
        while True:
            try:
                with _lock:  # making a client is not safe in threads, using it is
                    client = _client(os.getpid(), tuple(os.environ.get(name) for name in names))
                return request(client)
            except Exception as error:
                if _code(error) in _CONDITION:
                    raise
                passes = _passes(error)
                if not passes and not isinstance(error, ClientError | BotoCoreError):
                    raise
                now = time.monotonic()
                failed = failed or now
                if not passes or now - failed >= self._patience:
                    raise self._explained(error, passes) from error
                if now - failed > _QUIET:
                    _tell(f"S3 at {self.place} is in trouble; trying again for up to {self._patience:.0f} s")
            attempt += 1
            pause = random.uniform(0, min(10.0, _FIRST_PAUSE * 2 ** min(attempt, 10), max(0.1, self._patience / 4)))
            if self._stopped.wait(pause):
                raise UserError(f"S3 at {self.place}: stopped", "run the same command again")

    def _explained(self, error: Exception, passes: bool) -> UserError:
        said = f"{_code(error)} {error}".strip().splitlines()[0]
        if passes:
            return UserError(
                f"S3 at {self.place} did not answer for {self._patience:.0f} s: {said}",
                f"check AWS_ENDPOINT_URL and the network, then run the same command again; {PATIENCE} sets how long "
                "it is tried",
            )
        remedy = "check the bucket, its rights and AWS_ENDPOINT_URL"
        if _code(error) in ("403", "AccessDenied"):
            remedy = "give the account the right to list the bucket and to read, write and delete below the prefix"
        elif "redentials" in said or _code(error) in ("InvalidAccessKeyId", "SignatureDoesNotMatch"):
            remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role of the machine"
        return UserError(f"S3 at {self.place}: {said}", remedy)

    def in_threads(self, function: Callable[[A], T], items: Iterable[A], threads: int) -> list[T]:
        """Call a function for each item, several at a time; after the first failure (or a Ctrl-C) none goes on."""
        with ThreadPoolExecutor(threads) as pool:
            try:
                return list(pool.map(function, items))
            except BaseException:
                self._stopped.set()
                raise
            finally:
                pool.shutdown(wait=True)
                self._stopped.clear()

    def read(self, name: str) -> bytes | None:
        """See `Objects`."""
        found = self.look(name)
        return None if found is None else found[0]

    def write(self, name: str, data: bytes) -> None:
        """See `Objects`."""
        self._put(name, data)

    def _put(self, name: str, data: bytes, **conditions: str) -> str:
        about = {"Bucket": self.bucket, "Key": self._key(name), "ChecksumSHA256": _checksum(data), **conditions}
        return str(self._ask(lambda client: client.put_object(Body=data, **about))["ETag"])

    def look(self, name: str) -> tuple[bytes, str] | None:
        """See `Objects`."""

        def get(client: Any) -> tuple[bytes, str]:
            answer = client.get_object(Bucket=self.bucket, Key=self._key(name))
            return answer["Body"].read(), str(answer["ETag"])

        try:
            return self._ask(get)
        except Exception as error:
            if _code(error) in _CONDITION:
                return None
            raise

    def swap(self, name: str, data: bytes, version: str, durable: bool = False) -> str | None:
        """See `Objects`."""
        condition = {"IfNoneMatch": "*"} if version == NEW else {"IfMatch": version}
        try:
            return self._put(name, data, **condition)
        except Exception as error:
            if _code(error) not in _CONDITION:
                raise
        # A write whose answer was lost on the way is refused when it is repeated, for it has been done.
        found = self.look(name)
        return found[1] if found is not None and found[0] == data else None

    def forget(self, name: str) -> None:
        """See `Objects`."""
        self._ask(lambda client: client.delete_object(Bucket=self.bucket, Key=self._key(name)))

    def send(self, file: Path, name: str) -> str:
        """See `Objects`."""
        size = file.stat().st_size
        if size <= 2 * PART:
            return self._put(name, file.read_bytes())
        part = max(PART, math.ceil(size / _MOST_PARTS))
        where = {"Bucket": self.bucket, "Key": self._key(name)}
        upload = self._ask(lambda client: client.create_multipart_upload(ChecksumAlgorithm="SHA256", **where))
        named = {**where, "UploadId": upload["UploadId"]}

        def send_part(number: int) -> dict[str, Any]:
            with file.open("rb") as source:
                source.seek((number - 1) * part)
                data = source.read(part)
            about = {"PartNumber": number, "ChecksumSHA256": _checksum(data)}
            answer = self._ask(lambda client: client.upload_part(Body=data, **about, **named))
            return {**about, "ETag": answer["ETag"]}

        try:
            parts = self.in_threads(send_part, range(1, math.ceil(size / part) + 1), _THREADS)
            return self._complete(named, parts, name, size)
        except BaseException:
            with contextlib.suppress(Exception):  # `gc` ends the uploads that nobody could end
                self.patient(1.0)._ask(lambda client: client.abort_multipart_upload(**named))
            raise

    def _complete(self, named: dict[str, Any], parts: list[dict[str, Any]], name: str, size: int) -> str:
        try:
            request = {**named, "MultipartUpload": {"Parts": parts}}
            return str(self._ask(lambda client: client.complete_multipart_upload(**request))["ETag"])
        except Exception as error:
            found = self.size(name) if _code(error) == "NoSuchUpload" else None
            if found is None or found[0] != size:  # else it had been completed, and only the answer was lost
                raise
            return found[1]

    def fetch(self, name: str, file: Path, size: int) -> None:
        """See `Objects`."""

        def fetch_part(start: int) -> None:
            end = min(start + PART, size)
            span = {"Bucket": self.bucket, "Key": self._key(name), "Range": f"bytes={start}-{end - 1}"}
            data = self._ask(lambda client: client.get_object(**span)["Body"].read())
            if len(data) != end - start:
                raise Missing(name)
            written = 0
            while written < len(data):  # a disk that is nearly full takes a part, and only then says that it is full
                written += os.pwrite(target, data[written:], start + written)

        found = self.size(name)
        if found is None or found[0] < size:
            raise Missing(name)
        with disk_errors(str(file.parent)):
            file.parent.mkdir(parents=True, exist_ok=True)
            target = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                self.in_threads(fetch_part, range(0, size, PART), _THREADS)
            except Exception as error:
                if _code(error) in _CONDITION:  # deleted or replaced while we read it
                    raise Missing(name) from None
                raise
            finally:
                os.close(target)

    def size(self, name: str) -> tuple[int, str] | None:
        """See `Objects`."""
        try:
            head = self._ask(lambda client: client.head_object(Bucket=self.bucket, Key=self._key(name)))
        except Exception as error:
            if _code(error) in _CONDITION:
                return None
            raise
        return int(head["ContentLength"]), str(head["ETag"])

    def remove(self, names: Iterable[str]) -> None:
        """See `Objects`."""
        keys = [{"Key": self._key(name)} for name in names]
        for start in range(0, len(keys), 1000):
            request = {"Bucket": self.bucket, "Delete": {"Objects": keys[start : start + 1000], "Quiet": True}}
            failed = self._ask(functools.partial(_delete, request=request)).get("Errors", [])
            if failed:
                raise UserError(
                    f"S3 at {self.place} does not delete {failed[0]['Key']}: {failed[0].get('Code', '')}",
                    "check the right to delete there",
                )

    def list(self, prefix: str) -> Iterator[Listed]:
        """See `Objects`."""
        more: dict[str, str] = {}
        while True:
            request = {"Bucket": self.bucket, "Prefix": self._key(prefix.rstrip("/") + "/"), **more}
            answer = self._ask(functools.partial(_list, request=request))
            now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
            for item in answer.get("Contents", []):
                age = max(0.0, (now - item["LastModified"]).total_seconds())
                yield Listed(item["Key"].removeprefix(self._prefix), int(item["Size"]), age)
            if not answer.get("IsTruncated"):
                return
            more = {"ContinuationToken": answer["NextContinuationToken"]}

    def list_registers(self, prefix: str) -> Iterator[Listed]:
        """See `Objects`."""
        return self.list(prefix)

    def end_uploads(self, older_than: float) -> int:
        """See `Objects`."""
        answer = self._ask(lambda client: client.list_multipart_uploads(Bucket=self.bucket, Prefix=self._prefix))
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        old = [item for item in answer.get("Uploads", []) if (now - item["Initiated"]).total_seconds() > older_than]
        for item in old:
            named = {"Bucket": self.bucket, "Key": item["Key"], "UploadId": item["UploadId"]}
            self._ask(functools.partial(_abort, request=named))
        return len(old)


def _delete(client: Any, request: dict[str, Any]) -> Any:
    return client.delete_objects(**request)


def _list(client: Any, request: dict[str, Any]) -> Any:
    return client.list_objects_v2(**request)


def _abort(client: Any, request: dict[str, Any]) -> Any:
    return client.abort_multipart_upload(**request)
