"""How all servers of a guard accept connections, and go on when descriptors or memory run out.

A server goes on whatever comes and whatever runs out. Connections that have proved nothing yet have places
(:mod:`.unproven`); where descriptors or memory run out, the user gets a line once a minute, and it is tried again.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Sequence

from ..loop.event_loop import Loop, Timer
from ..loop.limits import out_of_something, raise_open_files
from .unproven import Place, Waiting

BACKLOG = 4096
"""How many may wait in the kernel's queue (its own bound, net.core.somaxconn, may be lower: they then come again)."""

ACCEPTED_AT_ONCE = 1024
"""How many sockets are accepted before the loop's other callbacks have their turn: some 15 ms."""

MOST_ACCEPTED = 1024
"""How many may be accepted and not yet begun where all places are taken. A place for one takes the drop of another one,
some 0.1 ms; in the kernel's queue a node would wait until all that came before it have had theirs."""

BEGUN_AT_ONCE = 64
"""How many of them are begun to be served then. To serve one takes ten times as long as to accept it."""

OLDEST_SHARE = 4
"""One of so many that are begun is the one that has waited longest. The others are the latest to come: behind a crowd
of thousands that prove nothing a node would otherwise wait until all of these have been served."""

RETRY_SECONDS = 0.1
"""After which it is tried again, where descriptors or memory have run out."""

SPARE_FILES, LEAST_PLACES = 16, 8
"""Where descriptors have run out, there are so many places less than were taken, and so many at least, for
:data:`SCARCE_SECONDS`: proved connections need descriptors to be served."""

SCARCE_SECONDS = 60.0

_SWEEP_SECONDS = 0.25

_NEXT_SWEEP_SECONDS = 0.02
"""After a sweep that has left some that are overdue: a full house of 2,048 is then dropped in 2.6 s."""


