"""Makes the secrets of a development cluster, with random values, where they are absent; what is there stays as it is.

Secrets that pods in other namespaces need too (COPIED_TO, separated by commas) get the same values there.
"""

from __future__ import annotations

import base64
import os
import secrets
from typing import Any

NAMESPACE = "phasetune"
COPIED = ("phasetune-s3", "phasetune-tracking")


def values() -> dict[str, dict[str, str]]:
    """New values of every secret, by its name."""
    word = secrets.token_urlsafe
    return {
        "phasetune-mlflow-auth": {"username": "admin", "password": word(24), "flask-secret-key": word(48)},
        "phasetune-postgres": {
            "username": "mlflow",
            "password": word(24),
            "host": "postgres",
            "port": "5432",
            "database": "mlflow",
        },
        "phasetune-s3": {"AWS_ACCESS_KEY_ID": secrets.token_hex(10), "AWS_SECRET_ACCESS_KEY": word(30)},
        "phasetune-tracking": {"username": "phasetune", "password": word(24)},
    }


def create(api: Any, namespace: str, name: str, held: dict[str, str]) -> bool:
    """Make one secret; False where there is one of that name."""
    from kubernetes.client.exceptions import ApiException  # type: ignore[import-untyped]  # it carries no types

    body = {
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "phasetune"}},
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in held.items()},
    }
    try:
        api.create_namespaced_secret(namespace, body)
    except ApiException as error:
        if error.status == 409:
            return False
        raise
    return True


def make(api: Any, namespaces: list[str]) -> None:
    """Make all secrets, then the copies: first those of this namespace, whose values the copies take over."""
    for name, held in values().items():
        made = create(api, NAMESPACE, name, held)
        print(f"{NAMESPACE}/{name}: {'made' if made else 'was there'}", flush=True)
        if name in COPIED and not made and namespaces:
            data = api.read_namespaced_secret(name, NAMESPACE).data
            held = {key: base64.b64decode(value).decode() for key, value in data.items()}
        for other in namespaces if name in COPIED else []:
            print(f"{other}/{name}: {'made' if create(api, other, name, held) else 'was there'}", flush=True)


def main() -> None:
    """Ask the cluster that this pod runs in."""
    from kubernetes import client, config  # type: ignore[import-untyped]  # it carries no types

    config.load_incluster_config()
    make(client.CoreV1Api(), [name for name in os.environ.get("COPIED_TO", "").split(",") if name])


if __name__ == "__main__":
    main()
