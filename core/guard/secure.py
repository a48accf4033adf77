"""Encrypted, authenticated connections between the nodes of one gang: for files (:mod:`bulk`), and for what one node
has another do (:mod:`peer`).

TLS 1.2 with ECDHE and a certificate that proves nothing (see :mod:`certificate`). Both sides then show an HMAC, under
the gang's secret, over the TLS session itself ("tls-unique", RFC 5929), before anything else is sent. Someone in the
middle, who must end one TLS session and begin another, has two different sessions, and for neither can the HMAC be
made, or taken from the other one. TLS 1.2 and not 1.3, because the standard library tells a session's binding for 1.2
only; no renegotiation and no resumption, since the binding is sound without them only.

Blocking, and in threads: the guard's loop imports this module only when there is a connection to serve or to make.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time

from .bulklink import BulkError, Link, client_context, server_context
from .limits import ran_out
from .timeouts import SILENT, TIMEOUTS, tune
from .wire import fault

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes 3 ms to import
    from collections.abc import Callable

HANDSHAKE_SECONDS = 5.0
"""How long a socket may take to prove the secret to a server."""

STALL_SECONDS = 60.0
"""How long the other side may take for its next step, or for the next bytes of a file."""

CONNECT_SECONDS = 10.0
"""How long a server may take at least to be reached ..."""

ATTEMPT_SECONDS, PAUSE_SECONDS = 3.0, 0.2
"""... in attempts of so many seconds, with a pause after each: the kernel doubles its own pauses."""

PAUSE_S = 0.05
"""After something has run out, until a server takes the next connection."""

MAX_CONNECTIONS = 64
"""Connections that a server serves at once; the others wait in the kernel's queue."""


def connect(address: str, port: int, secret: bytes) -> Link:
    """A connection to the :class:`SecureServer` at ``address``, with the secret proved on both sides.

    Where nothing comes back, it is tried again until ``lost_host_timeout`` is over: the network may be interrupted.

    Raises
    ------
    BulkError
        Nobody answers there, or somebody who does not know the secret.
    """
    where = f"{f'[{address}]' if ':' in address else address} port {port}"
    deadline = time.monotonic() + max(CONNECT_SECONDS, TIMEOUTS.lost_host)
    while True:
        begun = time.monotonic()
        try:
            sock = _wrap(client_context(), socket.create_connection((address, port), ATTEMPT_SECONDS), False)
        except OSError as error:
            silent = isinstance(error, TimeoutError) or fault(error) in SILENT
            if silent and time.monotonic() < deadline:
                time.sleep(PAUSE_SECONDS)
                continue
            raise BulkError(
                f"Cannot connect to {where}: {error.strerror or error}. Check that the security group, firewall or "
                "network policy lets the nodes of one job reach each other on all ports."
            ) from None
        link = Link(sock, where)
        try:
            link.prove(secret, "client", STALL_SECONDS)
        except BaseException as error:
            link.close()
            # A server drops a handshake that stands still, which is not to be the end of one that was interrupted.
            stood_still = time.monotonic() - begun > HANDSHAKE_SECONDS / 2
            if not isinstance(error, BulkError) or not stood_still or time.monotonic() >= deadline:
                raise
        else:
            return link


class SecureServer:
    """Listens, and serves each connection that proves the secret in a thread of its own, by :meth:`serve`.

    Parameters
    ----------
    host : str
        Own IP address to listen on; "" for all.
    secret : bytes
        What the other side must know.
    folder : str
        A private folder, for the moment of making the server's key.
    handshake_seconds : float
        See :data:`HANDSHAKE_SECONDS`.

    Raises
    ------
    OSError
        When the address is not this machine's.
    """

    def __init__(self, host: str, secret: bytes, folder: str, handshake_seconds: float = HANDSHAKE_SECONDS) -> None:
        self._secret = secret
        self._handshake_seconds = handshake_seconds
        self._context = server_context(folder)
        self._room = threading.Semaphore(MAX_CONNECTIONS)
        self._lock = threading.Lock()
        self._closed = False
        self.complain: Callable[[BaseException], None] = lambda error: None  # tells what this server has run out of
        self._live: dict[threading.Thread, Link] = {}
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._sock = socket.create_server((host, 0), family=family, backlog=MAX_CONNECTIONS)
        self.port: int = self._sock.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name="secure", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End all connections and their threads."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            live = dict(self._live)
        self._sock.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept(), which close() would not
        for link in live.values():
            link.abort()
        self._room.release()
        for thread in (self._thread, *live):
            thread.join(HANDSHAKE_SECONDS)
        self._sock.close()

    def _lacks(self, error: BaseException) -> None:
        if ran_out(error):
            self.complain(error)

    def serve(self, link: Link) -> None:
        """Serve one connection; a :class:`BulkError` that it raises just ends that."""
        raise NotImplementedError

    def _accept(self) -> None:
        while True:
            self._room.acquire()
            try:
                plain, peer = self._sock.accept()
                link = Link(_wrap(self._context, plain, server_side=True), str(peer[0]))
            except (OSError, MemoryError) as error:
                if self._closed:
                    return
                # The other side has gone again, or no descriptor is free: not a thing of microseconds.
                self._lacks(error)
                self._room.release()
                time.sleep(PAUSE_S)
                continue
            thread = threading.Thread(target=self._serve, args=(link,), name="secure", daemon=True)
            with self._lock:
                if self._closed:
                    link.close()
                    return
                self._live[thread] = link
                try:
                    thread.start()
                except RuntimeError as error:  # no thread is left: this one is asked to come again, by its end
                    del self._live[thread]
                    link.abort()
                    self._lacks(error)
                    self._room.release()
                    time.sleep(PAUSE_S)

    def _serve(self, link: Link) -> None:
        try:
            with link:
                link.prove(self._secret, "server", self._handshake_seconds)
                link.timeout(STALL_SECONDS)
                self.serve(link)
        except BulkError:
            pass  # the other side is gone, or is none of ours
        except (OSError, RuntimeError, MemoryError) as error:
            if not isinstance(error, OSError) and not ran_out(error):
                raise
            self._lacks(error)  # what was asked for fails on the other side, and this server goes on
        finally:
            with self._lock:
                self._live.pop(threading.current_thread(), None)
            self._room.release()


def _wrap(context: ssl.SSLContext, plain: socket.socket, server_side: bool) -> ssl.SSLSocket:
    try:
        tune(plain)
        return context.wrap_socket(plain, server_side=server_side, do_handshake_on_connect=False)
    except OSError:
        plain.close()
        raise
