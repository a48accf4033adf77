"""Encrypted, authenticated connections between the nodes of one gang: for files and values, and for commands that one
node has another run.

TLS 1.2 with ECDHE and a certificate that proves nothing (see :mod:`certificate`). Both sides then show an HMAC, under
the gang's secret, over the TLS session itself ("tls-unique", RFC 5929), before anything else is sent. Someone in the
middle, who must end one TLS session and begin another, has two different sessions, and for neither can the HMAC be
made, or taken from the other one. TLS 1.2 and not 1.3, because the standard library gives a session's binding for 1.2
only; no renegotiation and no resumption, since the binding is sound without them only.

Blocking, and in threads: the guard's loop imports this module only when there is a connection to serve or to make.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable

from ..channel.listener import BACKLOG, Listener
from ..channel.workers import Workers
from ..loop.event_loop import Loop
from ..loop.framing import fault
from ..loop.limits import out_of_something, ran_out, what_ran_out
from ..loop.timeouts import SILENT, tune
from ..settings import settings
from .handshake import Handshakes
from .link import BulkError, Dropped, Link, client_context, server_context

CONNECT_SECONDS = 10.0
"""How long a server may take at least to be reached ..."""

ATTEMPT_SECONDS, PAUSE_SECONDS = 3.0, 0.2
"""... in attempts of so many seconds, with a pause after each: the kernel doubles its own pauses."""

FIRST_PAUSE_SECONDS = 0.02
"""The pause after a server has dropped the connection; the next is twice as long."""


def connect(address: str, port: int, secret: bytes) -> Link:
    """A connection to the :class:`SecureServer` at ``address``, with the secret proved on both sides.

    Where nothing comes back, it is tried again until ``lost_host_timeout`` is over: the network may be interrupted. A
    server to which too many connect at once drops some; then it is tried again for :data:`CONNECT_SECONDS`.

    Raises
    ------
    BulkError
        Nobody answers there, or somebody who does not know the secret.
    """
    where = f"{f'[{address}]' if ':' in address else address} port {port}"
    start, pause = time.monotonic(), FIRST_PAUSE_SECONDS
    deadline = start + max(CONNECT_SECONDS, settings().lost_host_timeout)
    while True:
        begun = time.monotonic()
        try:
            sock = _wrap(client_context(), socket.create_connection((address, port), ATTEMPT_SECONDS), False)
        except OSError as error:
            silent = isinstance(error, TimeoutError) or fault(error) in SILENT
            if silent and time.monotonic() < deadline:
                time.sleep(PAUSE_SECONDS)
                continue
            if out_of_something(error):
                raise BulkError(f"Cannot connect to {where}: the guard has {what_ran_out(error)}.") from None
            raise BulkError(
                f"Cannot connect to {where}: {error.strerror or error}. Check that the security group, firewall or "
                "network policy lets the nodes of one job reach each other on all ports."
            ) from None
        link = Link(sock, where)
        try:
            link.prove(secret, settings().transfer_stall_timeout)
        except BaseException as error:
            link.close()
            if not isinstance(error, BulkError):
                raise
            # A server drops a handshake that stands still, which is not to be the end of one that was interrupted.
            now = time.monotonic()
            again = isinstance(error, Dropped) and now < start + CONNECT_SECONDS
            if not again and (now - begun <= settings().handshake_timeout / 2 or now >= deadline):
                raise
            time.sleep(pause)
            pause = min(2 * pause, PAUSE_SECONDS)
        else:
            return link


class SecureServer:
    """Listens, and serves each connection that proves the secret in a thread of its own, by :meth:`serve`.

    One more thread takes all who come through TLS and the proof, and waits for none of them (:mod:`.handshake`).

    Parameters
    ----------
    host : str
        Own IP address to listen on; "" for all.
    secret : bytes
        What the other side must know.
    folder : str
        A private folder, for the moment of making the server's key.
    handshake_seconds : float
        See the setting ``handshake_timeout``, which is the default.
    complain : callable, optional
        Gets, in any thread, the error that says that descriptors, memory or threads have run out. The server goes on.

    Raises
    ------
    OSError
        When the address is not this machine's.
    RuntimeError
        When there is no thread for the server.
    """

    def __init__(
        self,
        host: str,
        secret: bytes,
        folder: str,
        handshake_seconds: float | None = None,
        complain: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._secret = secret
        self._complain = complain
        self._closed = False
        self._links: set[Link] = set()  # that have proved the secret
        context = server_context(folder)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.create_server((host, 0), family=family, backlog=BACKLOG)
        self.port: int = sock.getsockname()[1]
        self._loop = Loop()
        self._workers = Workers(self._loop, settings().transfer_connections, complain)
        handshakes = Handshakes(
            self._loop,
            context,
            secret,
            handshake_seconds or settings().handshake_timeout,
            self._take,
            lambda place: self._listener.leave(place),
        )
        self._listener = Listener(self._loop, sock, handshakes.silent, handshakes.begin, complain, [handshakes.begun])
        self._thread = threading.Thread(target=self._run, name="secure", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._listener.close()
            self._loop.close()
            raise

    def close(self) -> None:
        """End all connections and their threads."""
        if self._closed:
            return
        self._closed = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(2 * settings().handshake_timeout)

    def serve(self, link: Link) -> None:
        """Serve one connection; a :class:`BulkError` that it raises just ends that."""
        raise NotImplementedError

    def _run(self) -> None:
        self._loop.run()
        self._listener.close()
        not_begun = self._workers.close()
        for link in list(self._links):
            link.abort()
        for task in not_begun:
            task()  # finds its connection shut, and closes it
        if self._workers.join(settings().handshake_timeout):
            self._loop.close()

    def _take(self, link: Link) -> None:
        self._links.add(link)
        self._workers.put(lambda: self._serve(link))

    def _serve(self, link: Link) -> None:
        try:
            with link:
                link.timeout(settings().transfer_stall_timeout)
                self.serve(link)
        except BulkError:
            pass  # the other side is gone
        except (OSError, RuntimeError, MemoryError) as error:
            if ran_out(error):
                self._complain(error)  # what was asked for fails on the other side, and this server goes on
            elif not isinstance(error, OSError):
                raise
        finally:
            self._links.discard(link)


def _wrap(context: ssl.SSLContext, plain: socket.socket, server_side: bool) -> ssl.SSLSocket:
    try:
        tune(plain)
        return context.wrap_socket(plain, server_side=server_side, do_handshake_on_connect=False)
    except OSError:
        plain.close()
        raise
