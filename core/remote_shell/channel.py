"""The nodes of a gang as each other's hosts: who may have a command run where, and the program that asks for it.

A launcher whose framework starts its parts on other machines over SSH gives it :attr:`Peers.rsh` in place of ``ssh``:
it takes ssh's options, a host and a command, and runs the command on that node through its guard, encrypted. No server,
no key and no configuration of SSH takes part.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..gang.gang import Gang, Node
from .hostfile import write_private

_AGENT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "guard", "remote_command", "shim.py")


@dataclass(frozen=True)
class Peers:
    """How this node reaches the others.

    Parameters
    ----------
    rsh : str
        Path of a program that is called as ssh is. It, and the socket beside it by which it asks this node's guard, are
        this user's alone and go with the gang.
    hops : tuple of (int, str, int)
        Index, address and port of every node, by index.

    Example
    -------
    >>> peers = Peers.form(current.gang, dict(os.environ), os.getcwd())      # on every node
    >>> subprocess.run([peers.rsh, "node1", "hostname"])
    """

    rsh: str
    hops: tuple[tuple[int, str, int], ...]

    @classmethod
    def form(cls, gang: Gang, env: Mapping[str, str], cwd: str) -> Peers:
        """Let the other nodes run commands here, and learn where they do. Every node must call it.

        Parameters
        ----------
        gang : Gang
        env : mapping of str to str
            The environment of what the others run here.
        cwd : str
            And its working folder.

        Raises
        ------
        ToolMissing
            The temporary folder is on a file system that starts no programs.
        """
        own = gang.node
        folder = os.path.join(gang.folder, "peers")
        os.mkdir(folder, 0o700)
        program = os.path.join(folder, "rsh")
        command = shlex.join([sys.executable, "-I", "-S", _AGENT, folder])
        # Before the nodes agree: where it cannot be run, no node goes on.
        write_private(program, f'#!/bin/sh\nexec {command} "$@"\n', 0o700)
        header, _ = gang._link.request("serve-peers", host=own.address, env=dict(env), cwd=cwd)
        ports = gang.all_gather(header["port"])
        hops = tuple((node.index, node.address, port) for node, port in zip(gang.nodes, ports, strict=True))
        nodes = [
            {"names": called, "address": address, "port": port}
            for called, (_, address, port) in zip(names(gang.nodes), hops, strict=True)
        ]
        gang._link.request("reach-peers", folder=folder, nodes=nodes)
        return cls(program, hops)


def names(nodes: Sequence[Node]) -> list[list[str]]:
    """What each node may be called: its address, its host's name, long and short, and "node0", "node1" ...

    A name has one owner. Where nodes share an address, as those of a local run do, it is the first node's, and "node1"
    is node 1 even on a machine of that name; else a host's own name comes first.
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
