"""Ray on this machine: quiet, on loopback, with token authentication, and never left behind.

Inside a Ray cluster (see `errand`) none is started: the driver joins the cluster that runs it.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from components.common.errand import INSIDE
from components.common.progress import EVENTS, PRINTED

LOOPBACK = "127.0.0.1"
"""Only for this very address do Ray's servers listen on loopback alone; for any other, also 127.0.0.2, on all
interfaces. On Linux Ray would replace it by the machine's outer address, see `_SINGLE`."""
_SINGLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""The variable that, set to 0, tells Ray on any system that there is no other machine, so that 127.0.0.1 stays."""
FOLDER = "PHASETUNE_RAY_FOLDER"
"""The variable that names the folder of Ray's sockets and logs; a short path, as sockets allow 107 bytes."""
_TOKEN = "RAY_AUTH_TOKEN"  # noqa: S105  # the variable's name


def environment() -> dict[str, str]:
    """The variables that Ray reads in every process of a run; the caller puts them into its environment.

    Token authentication with a token of this run's own: an open Ray port is remote code execution for every user of
    the machine.
    """
    return {
        "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "token"),
        _TOKEN: os.environ.get(_TOKEN) or secrets.token_hex(32),
        _SINGLE: "0",
        "RAY_TRAIN_V2_ENABLED": "1",
        # 2 s by default: a fit of one worker then ends 4 s after its loop has.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an actor that asks whether this machine will be taken away
        # 60 s by default: a run whose Ray was killed would sit there for as long before it says so.
        "RAY_gcs_rpc_server_reconnect_timeout_s": "15",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TQDM": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        "RAY_DEDUP_LOGS": "1",
    }


def cluster_environment() -> dict[str, str]:
    """The variables that Ray reads in a driver of a cluster; how to get in, and where, the cluster has told it."""
    return {
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TQDM": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    }


def _options() -> dict[str, Any]:
    return {
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }


def start() -> str:
    """Start Ray on this machine and return its address. The instance ends with this process."""
    os.environ.update(environment())
    ray = _ray()
    context = ray.init(
        num_cpus=max(2, os.cpu_count() or 1) + 1,  # a slot for Ray Data's reading beside the workers
        object_store_memory=256 * 1024 * 1024,
        _node_ip_address=LOOPBACK,
        _temp_dir=os.environ.get(FOLDER) or tempfile.mkdtemp(prefix="phasetune-ray-"),
        **_options(),
    )
    return str(context.address_info["gcs_address"])


def _ray() -> Any:
    """Ray, told that it is alone also where it was imported before its variables were set, and that nobody looks on.

    The agent of Ray's dashboard, which every node has, serves jobs and logs over HTTP where `ray[default]` is
    installed. That is for clusters; here it would be a server more for nobody, and 20 MiB. The same is true of the
    dashboard's own process, for which `ray.init` waits though it was asked for none, of the autoscaler, and of the one
    that reads logs for drivers that want them: without these three Ray is ready in three fifths of the time.
    """
    import ray
    from ray._private import node, ray_constants, utils

    ray_constants.ENABLE_RAY_CLUSTER = False
    utils.get_dashboard_dependency_error = lambda: ImportError("Ray on one machine has no dashboard")
    for name in ("start_api_server", "start_monitor", "start_log_monitor"):
        setattr(node.Node, name, lambda *_, **__: None)
    return ray


@contextmanager
def _own_signals() -> Iterator[None]:
    """While inside, `ray.init` may set its own handler of SIGTERM; ours, which saves a phase's state, is put back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def join_cluster() -> None:
    """Join the cluster whose job this process is the driver of. Does nothing when connected.

    Its workers are told that they are inside, and to print what they have to say: the driver prints it too.
    """
    import ray

    if ray.is_initialized():
        return
    with _own_signals():
        ray.init(
            address=os.environ.get("RAY_ADDRESS", "auto"),
            runtime_env={"env_vars": {INSIDE: "1", EVENTS: PRINTED}},
            log_to_driver=True,
            logging_level=logging.ERROR,
        )


def connect(address: str | None) -> None:
    """Join the run's Ray instance, or start one of our own where there is none. Does nothing when connected."""
    ray = _ray()
    if ray.is_initialized():
        return
    with _own_signals():
        if address is None:
            start()
        else:
            ray.init(address=address, _node_ip_address=LOOPBACK, **_options())
