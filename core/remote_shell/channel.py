"""Commands on other nodes through the guards: a program in the place of ``ssh``, without SSH.

A launcher gives :attr:`ChannelShell.rsh` to a framework that starts its parts on other machines over SSH. It takes the
arguments of ``ssh``, and the guard of the named node runs the command; the connection is encrypted.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..gang.gang import Gang
from ..gang.node import Node
from .hostfile import write_private

_AGENT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "guard", "remote_command", "shim.py")


@dataclass(frozen=True)
class ChannelShell:
    """This node's access to the other nodes through their guards.

    Parameters
    ----------
    rsh : str
        Path of a program that takes the arguments of ``ssh``. It and the socket beside it, by which it asks this node's
        guard, are private to this user and are removed with the gang.
    hops : tuple of (int, str, int)
        Index, address and port of every node, by index.

    Example
    -------
    >>> channel = ChannelShell.form(current.gang, dict(os.environ), os.getcwd())      # on every node
    >>> subprocess.run([channel.rsh, "node1", "hostname"])
    """

    rsh: str
    hops: tuple[tuple[int, str, int], ...]

    @classmethod
    def form(cls, gang: Gang, env: Mapping[str, str], cwd: str) -> ChannelShell:
        """Have this node's guard serve commands, and exchange the servers' ports. Every node must call it.

        Parameters
        ----------
        gang : Gang
        env : mapping of str to str
            The environment of the commands that other nodes run here.
        cwd : str
            Their working folder.

        Raises
        ------
        ToolMissing
            The temporary folder is mounted noexec.
        """
        own = gang.node
        folder = os.path.join(gang.folder, "peers")
        os.mkdir(folder, 0o700)
        program = os.path.join(folder, "rsh")
        command = shlex.join([sys.executable, "-I", "-S", _AGENT, folder])
        # Before the collective: where the program cannot be run, no node goes on.
        write_private(program, f'#!/bin/sh\nexec {command} "$@"\n', 0o700)
        header, _ = gang._link.request("serve-commands", host=own.address, env=dict(env), cwd=cwd)
        ports = gang.all_gather(header["port"])
        hops = tuple((node.index, node.address, port) for node, port in zip(gang.nodes, ports, strict=True))
        nodes = [
            {"names": called, "address": address, "port": port}
            for called, (_, address, port) in zip(node_names(gang.nodes), hops, strict=True)
        ]
        gang._link.request("forward-commands", folder=folder, nodes=nodes)
        return cls(program, hops)


def node_names(nodes: Sequence[Node]) -> list[list[str]]:
    """The names of each node: its address, its host's long and short name, and "node0", "node1" and so on.

    Each name belongs to one node. Where nodes share an address, as those of a local run do, the address is the first
    node's, and "node1" is node 1 even on a machine of that name; elsewhere a host's own name takes precedence.
    """
    labels = [f"node{node.index}" for node in nodes]
    addresses = [node.address for node in nodes]
    hostnames = [node.hostname for node in nodes]
    short = [node.hostname.partition(".")[0] for node in nodes]
    is_shared = len(set(addresses)) < len(nodes)
    kinds = [labels, addresses, hostnames, short] if is_shared else [addresses, hostnames, short, labels]
    owners: dict[str, int] = {}
    for kind in kinds:
        for index, name in enumerate(kind):
            owners.setdefault(name.lower(), index)
    return [[name for name, owner in owners.items() if owner == index] for index in range(len(nodes))]
