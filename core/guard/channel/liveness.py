"""Watches whether the guards at the other ends of connections still run, by pings and by what the kernel knows.

A guard whose host is lost, and one that is frozen (stopped, or in a paused container), both send nothing. The kernel
of the second one still acknowledges what it gets. Any byte that comes counts as a sign of life, so a guard that is only
slow is not taken for one of these; and the time in which this process itself did not run is not counted.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..failure_record import CUT
from ..loop.event_loop import Loop, Timer
from ..settings import settings
from .connection import Connection

if TYPE_CHECKING:
    Target = tuple[str, int]

TICK = 1 / 30
"""How often it looks, in parts of the shorter of the two timeouts; once a second by default, and at most."""

PING = 1 / 6
"""How often a message is sent, in the same parts: a gang of 1,024 nodes then has some 200 of them in a second."""

DOUBT = 0.4
"""After which part of ``lost_host`` a host whose kernel is silent is tried by a new connection. TCP doubles the time
between its own attempts, so after an interruption of 20 s it may need another 20 s; a new connection is there at once.
"""

LOST = 0.93
"""After which part of ``lost_host`` such a host is lost: the gang is to stop by the end of it."""

SLACK_S = 1.0
"""How late a look may come. What is beyond was time in which this process did not run."""


class Silent:
    """A node that has sent nothing for too long. ``text`` follows "has not answered node N"."""

    __slots__ = ("connection", "frozen", "text")

    def __init__(self, connection: Connection, frozen: bool, text: str) -> None:
        self.connection = connection
        self.frozen = frozen
        self.text = text


class _Peer:
    def __init__(self, connection: Connection, target: Target | None, now: float, first_ping: float) -> None:
        self.connection = connection
        self.target = target
        self.bytes_at = connection.received_at
        self.received = self.alive = now  # on the clock of the time in which this process ran
        self.ping_at = now + first_ping
        self.probe: _Probe | None = None

    def end_probe(self) -> None:
        if self.probe is not None:
            self.probe.close()
            self.probe = None


class Liveness:
    """Watches connections to other guards; the settings say how long they may be silent.

    Parameters
    ----------
    on_silent : callable
        Called with all that are lost or frozen at one moment, as a list of :class:`Silent`, and with the number of
        others that do answer. They are watched no more then.
    """

    def __init__(self, loop: Loop, on_silent: Callable[[list[Silent], int], None]) -> None:
        self._loop = loop
        self._on_silent = on_silent
        self._peers: dict[int, _Peer] = {}
        self._clock = 0.0
        self._ticked = time.monotonic()
        self._timer: Timer | None = None

    def watch(self, connection: Connection, target: Target | None) -> None:
        """Watch ``connection``; its host can be tried by TCP at ``target``."""
        if self._timer is None:
            self._ticked = time.monotonic()
            self._timer = self._loop.call_later(_tick_s(), self._tick)
        # Not all at the same moment, though all have joined within a second.
        first_ping = _ping_s() * (connection.node % 16) / 16
        self._peers[id(connection)] = _Peer(connection, target, self._clock, first_ping)

    def forget(self, connection: Connection) -> None:
        """Watch it no more. Harmless when it is not watched."""
        peer = self._peers.pop(id(connection), None)
        if peer is not None:
            peer.end_probe()

    def close(self) -> None:
        """Watch no connection any more."""
        for peer in self._peers.values():
            peer.end_probe()
        self._peers.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        now = time.monotonic()
        passed, self._ticked = now - self._ticked, now
        self._clock += min(passed, _tick_s() + SLACK_S)
        self._timer = self._loop.call_later(_tick_s(), self._tick)
        for peer in self._peers.values():
            self._look(peer, passed)
        lost_s = LOST * settings().lost_host_timeout
        lost = [peer for peer in self._peers.values() if self._clock - peer.alive >= lost_s]
        frozen = [peer for peer in self._peers.values() if peer not in lost and self._is_frozen(peer)]
        # Those that were cut off or frozen at the same moment may have sent something a moment later.
        if lost:
            near = lost_s - 2 * _ping_s()
            lost = [peer for peer in self._peers.values() if self._clock - peer.alive >= near]
        if frozen:
            near = _ping_s() + _tick_s()
            frozen = [peer for peer in self._peers.values() if peer not in lost and self._is_frozen(peer, near)]
        if lost or frozen:
            self._report(lost, frozen)

    def _look(self, peer: _Peer, passed: float) -> None:
        connection = peer.connection
        if connection.received_at != peer.bytes_at:
            peer.bytes_at = connection.received_at
            peer.received = peer.alive = self._clock
            peer.end_probe()
        if self._clock >= peer.ping_at:
            peer.ping_at = self._clock + _ping_s()
            connection.send({"op": "ping"})
        if self._clock - peer.received < 2 * _ping_s():
            return
        acknowledged = kernel_state(connection.sock)
        if acknowledged is not None and acknowledged[0] <= passed + 0.1:
            peer.alive = self._clock
        elif self._clock - peer.alive >= DOUBT * settings().lost_host_timeout:
            self._try(peer)

    def _try(self, peer: _Peer) -> None:
        if peer.probe is None and peer.target is not None:

            def answered() -> None:
                peer.alive = self._clock

            peer.probe = _Probe(self._loop, peer.target, answered)
        elif peer.probe is not None and peer.probe.over:
            peer.end_probe()

    def _is_frozen(self, peer: _Peer, less_s: float = 0.0) -> bool:
        if self._clock - peer.received < settings().frozen_node_timeout - less_s:
            return False
        # Where something is still under way, it is the network that loses packets.
        acknowledged = kernel_state(peer.connection.sock)
        return acknowledged is None or acknowledged[1] == 0

    def _report(self, lost: list[_Peer], frozen: list[_Peer]) -> None:
        silent = [
            Silent(peer.connection, False, f"for {self._clock - peer.received:.0f} s, and neither has its host: {CUT}")
            for peer in lost
        ]
        silent += [
            Silent(peer.connection, True, f"for {settings().frozen_node_timeout:g} s, {FROZEN}") for peer in frozen
        ]
        for one in silent:
            self.forget(one.connection)
        self._on_silent(silent, len(self._peers))


FROZEN = "while its host still does: it is frozen (a paused container, a suspended process), or its guard is stopped"


class _Probe:
    """One attempt to reach a host by TCP: that it refuses is an answer too."""

    def __init__(self, loop: Loop, target: Target, answered: Callable[[], None]) -> None:
        self.over = False
        self._loop = loop
        self._answered = answered
        self._timer = loop.call_later(2 * _tick_s(), self.close)
        self._sock: socket.socket | None = None
        try:
            family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
            self._sock = socket.socket(family, socket.SOCK_STREAM)
            self._sock.setblocking(False)
            code = self._sock.connect_ex(target)
        except (OSError, ValueError):  # no descriptor is free, or the address is none: it does not count
            self.close()
            return
        if code == errno.EINPROGRESS:
            loop.add_writer(self._sock, self._ended)
        else:
            self._end(code)

    def _ended(self) -> None:
        if self._sock is not None:
            self._end(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _end(self, code: int) -> None:
        self.close()
        if code in (0, errno.ECONNREFUSED, errno.ECONNRESET):
            self._answered()

    def close(self) -> None:
        self.over = True
        self._timer.cancel()
        if self._sock is not None:
            self._loop.remove_writer(self._sock)
            self._sock.close()
            self._sock = None


def kernel_state(sock: socket.socket) -> tuple[float, int] | None:
    """Seconds since the other kernel sent anything at all, and how many packets it has not acknowledged.

    None where this system has no such figures.
    """
    option = getattr(socket, "TCP_INFO", None)
    if option is None or sys.platform != "linux":
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, option, _INFO.size)
    except OSError:
        return None
    if len(info) < _INFO.size:
        return None
    numbers: tuple[Any, ...] = _INFO.unpack(info)
    return numbers[_LAST_ACK] / 1000, numbers[_UNACKED]


# struct tcp_info of Linux: eight bytes of flags, then numbers of 32 bits.
_INFO = struct.Struct("=8x13I")
_UNACKED, _LAST_ACK = 4, 12


def _tick_s() -> float:
    return min(1.0, TICK * min(settings().lost_host_timeout, settings().frozen_node_timeout))


def _ping_s() -> float:
    return PING * min(settings().lost_host_timeout, settings().frozen_node_timeout)
