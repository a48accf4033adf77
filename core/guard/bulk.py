"""Files between the nodes of one gang: encrypted, authenticated, of any size, in constant memory.

TLS 1.2 with ECDHE and a certificate that proves nothing (see :mod:`certificate`). Both sides then show an HMAC, under
the gang's secret, over the TLS session itself ("tls-unique", RFC 5929), before a name or a byte of a file is sent.
Someone in the middle, who must end one TLS session and begin another, has two different sessions, and for neither can
the HMAC be made, or taken from the other one. TLS 1.2 and not 1.3, because the standard library tells a session's
binding for 1.2 only; no renegotiation and no resumption, since the binding is sound without them only.

Blocking, and in threads: the guard's loop imports this module only when there is a file to move.
"""

from __future__ import annotations

import os
import socket
import ssl
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .bulklink import CHUNK, BulkError, Link, client_context, server_context
from .session import tune

__all__ = ["BulkError", "BulkServer", "get", "put"]

HANDSHAKE_SECONDS = 5.0
"""How long a socket may take to prove the secret to a server."""

STALL_SECONDS = 60.0
"""How long the other side may take for its next step, or for the next bytes of a file."""

CONNECT_SECONDS = 10.0

MAX_CONNECTIONS = 64
"""Connections that a server serves at once; the others wait in the kernel's queue."""

_NAME_BYTES = 200


def put(address: str, port: int, secret: bytes, name: str, source_path: str) -> None:
    """Send the file ``source_path`` to the :class:`BulkServer` at ``address``, where it becomes ``name``.

    Raises
    ------
    BulkError
        When it is not there as a whole afterwards. A file that was there before as ``name`` is untouched then.
    OSError
        When the source cannot be read.
    """
    with open(source_path, "rb") as source, _connected(address, port, secret) as link:
        size = os.fstat(source.fileno()).st_size
        link.send_header({"put": name, "size": size})
        link.answer()
        try:
            link.send_file(source, size)
        except BulkError:
            link.answer()  # says why the server stopped taking it, where it could say so
            raise
        link.answer()


def get(address: str, port: int, secret: bytes, name: str, target_path: str) -> None:
    """Fetch ``name`` from the :class:`BulkServer` at ``address`` into the file ``target_path`` (mode 0600).

    Raises
    ------
    BulkError
        When it could not be fetched as a whole. A file that was there before at ``target_path`` is untouched then.
    OSError
        When the target cannot be written.
    """
    with _connected(address, port, secret) as link:
        link.send_header({"get": name})
        _receive(link, _size(link.answer().get("size")), target_path)


@contextmanager
def _connected(address: str, port: int, secret: bytes) -> Iterator[Link]:
    where = f"{f'[{address}]' if ':' in address else address} port {port}"
    try:
        plain = socket.create_connection((address, port), CONNECT_SECONDS)
        sock = _wrap(client_context(), plain, server_side=False)
    except OSError as error:
        raise BulkError(
            f"Cannot connect to {where}: {error.strerror or error}. Check that the security group, firewall or network "
            "policy lets the nodes of one job reach each other on all ports."
        ) from None
    with Link(sock, where) as link:
        link.prove(secret, "client", STALL_SECONDS)
        yield link


class BulkServer:
    """Takes and gives the files of one folder, each connection in a thread of its own.

    Parameters
    ----------
    host : str
        Own IP address to listen on; "" for all.
    secret : bytes
        The gang's secret.
    folder : str
        Where the files are, on this node. Names are plain file names that do not begin with a dot. A file appears
        under its name when all of it is there, with mode 0600.
    handshake_seconds : float
        See :data:`HANDSHAKE_SECONDS`.

    Raises
    ------
    OSError
        When the address is not this machine's.
    """

    def __init__(self, host: str, secret: bytes, folder: str, handshake_seconds: float = HANDSHAKE_SECONDS) -> None:
        self._secret = secret
        self._folder = folder
        self._handshake_seconds = handshake_seconds
        self._context = server_context(folder)
        self._room = threading.Semaphore(MAX_CONNECTIONS)
        self._lock = threading.Lock()
        self._closed = False
        self._live: dict[threading.Thread, Link] = {}
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._sock = socket.create_server((host, 0), family=family, backlog=MAX_CONNECTIONS)
        self.port: int = self._sock.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name="bulk", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End all transfers and their threads. What was not complete is removed."""
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

    def _accept(self) -> None:
        while True:
            self._room.acquire()
            try:
                plain, peer = self._sock.accept()
                link = Link(_wrap(self._context, plain, server_side=True), str(peer[0]))
            except OSError:
                if self._closed:
                    return
                # The other side has gone again, or no descriptor is free: not a thing of microseconds.
                self._room.release()
                time.sleep(0.05)
                continue
            thread = threading.Thread(target=self._serve, args=(link,), name="bulk", daemon=True)
            with self._lock:
                if self._closed:
                    link.close()
                    return
                self._live[thread] = link
            thread.start()

    def _serve(self, link: Link) -> None:
        try:
            with link:
                link.prove(self._secret, "server", self._handshake_seconds)
                link.timeout(STALL_SECONDS)
                try:
                    self._answer(link)
                except BulkError as error:
                    link.send_header({"error": str(error)})
                except OSError as error:
                    link.send_header({"error": f"{error.filename or self._folder}: {error.strerror or error}."})
        except BulkError:
            pass  # the other side is gone, or is none of ours
        finally:
            with self._lock:
                self._live.pop(threading.current_thread(), None)
            self._room.release()

    def _answer(self, link: Link) -> None:
        request = link.header()
        if "put" in request:
            path, size = self._path(request["put"]), _size(request.get("size"))
            room = os.statvfs(self._folder)
            if size > room.f_bavail * room.f_frsize:
                raise BulkError(f"There is no room for {size} bytes in {self._folder}.")
            link.send_header({})
            _receive(link, size, path)
            link.send_header({})
        else:
            path = self._path(request.get("get"))
            # Not through a link, which may lead out of the folder, and not waiting for the writer of a pipe.
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                os.close(fd)
                raise BulkError(f"{path} is not a file.")
            with open(fd, "rb") as source:
                link.send_header({"size": status.st_size})
                try:
                    link.send_file(source, status.st_size)
                except (BulkError, OSError):
                    # An error's sentence would be taken for a part of the file; its early end is understood.
                    link.abort()
                    raise

    def _path(self, name: object) -> str:
        if (
            not isinstance(name, str)
            or not name.isprintable()
            or name.startswith(".")
            or "/" in name
            or os.sep in name
            or not 0 < len(name.encode()) <= _NAME_BYTES
        ):
            raise BulkError(f"{str(name)[:80]!r} is not a plain file name.")
        return os.path.join(self._folder, name)


def _wrap(context: ssl.SSLContext, plain: socket.socket, server_side: bool) -> ssl.SSLSocket:
    try:
        tune(plain)
        return context.wrap_socket(plain, server_side=server_side, do_handshake_on_connect=False)
    except OSError:
        plain.close()
        raise


def _size(value: object) -> int:
    if type(value) is not int or value < 0:
        raise BulkError(f"{value!r} is not a file's size.")
    return value


def _receive(link: Link, size: int, path: str) -> None:
    """Write the next ``size`` bytes to ``path``, which is replaced when all are there."""
    part = os.path.join(os.path.dirname(path), f".{os.urandom(8).hex()}.part")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "wb") as target:
            while size:
                data = link.receive(min(size, CHUNK))
                target.write(data)
                size -= len(data)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise
