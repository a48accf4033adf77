"""Makes a Ray cluster of the nodes of a gang: they agree on its settings, start Ray, and wait until all are alive."""

from __future__ import annotations

import importlib.util
import os
import platform
import secrets
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from ...core.dry_run.call import show_instead
from ...core.exceptions import BadAttribute, DryRunEnds, GangException, ProcessFailed, package_missing
from ...core.gang.gang import Gang
from ...core.gang.launch_plan import Process
from ...core.gang.shares import nodes_on_this_machine, own_slots
from ...core.guard.processes.process_table import GANG_MARKER
from ...core.guard.text import last_lines
from ...core.logs import say
from ...core.machine.network import network_variables
from ...core.remote_shell.hostfile import write_private
from . import follow
from .driver import can_take_token
from .exceptions import RayNotInstalledException, not_joined
from .plan import READY, Cluster, auth_environment, node_address, passed_over, ray_start, temporary_folder
from .resources import Offer, memory_available, offer, shared_memory_free

JOIN_S = 120.0
"""For ``ray start`` on all nodes. By itself it takes some five seconds; from a cold disk, on a busy node, a minute."""

FOLLOW_S = 20.0
"""For the program that shows workers' logs; it takes some ten milliseconds."""

DASHBOARD_PORT = 8265
"""Where Ray users look for the dashboard."""

LOG_LINES = 20
"""Lines of its raylet's log in the message about a node that did not join."""


@dataclass(frozen=True)
class RayInstall:
    """The Ray at hand: its version, Python's, and whether it can ask everybody for a token."""

    version: str
    python: str
    has_tokens: bool


@dataclass(frozen=True)
class Wanted:
    """What the step asks of its cluster.

    Parameters
    ----------
    attributes : mapping
        The attributes of ``@metaflow_ray``, checked.
    cpus, gpus : int or None
        Of each node; None where the step asks for none.
    memory, shared_memory : int or None
        Of each node, in MiB.
    shows_ray_start : bool
        Whether what ``ray start`` prints goes to the log.
    """

    attributes: Mapping[str, Any]
    cpus: int | None
    gpus: int | None
    memory: int | None
    shared_memory: int | None
    shows_ray_start: bool


@dataclass(frozen=True)
class Formed:
    """This node's part of a cluster: what the step's own programs need of it."""

    cluster: Cluster
    variables: dict[str, str]
    dashboard_url: str | None


def installed_ray(step: str) -> RayInstall:
    """Look for Ray without importing it, which takes a second.

    Raises
    ------
    RayNotInstalledException
    """
    spec = importlib.util.find_spec("ray")
    if spec is None or not spec.submodule_search_locations:
        raise RayNotInstalledException(package_missing(step, "Ray", "ray[default]"))
    folder = next(iter(spec.submodule_search_locations))
    try:
        version = metadata.version("ray")
    except metadata.PackageNotFoundError:  # a build of one's own
        version = "of unknown version"
    has_tokens = os.path.isdir(os.path.join(folder, "_private", "authentication"))
    return RayInstall(version, platform.python_version(), has_tokens)


def form_cluster(gang: Gang, wanted: Wanted, install: RayInstall) -> Formed:
    """Start Ray on this node as the others do on theirs; return when all are alive in it. Every node must call it.

    Raises
    ------
    RayException
        This node did not join; the message has the end of its raylet's log.
    RayNotInstalledException
        On every node, where they have different Rays.
    BadAttribute
        The port that the step asks for is not to be had.
    """
    started = time.monotonic()
    address = node_address(gang.node.address)
    own: dict[str, Any] = {"ray": install.version, "python": install.python, "address": address}
    if gang.is_control:
        own["cluster"] = _choose(gang, wanted, own["address"])
        own["token"] = secrets.token_hex(32) if install.has_tokens and can_take_token() else ""
    nodes = gang.all_gather(own)
    check_same_ray(nodes)
    cluster = Cluster(**nodes[0]["cluster"])
    variables = _auth(gang, nodes[0]["token"])
    temp_dir = _temp_dir(gang)
    network = network_variables(gang.another_address(), os.environ)
    fabric = [f"{name}={value}" for name, value in network.items() if name.startswith("FI_")]
    if fabric:
        say(f"Set for Ray, since you set none: {', '.join(fabric)}")
    own_offer = _offer(gang, wanted)
    if own_offer.notice:
        say(f"Node {gang.node_index}: {own_offer.notice}")
    environ = {**os.environ, **network, **variables}
    process = ray_start(cluster, gang.node_index, own["address"], own_offer, temp_dir, environ)
    with show_instead(gang, False, "@metaflow_ray") as planned:
        _start(gang, cluster, process, temp_dir, wanted.shows_ray_start)
        if wanted.attributes["enable_worker_logs"] and not gang.is_control:
            _follow(gang, temp_dir)
    if planned:
        raise DryRunEnds(
            "Node 0's log shows how Ray would be started on each node. The body of this step needs the cluster, so "
            "that the run ends here. It goes on without METAFLOW_GANG_DRY_RUN."
        )
    if gang.is_control and gang.num_nodes > 1:
        say(f"Ray's head is up at {cluster.bootstrap}; the other nodes join it.")
    gang.barrier()
    if gang.is_control:
        alive = f"{gang.num_nodes} of {gang.num_nodes} nodes are alive"
        took = time.monotonic() - started
        say(f"Ray {install.version}: {alive} in the cluster at {cluster.bootstrap} after {took:.1f} s.")
    url = None if cluster.dashboard_port is None else f"http://{cluster.address}:{cluster.dashboard_port}"
    return Formed(cluster, {**network, **variables, "RAY_ADDRESS": cluster.bootstrap}, url)


