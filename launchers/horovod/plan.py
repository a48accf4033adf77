"""The ranks of ``horovod_run`` on one node, as data, with the variables of Horovod's gloo mode."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence

from ...core.gang.launch_plan import LaunchPlan, Process
from ...core.ranks.functions import RANK_MAIN

DEFAULTS = ("HOROVOD_CONTROLLER", "HOROVOD_CPU_OPERATIONS", "HOROVOD_GLOO_IFACE", "NCCL_SOCKET_IFNAME")
"""Of what a rank gets, the variables that the user's own value replaces. The others identify the rank and its peers."""

PEER_LOST = (
    # A peer has left in the middle of the training. Horovod reports the same to a rank whose own thread failed, so of
    # several ranks with this message the first is blamed.
    r"HorovodInternalError: Horovod has been shut down\.",
    # A peer has left, or is silent, while the ranks find each other.
    r"'gloo::IoException'\n +what\(\): [^\n]*(?:gloo/transport/\w+/\w+|http_store)\.cc:\d+\] "
    r"(?:Connection closed by peer|Read error|Write error|connect \[|Timed out waiting|Wait timeout)",
)
"""Regular expressions of a rank's messages where another rank failed first, as Horovod 0.28.1 prints them."""


def horovod_environment(
    hostnames: Sequence[str],
    slots: Sequence[int],
    interfaces: Sequence[str | None],
    rendezvous_address: str,
    rendezvous_port: int,
) -> list[dict[str, str]]:
    """The variables that Horovod's own launcher would set for each rank of a world over gloo, by rank.

    Parameters
    ----------
    hostnames : sequence of str
        Of the nodes, by index, each different: ranks with the same one take themselves for neighbours on a host.
    slots : sequence of int
        Ranks on each node.
    interfaces : sequence of str or None
        Through which each node reaches the others; gloo looks for one itself where None.
    rendezvous_address, rendezvous_port : str, int
        Where control's server listens.

    Example
    -------
    ``horovod_environment(["a", "b"], [2, 1], ["eth0", "eth0"], "10.0.0.1", 20001)[2]["HOROVOD_RANK"] == "2"``
    """
    world: list[dict[str, str]] = []
    for node, (hostname, local_size) in enumerate(zip(hostnames, slots, strict=True)):
        for local_rank in range(local_size):
            # The ranks with the same local rank: nodes that have fewer are not among them.
            across = [other for other, size in enumerate(slots) if size > local_rank]
            variables: dict[str, object] = {
                "HOROVOD_HOSTNAME": hostname,
                "HOROVOD_RANK": len(world),
                "HOROVOD_SIZE": sum(slots),
                "HOROVOD_LOCAL_RANK": local_rank,
                "HOROVOD_LOCAL_SIZE": local_size,
                "HOROVOD_CROSS_RANK": across.index(node),
                "HOROVOD_CROSS_SIZE": len(across),
                "HOROVOD_GLOO_RENDEZVOUS_ADDR": rendezvous_address,
                "HOROVOD_GLOO_RENDEZVOUS_PORT": rendezvous_port,
                "HOROVOD_CONTROLLER": "gloo",
                "HOROVOD_CPU_OPERATIONS": "gloo",
            }
            interface = interfaces[node]
            if interface is not None:
                variables["HOROVOD_GLOO_IFACE"] = variables["NCCL_SOCKET_IFNAME"] = interface
            world.append({name: str(value) for name, value in variables.items()})
    return world


def plan(
    command: Sequence[str], variables: Sequence[Mapping[str, str]], environ: Mapping[str, str], prefix: str
) -> LaunchPlan:
    """The ranks of one node. A pure function.

    Parameters
    ----------
    command : sequence of str
        The script and its arguments.
    variables : sequence of mapping
        Those of :func:`horovod_environment` that are this node's.
    environ : mapping
        What every rank gets besides; wins for :data:`DEFAULTS`.
    prefix : str
        Of the paths of error files.
    """
    processes = []
    for own in variables:
        rank = own["HOROVOD_RANK"]
        error_file = f"{prefix}-rank-{rank}-error.json"
        wanted = {name: environ[name] for name in DEFAULTS if name in environ}
        process = Process(
            argv=(sys.executable, "-u", RANK_MAIN, "--script", *command),
            env={**environ, **own, **wanted, "TORCHELASTIC_ERROR_FILE": error_file},
            title=f"rank {rank}",
            rank=int(rank),
            label=f"[rank {rank}] " if len(variables) > 1 else "",
            error_file=error_file,
        )
        processes.append(process)
    return LaunchPlan(tuple(processes), peer_lost=PEER_LOST)


def unique_names(hostnames: Sequence[str]) -> list[str]:
    """The nodes' hostnames, with their indices where several nodes are on one machine, as in a local gang.

    Horovod puts them into addresses of its server, so of other characters than those of hostnames nothing is left.
    """
    plain = [re.sub(r"[^\w.-]", "-", name, flags=re.ASCII) for name in hostnames]
    if len(set(plain)) == len(plain):
        return plain
    return [f"{name}-node{index}" for index, name in enumerate(plain)]
