"""The network between all nodes of a gang, as ``preflight="full"`` has it tried before the body begins."""

from __future__ import annotations

import secrets
import socket
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..exceptions import Unreachable
from ..gang.collectives import Member, gather_to_all
from ..logs import say
from . import links
from .reach import CONNECT_S, TOKEN_BYTES, Reach, listen

_KIND = 'preflight="full"'

_TOLD = 20
"""Pairs that are named."""

_CHECK = (
    "Every node has to reach every other one on any port: check the security group, the network policy, the firewalls "
    "and the routes between these two."
)


def check_network(gang: Member, may_leave_out: int = 0, without: Collection[int] = ()) -> dict[int, str]:
    """Have each node connect to each other one, and neighbours in the ring send some megabytes; every node calls it.

    Node 0 says what was found.

    Parameters
    ----------
    gang : Member
    may_leave_out : int
        How many nodes the step can do without.
    without : collection of int
        Nodes that are left out already: nothing is asked of their network.

    Returns
    -------
    dict of int to str
        The nodes to leave out, so that all others reach each other, and why; the same on each node.

    Raises
    ------
    Unreachable
        On node 0, where too many nodes do not reach another one; the other nodes wait for the end of the gang then.
    """
    begun = time.monotonic()
    own = gang.nodes[gang.node_index]
    token = secrets.token_bytes(TOKEN_BYTES)
    with listen(own.address) as listener:
        ports = gather_to_all(gang, _KIND, {"port": listener.getsockname()[1], "token": token})
        token = ports[0]["token"]
        tried = [node for node in range(gang.num_nodes) if node not in without]
        places = {node: (gang.nodes[node].address, ports[node]["port"]) for node in tried}
        others = {n: place for n, place in places.items() if n != gang.node_index and gang.node_index in places}
        reach = Reach(listener, gang.node_index, token, others)
        reach.run()
        found: list[dict[int, str]] = gather_to_all(gang, _KIND, reach.failed)
        failed = {(node, other): why for node in tried for other, why in found[node].items()}
        left_out = nodes_to_leave_out(failed)
        if len(left_out) > may_leave_out:
            _end(gang, f"{_pairs(gang, failed)}\n{_CHECK}")
        nodes = [node for node in tried if node not in left_out]
        rates = _ring(gang, nodes, listener, token, places)
        if rates and links.slow(rates)[1]:
            again = _ring(gang, nodes, listener, token, places)  # it may have been the machine that was busy
            rates = {link: max(rate, again[link]) for link, rate in rates.items()}
    stuck = {
        link: "connections open, and no data gets through: their network may drop large packets (MTU)"
        for link, rate in rates.items()
        if not rate
    }
    left_out += nodes_to_leave_out(stuck)
    if len(left_out) > may_leave_out:
        _end(gang, _pairs(gang, stuck))
    failed |= stuck
    if gang.node_index == 0:
        if failed:
            say(_pairs(gang, failed))
        rates = {link: rate for link, rate in rates.items() if link not in stuck}
        what = _all_reach(gang.num_nodes, len(left_out) + len(without))
        say(f"Preflight: {what} ({time.monotonic() - begun:.1f} s).{_bandwidth(gang, rates)}")
    return {
        node: f"its preflight failed: {_lines(gang, {pair: why for pair, why in failed.items() if node in pair})[0]}"
        for node in left_out
    }


def nodes_to_leave_out(failed: Collection[tuple[int, int]]) -> list[int]:
    """The nodes without which none of the pairs that have ``failed`` is left: those in the most pairs first, of equal
    ones the last one, and never node 0.
    """
    pairs = {frozenset(pair) for pair in failed}
    found = []
    while pairs:
        counts = Counter(node for pair in pairs for node in pair if node)
        found.append(max(counts, key=lambda node: (counts[node], node)))
        pairs = {pair for pair in pairs if found[-1] not in pair}
    return found


def _end(gang: Member, text: str) -> None:
    """Fail on node 0, which the others wait for."""
    if gang.node_index == 0:
        raise Unreachable(text)
    gather_to_all(gang, _KIND, None)


def _all_reach(nodes: int, left_out: int) -> str:
    if nodes == 1:
        return "the gang has one node, and needs no network"
    return f"all other {nodes - left_out} nodes reach each other" if left_out else f"all {nodes} nodes reach each other"


def _name(gang: Member, node: int) -> str:
    one: Any = gang.nodes[node]
    return f"node {node} ({one.hostname}, {one.address})"


def _pairs(gang: Member, failed: Mapping[tuple[int, int], str]) -> str:
    lines = [f"{line}." for line in _lines(gang, failed)]
    more = [f"... and {len(lines) - _TOLD} more pairs."] if len(lines) > _TOLD else []
    return "Preflight: " + "\n".join([*lines[:_TOLD], *more])


def _lines(gang: Member, failed: Mapping[tuple[int, int], str]) -> list[str]:
    """A clause for each pair: one for both directions where these fail alike."""
    lines: list[str] = []
    for (node, other), why in sorted(failed.items()):
        both = failed.get((other, node)) == why
        if both and other < node:
            continue
        verb = "and" if both else "does not reach"
        end = " do not reach each other" if both else ""
        lines.append(f"{_name(gang, node)} {verb} {_name(gang, other)}{end}: {why}")
    return lines


def _ring(
    gang: Member, nodes: Sequence[int], listener: socket.socket, token: bytes, places: Mapping[int, tuple[str, int]]
) -> dict[links.Link, float]:
    """Bits per second of each link of the ring of ``nodes``, the slower direction of it; 0 where nothing has come
    through.
    """
    own = gang.node_index
    measured: dict[links.Link, float] = {}
    rounds = [[(nodes[first], nodes[second]) for first, second in part] for part in links.rounds(len(nodes))]
    for part in rounds:
        gather_to_all(gang, _KIND, None)
        for link in part:
            if own in link:
                measured[link] = _measure(own, link, listener, token, places)
    found: Sequence[dict[links.Link, float]] = gather_to_all(gang, _KIND, measured)
    return {link: min(found[node][link] for node in link) for part in rounds for link in part}


def _measure(
    own: int, link: links.Link, listener: socket.socket, token: bytes, places: Mapping[int, tuple[str, int]]
) -> float:
    """This node's direction of ``link``; its second node connects to the first."""
    try:
        if own == link[1]:
            sock = socket.create_connection(places[link[0]], CONNECT_S)
            sock.sendall(token)
        else:
            sock = _accept_one(listener, token)
        with sock:
            return links.exchange(sock)
    except OSError:
        return 0.0


def _accept_one(listener: socket.socket, token: bytes) -> socket.socket:
    """The next connection that brings the token. Raises OSError where none comes in time."""
    listener.settimeout(CONNECT_S)
    while True:
        sock, _ = listener.accept()
        sock.settimeout(CONNECT_S)
        if sock.recv(TOKEN_BYTES) == token:
            return sock
        sock.close()


def _bandwidth(gang: Member, rates: Mapping[links.Link, float]) -> str:
    if not rates:
        return ""
    median, slow = links.slow(rates)
    if not slow:
        lowest, highest = min(rates.values()), max(rates.values())
        spread = links.shown(lowest)
        if links.shown(lowest) != links.shown(highest):
            spread += f" to {links.shown(highest)}"
        return f" Neighbours have {spread}."
    named = [
        f"[gang]   {_name(gang, one)} and {_name(gang, other)}: {links.shown(rate)}"
        for (one, other), rate in sorted(slow.items(), key=lambda link: link[1])[:_TOLD]
    ]
    return "\n".join([f" These links have less than half of the median of {links.shown(median)}:", *named])