def check_same_ray(nodes: list[dict[str, Any]]) -> None:
    """Ray takes only nodes like itself. Raises RayNotInstalledException, the same on each node, where they differ."""
    for index, node in enumerate(nodes):
        if (node["ray"], node["python"]) != (nodes[0]["ray"], nodes[0]["python"]):
            raise RayNotInstalledException(
                f"Node 0 has Ray {nodes[0]['ray']} on Python {nodes[0]['python']} and node {index} has Ray "
                f"{node['ray']} on Python {node['python']}: all nodes need the same. Use one image for all."
            )


def _choose(gang: Gang, wanted: Wanted, address: str) -> dict[str, Any]:
    """Control's part of the agreement: the fields of :class:`Cluster`."""
    attributes = wanted.attributes
    main_port, dashboard_port = attributes["main_port"], attributes["dashboard_port"]
    return {
        "address": address,
        "port": gang.lease_port(main_port),
        "client_port": gang.lease_port() if importlib.util.find_spec("grpc") else None,  # bare `ray` has no clients
        "dashboard_port": _dashboard_port(gang, dashboard_port) if attributes["enable_dashboard"] else None,
        **{
            name: attributes[name]
            for name in ("heartbeat_timeout", "unreachable_timeout", "logging_level", "log_style")
        },
    }


def _dashboard_port(gang: Gang, wanted: int | None) -> int:
    if wanted is not None:
        return gang.lease_port(wanted)
    try:
        return gang.lease_port(DASHBOARD_PORT)
    except BadAttribute:
        return gang.lease_port()


def _auth(gang: Gang, token: str) -> dict[str, str]:
    if not token:
        return {}
    path = os.path.join(gang.folder, "ray_token")
    write_private(path, token)
    return auth_environment(os.environ, path)


def _temp_dir(gang: Gang) -> str:
    """Ray's folder on this node: outside of the gang's own, whose name is too long for Ray's sockets."""
    gang_id = os.environ[GANG_MARKER].rpartition(".")[0]
    # Ray opens its folder to every user of the machine, who would reach its sockets; the one around it stays closed.
    path = temporary_folder(os.environ, tempfile.gettempdir(), f"gang-ray-{gang_id[:8]}-{gang.node_index}/r")
    if notice := passed_over(os.environ, path):
        say(f"Node {gang.node_index}: {notice}")
    gang.own_folder(os.path.dirname(path))
    os.mkdir(path, 0o700)
    return path


def _offer(gang: Gang, wanted: Wanted) -> Offer:
    return offer(
        wanted.cpus or own_slots(gang),
        wanted.gpus or gang.node.gpus,
        wanted.memory,
        wanted.shared_memory,
        memory_available(),
        shared_memory_free(),
        nodes_on_this_machine(gang),
    )


def _start(gang: Gang, cluster: Cluster, process: Process, temp_dir: str, shown: bool) -> None:
    try:
        gang.start(process, ready=READY, timeout=JOIN_S, shown=shown)
    except ProcessFailed as failed:
        reason = f"{failed}"
    except GangException as late:
        reason = f"{late}"
    else:
        return
    raise not_joined(gang.node_index, cluster.bootstrap, reason, _raylet_log(temp_dir)) from None


def _raylet_log(temp_dir: str) -> str:
    texts = []
    for name in ("raylet.out", "raylet.err"):
        try:
            with open(os.path.join(temp_dir, "session_latest", "logs", name), errors="replace") as file:
                texts.append("".join(line for line in file if "[state-dump]" not in line))
        except OSError:
            continue
    return "\n".join(last_lines("".join(texts)).splitlines()[-LOG_LINES:])


def _follow(gang: Gang, temp_dir: str) -> None:
    folder = os.path.join(temp_dir, "session_latest", "logs")
    argv = (sys.executable, "-I", "-S", follow.__file__, folder)
    process = Process(argv, dict(os.environ), title="the display of Ray's worker logs")
    gang.start(process, ready=follow.READY, timeout=FOLLOW_S, shown=True)
