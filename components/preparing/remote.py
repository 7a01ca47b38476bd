"""Rows that do not lie in a local file: objects of S3 and data sets of the Hugging Face hub.

A failure of either is one `DataError` with its remedy.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from components.common.errors import DataError
from components.preparing.chunks import Rows, in_chunks


@dataclass(frozen=True, slots=True)
class S3Object:
    """One object of a bucket, with the tag and the size (bytes) that stand for its content."""

    bucket: str
    key: str
    etag: str
    size: int


def query_of(url: str, allowed: dict[str, str]) -> dict[str, str]:
    """The parameters of a source's address.

    Args:
        url: The address.
        allowed: The parameters that it may have, with what they mean.

    Raises:
        DataError: If it has another one.
    """
    found = dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
    for name in found:
        if name not in allowed:
            known = ", ".join(f"`{known}` ({meaning})" for known, meaning in allowed.items())
            raise DataError(f"{url}: the parameter `{name}` is not known", f"known are {known}")
    return found


@contextmanager
def s3_errors(url: str) -> Iterator[None]:
    """Turns boto3's failures into an error that says what to mend."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

    try:
        yield
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise DataError(
            f"{url}: no S3 credentials: {error}",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role of the machine or service account",
        ) from error
    except ClientError as error:
        code = error.response["Error"].get("Code", "")
        remedy = "check the bucket, the key and AWS_ENDPOINT_URL"
        if code in ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"):
            remedy = "check the credentials and their right to list and read the bucket"
        raise DataError(f"{url}: S3 answers {code}: {error.response['Error'].get('Message', '')}", remedy) from error
    except (BotoCoreError, Boto3Error) as error:
        raise DataError(f"{url}: S3 cannot be reached: {error}", "check AWS_ENDPOINT_URL and the network") from error


def s3_client() -> Any:
    """A client from the environment's settings (AWS_ENDPOINT_URL, credentials, region)."""
    import boto3

    return boto3.client("s3")


def s3_objects(url: str) -> list[S3Object]:
    """The object that an address names, or else those below it as a folder, or else those that it begins.

    Raises:
        DataError: If there are none, or the bucket cannot be listed.
    """
    bucket, _, key = url.removeprefix("s3://").partition("/")
    with s3_errors(url):
        pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
        found = [
            S3Object(bucket, item["Key"], item["ETag"].strip('"'), item["Size"])
            for page in pages
            for item in page.get("Contents", [])
        ]
    exact = [item for item in found if item.key == key]
    below = [item for item in found if item.key.startswith(key.rstrip("/") + "/")]
    chosen = exact or below or found
    if not chosen:
        raise DataError(f"{url}: there is no such object and none below it", "check the bucket and the key")
    return sorted(chosen, key=lambda item: item.key)


def s3_download(item: S3Object, target: Path) -> None:
    """Copy an object to a local file.

    Raises:
        DataError: If it cannot be read.
    """
    url = f"s3://{item.bucket}/{item.key}"
    with s3_errors(url), target.open("wb") as file:
        s3_client().download_fileobj(item.bucket, item.key, file)
    if target.stat().st_size != item.size:
        raise DataError(f"{url}: {target.stat().st_size} bytes came, {item.size} were expected", "run again")


HUB_SECONDS = 5.0
"""How long the hub may take for its first answer."""
HF_PARAMETERS = {"split": "`train` where absent", "revision": "a branch, tag or commit", "name": "the configuration"}


def hf_dataset(url: str) -> tuple[str, dict[str, str]]:
    """The data set's id (or folder) and its parameters, from `hf://id?split=...` or a bare id.

    Raises:
        DataError: If a parameter is not known or the id is missing.
    """
    parameters = {"split": "train", **query_of(url, HF_PARAMETERS)}
    name = url.removeprefix("hf://").split("?", 1)[0]
    if not name:
        raise DataError(f"{url}: no data set is named", "write hf://org/name?split=train")
    return name, parameters


def hf_commit(name: str) -> str | None:
    """The commit at which a data set of the hub stands; None where the hub does not tell, or may not be asked."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name, timeout=HUB_SECONDS).sha
    except Exception:  # whatever the reason: reading the data says it
        return None


def hf_chunks(url: str) -> Iterator[Rows]:
    """The rows of a data set of the hub, streamed.

    Raises:
        DataError: If it cannot be loaded.
    """
    name, parameters = hf_dataset(url)
    try:
        import datasets
        from huggingface_hub import HfApi

        # `datasets` itself tries for half a minute. Without the network it reads what it has in its cache.
        if not Path(name).is_dir() and not datasets.config.HF_HUB_OFFLINE:
            HfApi().dataset_info(name, timeout=HUB_SECONDS)
        rows = datasets.load_dataset(
            name, parameters.get("name"), split=parameters["split"], revision=parameters.get("revision"), streaming=True
        )
        yield from in_chunks(enumerate(rows, start=1))
    except Exception as error:
        # `datasets` lets errors of a dozen libraries through; to the user they are one thing.
        text = " ".join(str(error).split())[:300]
        raise DataError(
            f"{url}: the data set cannot be loaded from the Hugging Face hub: {type(error).__name__}: {text}",
            "check the id, split and revision, the network or HF_ENDPOINT, and HF_TOKEN for gated data; "
            "or download the files and give their path (HF_HUB_OFFLINE=1 reads a data set that is in the cache)",
        ) from error