class Listener:
    """Accepts at ``sock`` in ``loop``, as long as there are places.

    Parameters
    ----------
    loop : Loop
        Where it runs.
    sock : socket.socket
        A listening socket, which :meth:`close` closes.
    waiting, others : Waiting
        The places of those that have proved nothing yet: new ones come into the first.
    begin : callable
        ``begin(sock, address)`` starts to serve a connection: enters it into ``waiting``, and calls :meth:`leave` when
        it needs that place no more. It may raise OSError, and then has not kept the socket.
    complain : callable
        Gets the OSError that says that descriptors or memory have run out.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        waiting: Waiting,
        begin: Callable[[socket.socket, str], None],
        complain: Callable[[BaseException], None],
        others: Sequence[Waiting] = (),
    ) -> None:
        self.waiting = waiting
        self._all = (waiting, *others)
        self._loop = loop
        self._sock = sock
        self._begin = begin
        self._complain = complain
        self._sweep_seconds = min(_SWEEP_SECONDS, waiting.seconds / 4)
        self._limits = [one.limit for one in self._all]
        self._scarce: Timer | None = None
        self._sweep: Timer | None = None
        self._accepted: deque[tuple[socket.socket, str]] = deque()  # not yet begun, the oldest first
        self._turn: Timer | None = None
        self._has_paused = False  # until the next turn of those that are accepted
        self._listening = False
        self._closed = False
        sock.setblocking(False)
        self._resume()

    def close(self) -> None:
        """Accept no more connections, and drop those that have a place. Harmless when repeated."""
        if self._closed:
            return
        self._closed = True
        self._pause()
        self._sock.close()
        self._forget_accepted(len(self._accepted))
        for waiting in self._all:
            waiting.drop_all()
        for timer in (self._sweep, self._scarce, self._turn):
            if timer is not None:
                timer.cancel()

    def leave(self, place: Place) -> None:
        """A connection has proved itself, or is over: its place is free. Harmless when repeated."""
        self.waiting.leave(place)
        self._resume()

    def _resume(self) -> None:
        if not self._closed and not self._listening:
            self._listening = True
            self._loop.add_reader(self._sock, self._on_readable)

    def _pause(self, seconds: float | None = None) -> None:
        if self._listening:
            self._listening = False
            self._loop.remove_reader(self._sock)
        if seconds is not None:
            self._loop.call_later(seconds, self._resume)

    def _on_readable(self) -> None:
        self._accept()
        self._begin_some()

    def _begin_some(self) -> None:
        """Serve some of those that are accepted, and the others after the loop's other callbacks."""
        delay = 0.0
        for count in range(min(len(self._accepted), BEGUN_AT_ONCE)):
            if self.waiting.full and not self.waiting.drop_one():
                delay = self.waiting.seconds_to_wait()
                break
            sock, address = self._accepted.popleft() if count % OLDEST_SHARE == 0 else self._accepted.pop()
            try:
                self._begin(sock, address)
            except OSError as error:  # gone again; or the loop cannot watch one more
                sock.close()
                if out_of_something(error):
                    self._complain(error)
                    self._need_files()
                    self._pause(delay := RETRY_SECONDS)
                    break
        if self._turn is None and self._accepted:
            self._turn = self._loop.call_later(delay, self._on_turn)
        if self._has_paused and not delay:
            self._has_paused = False
            self._resume()
        if self._sweep is None and any(map(len, self._all)):
            self._sweep = self._loop.call_later(self._sweep_seconds, self._drop_overdue)

    def _on_turn(self) -> None:
        self._turn = None
        self._begin_some()

    def _has_room(self) -> bool:
        """Whether one more may be accepted; where descriptors have run out, after one has been dropped for it."""
        accepted, left = len(self._accepted), self.waiting.limit - len(self.waiting)
        if self._scarce is None:
            return accepted < max(MOST_ACCEPTED, left)
        if accepted >= left and len(self.waiting) and self.waiting.drop_one():
            left = self.waiting.limit - len(self.waiting)
        return accepted < left

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            if not self._has_room():
                # A connection in the kernel's queue keeps the socket readable: looking again at once would take all of
                # a core. Those that are accepted have their turn first.
                self._has_paused = bool(self._accepted)
                self._pause(None if self._accepted else self.waiting.seconds_to_wait())
                return
            try:
                sock, peer = self._sock.accept()
            except OSError as error:
                if not out_of_something(error):
                    return
                if raise_open_files():
                    continue
                self._complain(error)
                self._need_files()
                self._pause(RETRY_SECONDS)
                return
            # Of an IPv4 address always as such; a unix socket's has none.
            self._accepted.append((sock, str(peer[0]).removeprefix("::ffff:") if isinstance(peer, tuple) else ""))

    def _forget_accepted(self, count: int) -> None:
        for _ in range(count):
            self._accepted.popleft()[0].close()

    def _need_files(self) -> None:
        """Give back descriptors of connections that have proved nothing."""
        if self._scarce is None:
            self._scarce = self._loop.call_later(SCARCE_SECONDS, self._enough_files)
        for waiting in self._all:
            accepted = len(self._accepted) if waiting is self.waiting else 0
            waiting.limit = max(LEAST_PLACES, min(waiting.limit, len(waiting) + accepted - SPARE_FILES))
            self._forget_accepted(min(accepted, max(0, len(waiting) + accepted - waiting.limit)))
            while len(waiting) > waiting.limit and waiting.drop_one():
                pass

    def _enough_files(self) -> None:
        self._scarce = None
        for waiting, limit in zip(self._all, self._limits, strict=True):
            waiting.limit = limit

    def _drop_overdue(self) -> None:
        more = [waiting.drop_overdue() for waiting in self._all]
        again = any(map(len, self._all)) and not self._closed
        seconds = _NEXT_SWEEP_SECONDS if any(more) else self._sweep_seconds
        self._sweep = self._loop.call_later(seconds, self._drop_overdue) if again else None
