"""The bandwidth between neighbours in the ring of nodes: some megabytes each way at once, over one TCP connection."""

from __future__ import annotations

import contextlib
import selectors
import socket
import statistics
import time
from collections.abc import Mapping

MOST_BYTES = 32 << 20
MOST_S = 1.0
"""A direction ends after so many bytes, or so many seconds, whichever comes first."""

REST_S = 2.0
"""... and what has not come so long after that is not waited for."""

MEASURABLE = 4e9
"""Bits per second: a Python program that sends and receives at once is no faster everywhere, so faster links count as
equal."""

_PIECE = 1 << 18

Link = tuple[int, int]
"""Two neighbours; the second one follows the first in the ring."""


def rounds(nodes: int) -> list[list[Link]]:
    """All links of the ring, in rounds in which each node has one link at most."""
    if nodes < 2:
        return []
    if nodes == 2:
        return [[(0, 1)]]
    links = [(node, (node + 1) % nodes) for node in range(nodes)]
    odd = [links.pop()] if nodes % 2 else []
    return [part for part in (links[::2], links[1::2], odd) if part]


def exchange(sock: socket.socket) -> float:
    """Send and receive at once; the bits per second that were received, 0 where nothing has come.

    The other side calls this, too. It takes :data:`MOST_S`, and what is under way by then :data:`REST_S` more at most.
    """
    sock.setblocking(False)
    piece, buffer = memoryview(bytes(_PIECE)), bytearray(_PIECE)
    begun = time.monotonic()
    sent = received = 0
    first = last = 0.0
    is_sending = is_receiving = True
    with selectors.DefaultSelector() as selector, contextlib.suppress(ConnectionError):
        selector.register(sock, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while is_sending or is_receiving:
            if time.monotonic() - begun > MOST_S + REST_S:
                last = time.monotonic()
                break
            for _, events in selector.select(0.1):
                if events & selectors.EVENT_WRITE:
                    sent += sock.send(piece)
                    is_sending = sent < MOST_BYTES and time.monotonic() - begun < MOST_S
                    if not is_sending:
                        sock.shutdown(socket.SHUT_WR)
                if events & selectors.EVENT_READ:
                    count = sock.recv_into(buffer)
                    received, is_receiving = received + count, count > 0
                    last = time.monotonic() if count else last
                    first = first or last
                if is_sending or is_receiving:
                    selector.modify(sock, is_receiving * selectors.EVENT_READ | is_sending * selectors.EVENT_WRITE)
    return 8 * received / max(last - first, 1e-6) if received else 0.0


def slow(rates: Mapping[Link, float]) -> tuple[float, dict[Link, float]]:
    """The median of ``rates``, bits per second, and those links that have less than half of it."""
    median = statistics.median(min(rate, MEASURABLE) for rate in rates.values())
    return median, {link: rate for link, rate in rates.items() if rate < median / 2}


def shown(rate: float) -> str:
    """ "940 Mbit/s", "2.4 Gbit/s", "4 Gbit/s or more"."""
    if rate >= MEASURABLE:
        return f"{MEASURABLE / 1e9:g} Gbit/s or more"
    return f"{rate / 1e9:.1f} Gbit/s" if rate >= 1e9 else f"{rate / 1e6:.3g} Mbit/s"
