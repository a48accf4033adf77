"""The accepting side's handshake of :mod:`.endpoints`: TLS and the proof of the secret, in one thread for all clients.

A client that sends nothing, or a byte a second, takes a place (:mod:`~core.guard.channel.unproven`) and no thread.
"""

from __future__ import annotations

import hmac
import socket
import ssl
from collections.abc import Callable, Iterator

from ..channel.unproven import Place, Waiting
from ..loop.event_loop import Loop
from ..loop.timeouts import tune
from .link import PROOF_BYTES, WELCOME, BulkError, Link

READ, WRITE = "read", "write"

PLACES = 1024
"""How many sockets may have sent nothing yet; each takes some 2 kB."""

HANDSHAKES = 128
"""How many may be in TLS; OpenSSL takes some 40 kB for each."""


class Handshakes:
    """Takes each socket through TLS and the proof of ``secret``, and hands it to ``take`` as a :class:`Link`.

    ``seconds`` is how long that may take; ``leave`` is called with each place in :attr:`silent` that is free again.
    All of it runs in the thread of ``loop``.
    """

    def __init__(
        self,
        loop: Loop,
        context: ssl.SSLContext,
        secret: bytes,
        seconds: float,
        take: Callable[[Link], None],
        leave: Callable[[Place], None],
    ) -> None:
        self.loop = loop
        self.context = context
        self.secret = secret
        self.silent = Waiting(PLACES, seconds)
        self.begun = Waiting(HANDSHAKES, seconds)
        self.take = take
        self.leave = leave

    def begin(self, sock: socket.socket, address: str) -> None:
        """Wait for the first bytes of a socket. Raises OSError where the loop cannot watch one more."""
        sock.setblocking(False)
        _Handshake(self, sock, address)


class _Handshake:
    def __init__(self, shared: Handshakes, sock: socket.socket, address: str) -> None:
        self._shared = shared
        self._sock = sock
        self._address = address
        self._ended = False
        self._steps: Iterator[str] | None = None
        shared.loop.add_reader(sock, self._on_ready)
        self._waiting = shared.silent
        self._place = shared.silent.enter(address, self._drop)

    def _drop(self, overdue: bool) -> bool:
        """End it. The client comes again."""
        if not overdue:
            place, moved = self._place, self._place.moved
            self._on_ready()  # the loop may not have come to it yet
            if self._ended or self._place is not place:
                return True
            if self._place.moved != moved:
                return False
        self._end()
        return True

    def _on_ready(self) -> None:
        """Go on as far as what has arrived allows."""
        if self._ended:
            return
        try:
            if self._steps is None:
                if not self._has_spoken():
                    return
                self._steps = self._go()
            self._watch(next(self._steps))
        except StopIteration:
            pass
        except Exception:  # whatever it sent, it was no proof; and an exception must not end the others' server
            self._end()

    def _has_spoken(self) -> bool:
        """Whether something has come, for which TLS has to be begun, and there is a place for that."""
        try:
            if not self._sock.recv(1, socket.MSG_PEEK):
                raise BulkError("It has gone again.")
        except BlockingIOError:
            return False
        begun = self._shared.begun
        if begun.full and not begun.drop_one():
            raise BulkError("Too many others are in their handshake.")
        self._leave()
        self._waiting, self._place = begun, begun.enter(self._address, self._drop)
        return True

    def _go(self) -> Iterator[str]:
        """The steps; each ``yield`` says what must be possible before the next."""
        shared = self._shared
        shared.loop.remove_reader(self._sock)
        self._sock = sock = shared.context.wrap_socket(self._sock, server_side=True, do_handshake_on_connect=False)
        while (needs := _try(sock.do_handshake)) is not None:
            if not self._place.begun and sock.shared_ciphers() is not None:
                self._place.goes_on()
            yield needs
        link = Link(sock, self._address)
        client, server = link.proofs(shared.secret)
        while (needs := _try(lambda: sock.send(server))) is not None:
            yield needs
        shown = bytearray()

        def receive() -> None:
            data = sock.recv(PROOF_BYTES - len(shown))
            if not data:
                raise BulkError("It has gone again.")
            shown.extend(data)

        while len(shown) < PROOF_BYTES:
            if (needs := _try(receive)) is not None:
                yield needs
        if not hmac.compare_digest(bytes(shown), client):
            raise BulkError("It does not know the secret.")
        tune(sock)
        while (needs := _try(lambda: sock.send(WELCOME))) is not None:
            yield needs
        self._ended = True
        self._forget()
        self._leave()
        shared.take(link)

    def _watch(self, needs: str) -> None:
        loop = self._shared.loop
        if needs == READ:
            loop.remove_writer(self._sock)
            loop.add_reader(self._sock, self._on_ready)
        else:
            loop.remove_reader(self._sock)
            loop.add_writer(self._sock, self._on_ready)

    def _forget(self) -> None:
        self._shared.loop.remove_reader(self._sock)
        self._shared.loop.remove_writer(self._sock)

    def _leave(self) -> None:
        if self._waiting is self._shared.silent:
            self._shared.leave(self._place)
        else:
            self._waiting.leave(self._place)

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._steps = None
            self._leave()
            if self._sock.fileno() >= 0:
                self._forget()
                self._sock.close()


def _try(step: Callable[[], object]) -> str | None:
    """Do ``step``: None when it is done, else what it needs first."""
    try:
        step()
    except ssl.SSLWantReadError:
        return READ
    except ssl.SSLWantWriteError:
        return WRITE
    return None
