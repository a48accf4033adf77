"""How long another node may be silent, and the settings of the kernel for that on connections between nodes."""

from __future__ import annotations

import socket
import sys
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes 3 ms to import
    from typing import Any

SILENT = frozenset(
    {"timed out", "host is down", "network is down", "no route to that host", "no route to that network"}
)
"""The phrases of :func:`~.wire.fault` for another side from which nothing came. Everything else (a reset, an end, bytes
that are no frame) was sent by something there, so the network is not cut.
"""


class Timeouts:
    """The attributes ``lost_host_timeout`` and ``frozen_node_timeout``, in seconds.

    There is one for the process, since a guard has one gang.
    """

    __slots__ = ("frozen_node", "lost_host")

    def __init__(self, lost_host: float = 30.0, frozen_node: float = 60.0) -> None:
        self.lost_host = lost_host
        self.frozen_node = frozen_node

    def take(self, values: Any) -> None:
        """As :meth:`as_list` has them; None leaves them as they are."""
        if values is not None:
            self.lost_host, self.frozen_node = map(float, values)

    def as_list(self) -> list[float]:
        return [self.lost_host, self.frozen_node]


TIMEOUTS = Timeouts()

_RTO_MAX_MS = 44
"""TCP_RTO_MAX_MS, which Linux has from 6.15 on and no Python names yet: the longest time between two attempts to send
the same bytes again. Else that time doubles, so that a connection goes on as long after an interruption as that took.
"""

_OPTIONS = [getattr(socket, f"TCP_{name}", None) for name in ("KEEPIDLE", "KEEPINTVL", "KEEPCNT", "USER_TIMEOUT")]


def tune(sock: socket.socket, idle: bool = False) -> None:
    """Make the kernel watch the connection, by :data:`TIMEOUTS`. May be repeated, when they have changed.

    On an ``idle`` connection, on which nothing is ever sent, only the kernel's own keep-alive runs: it asks after some
    seconds of silence, then each second, and ends the connection before ``lost_host`` is over. On all others
    :mod:`liveness` watches the node; what is under way has the time that TCP needs to go on after an interruption.
    """
    lost_host = TIMEOUTS.lost_host
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
