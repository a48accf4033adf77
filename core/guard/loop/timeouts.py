"""The settings of the kernel for silence of the other side, on connections between nodes."""

from __future__ import annotations

import socket
import sys
from contextlib import suppress

from ..settings import settings

SILENT = frozenset(
    {"timed out", "host is down", "network is down", "no route to that host", "no route to that network"}
)
"""The phrases of :func:`~.framing.fault` for another side from which nothing came. Everything else (a reset, an end,
bytes that are no frame) was sent by something there, so the network is not cut.
"""


_RTO_MAX_MS = 44
"""TCP_RTO_MAX_MS, which Linux has from 6.15 on and no Python names yet: the longest time between two attempts to send
the same bytes again. Else that time doubles, so that a connection goes on as long after an interruption as that took.
"""

_OPTIONS = [getattr(socket, f"TCP_{name}", None) for name in ("KEEPIDLE", "KEEPINTVL", "KEEPCNT", "USER_TIMEOUT")]


def tune(sock: socket.socket, idle: bool = False) -> None:
    """Make the kernel watch the connection, by ``lost_host_timeout``. May be repeated, when they have changed.

    On an ``idle`` connection, on which nothing is ever sent, only the kernel's own keep-alive runs: it asks after some
    seconds of silence, then each second, and ends the connection before that is over. On all others
    :mod:`liveness` watches the node; what is under way has the time that TCP needs to go on after an interruption.
    """
    lost_host = settings().lost_host_timeout
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    ask_s = max(1, int(lost_host / 8))
    end_s = lost_host - ask_s if idle else 2 * lost_host
    # TCP_USER_TIMEOUT counts for keep-alive too, and in place of KEEPCNT; where there is none, that has to do.
    values = (ask_s, 1, min(127, max(1, int(end_s - ask_s))), int(1000 * end_s))
    for option, value in zip(_OPTIONS, values, strict=True):
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    if sys.platform == "linux":
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, _RTO_MAX_MS, max(1000, min(120_000, int(100 * lost_host))))
