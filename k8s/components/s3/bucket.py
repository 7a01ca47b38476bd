"""Makes the bucket, and refuses an S3 server that does not honour conditional writes: the store's leases rest on them.

The server and the account come from AWS_ENDPOINT_URL and its like. Run again, it finds the bucket and checks anew.
"""

from __future__ import annotations

import os
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

WRITERS = 16


def written(client: Any, **arguments: Any) -> bool:
    """Whether a conditional write went through; False where its condition did not hold."""
    from botocore.exceptions import ClientError

    try:
        client.put_object(**arguments)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] in (409, 412):
            return False
        raise
    return True


def winners(client: Any, bucket: str, key: str, **condition: str) -> int:
    """How many of several simultaneous writes of one object, under one condition, went through."""
    about = {"Bucket": bucket, "Key": key, **condition}
    with ThreadPoolExecutor(WRITERS) as pool:
        # Each writes something of its own: an ETag is made of the content.
        return sum(pool.map(lambda _: written(client, Body=uuid.uuid4().bytes, **about), range(WRITERS)))


def main() -> None:
    """Make the bucket, then let several write at once: exactly one may win."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import ClientError

    # Asked again and again, as the server starts beside this process. The account is a secret of its own.
    config = Config(retries={"total_max_attempts": 20, "mode": "standard"}, max_pool_connections=WRITERS)
    client, bucket = boto3.client("s3", config=config), os.environ["BUCKET"]
    try:
        client.create_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            raise
    key = f".conditional-writes/{uuid.uuid4().hex}"
    try:
        new = winners(client, bucket, key, IfNoneMatch="*")
        tag = client.head_object(Bucket=bucket, Key=key)["ETag"]
        same = winners(client, bucket, key, IfMatch=tag)
    finally:
        client.delete_object(Bucket=bucket, Key=key)
    print(f"of {WRITERS} simultaneous writes, {new} made a new object and {same} replaced it")
    if (new, same) != (1, 1):
        sys.exit("this S3 server does not honour conditional writes: the store would lose results; use another")


if __name__ == "__main__":
    main()
