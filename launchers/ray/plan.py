"""``ray start`` on one node, as data: its command line, its environment, and what its failure looks like."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...core.gang.launch_plan import Process
from . import start
from .resources import Offer

READY = r"Ray runtime started\."
"""The line of ``ray start`` when the head's table of nodes has this one, alive."""

REPORT = r"exited unexpectedly:[^\[]{0,300}?\b(?P<title>[a-z_]{1,60}) ?\[exit code=(?P<exit_code>-?\d{1,9})\]"
"""The report of ``ray start --block`` about that process of its own that ended first."""

LOOPBACK = "127.0.0.2"
"""This machine alone reaches it, as 127.0.0.1, for which Ray puts the machine's address in its network."""

SOCKET_ROOM = 107 - len("/session_2026-12-31_23-59-59_123456_4194304/sockets/dash_TaskEventsHead")
"""Bytes that the name of Ray's folder may have: a socket's name has 107 at most; the dashboard's is the longest."""


@dataclass(frozen=True)
class Cluster:
    """The settings that are the same on all nodes of one Ray cluster.

    Parameters
    ----------
    address : str
        The head's.
    port : int
        Of the head's table of nodes (GCS): the one in RAY_ADDRESS.
    client_port : int, optional
        Of the head's server for Ray clients, which a Ray that could have one always starts; None for one that cannot.
    dashboard_port : int, optional
        None for no dashboard.
    heartbeat_timeout : float
        Seconds after which the head gives up a node that does not answer.
    unreachable_timeout : float
        Seconds after which a node, or a program, gives up a head that does not answer.
    logging_level, log_style : str, optional
        Of ``ray start``'s own output.
    """

    address: str
    port: int
    client_port: int | None
    dashboard_port: int | None
    heartbeat_timeout: float
    unreachable_timeout: float
    logging_level: str | None = None
    log_style: str | None = None

    @property
    def bootstrap(self) -> str:
        """Address and port, as RAY_ADDRESS has them."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"


def node_address(address: str) -> str:
    """A node's address for Ray. A local gang stays on the loopback interface."""
    return LOOPBACK if address in ("127.0.0.1", "localhost") and sys.platform == "linux" else address


def system_config(cluster: Cluster) -> dict[str, Any]:
    """The head's settings. It asks each node ten times within the time that it gives one, and three in a row count."""
    period = max(int(cluster.heartbeat_timeout * 100), 100)
    return {
        "health_check_initial_delay_ms": period,
        "health_check_period_ms": period,
        "health_check_timeout_ms": 2 * period,
        "health_check_failure_threshold": 3,
        "gcs_rpc_server_reconnect_timeout_s": max(1, int(cluster.unreachable_timeout)),
    }


def ray_start(
    cluster: Cluster,
    index: int,
    address: str,
    offer: Offer,
    temp_dir: str,
    environ: Mapping[str, str],
    python: str = sys.executable,
) -> Process:
    """``ray start`` on node ``index``; the head's on node 0.

    Parameters
    ----------
    address : str
        This node's.
    temp_dir : str
        This node's own; no other cluster's files are there.
    """
    # Every port that is 0 is chosen by who binds it, so that no other program can come between.
    head = f"{cluster.address} {cluster.port}" if index else ""
    argv = [python, "-u", start.__file__, head]
    if cluster.logging_level:
        argv += ["--logging-level", cluster.logging_level]  # of `ray`, not of its `start`
    argv += ["start", "--block", "--disable-usage-stats"]
    argv += ["--node-ip-address", address, "--node-name", f"node{index}", "--temp-dir", temp_dir]
    argv += ["--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"]
    argv += ["--num-cpus", str(offer.cpus), "--num-gpus", str(offer.gpus)]
    argv += ["--resources", json.dumps({f"node:{index}": 1})]
    argv += ["--memory", str(offer.memory), "--object-store-memory", str(offer.object_store)]
    if not offer.in_shared_memory:
        argv += ["--plasma-directory", temp_dir]
    argv += ["--log-color", "false", "--log-style", cluster.log_style or "record"]
    if index == 0:
        argv += ["--head", "--port", str(cluster.port)]
        if cluster.client_port is not None:
            argv += ["--ray-client-server-port", str(cluster.client_port)]
        argv += ["--system-config", json.dumps(system_config(cluster))]
        if cluster.dashboard_port is None:
            argv += ["--include-dashboard", "false"]
        else:
            argv += ["--include-dashboard", "true", "--dashboard-host", address]
            argv += ["--dashboard-port", str(cluster.dashboard_port)]
    else:
        argv += ["--address", cluster.bootstrap]
    return Process(
        argv=tuple(argv),
        env=start_environment(environ),
        title="ray start",
        report=REPORT,
    )


def start_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The step's environment for Ray's own processes, and so for the tasks and actors on this node."""
    env = {name: value for name, value in environ.items() if name not in ("RAY_ADDRESS", "RAY_TMPDIR")}
    # The guard ends what is left in half a second: there is nobody to whom a node could hand on its tasks.
    env.setdefault("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "0")
    env.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Statistics in a raylet's log, which would fill most of a failure report.
    env.setdefault("RAY_event_stats", "0")
    return env


def auth_environment(environ: Mapping[str, str], token_file: str) -> dict[str, str]:
    """What has Ray ask everybody for the gang's token, or for the user's own; empty where the user has chosen."""
    if "RAY_AUTH_MODE" in environ:
        return {}
    if "RAY_AUTH_TOKEN" in environ or "RAY_AUTH_TOKEN_PATH" in environ:
        return {"RAY_AUTH_MODE": "token"}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token_file}


def temporary_folder(environ: Mapping[str, str], fallback: str, name: str) -> str:
    """Where Ray's own files go on this node: below RAY_TMPDIR, else ``fallback``, else /tmp where those are too long.

    Parameters
    ----------
    name : str
        Of the folder itself; of this gang and node alone.
    """
    for base in (environ.get("RAY_TMPDIR"), fallback):
        if base and len(os.fsencode(os.path.join(base, name))) <= SOCKET_ROOM:
            return os.path.join(base, name)
    return os.path.join("/tmp", name)


def passed_over(environ: Mapping[str, str], folder: str) -> str:
    """The message for a user where RAY_TMPDIR is set and Ray's ``folder`` is elsewhere; else ""."""
    wanted = environ.get("RAY_TMPDIR")
    if not wanted or folder.startswith(os.path.join(wanted, "")):
        return ""
    return (
        f"RAY_TMPDIR={wanted} is too long: the names of Ray's sockets there would have more than 107 bytes. "
        f"Ray's files are in {os.path.dirname(folder)}."
    )
