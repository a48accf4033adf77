"""One encrypted connection of :mod:`.endpoints`: the proof of the secret, small headers, and bytes."""

from __future__ import annotations

import hmac
import json
import os
import socket
import ssl
import time
from contextlib import suppress
from typing import IO, Any

from ..channel.connection import sentence
from ..loop.framing import Nonsense, fault
from ..loop.untrusted import parse
from .certificate import self_signed

CHUNK = 256 * 1024
"""Bytes that are in memory at a time."""

_HEADER_BYTES = 4096
PROOF_BYTES = 32

WELCOME = b"\1"
"""What a server sends when it has taken the client's proof."""


class BulkError(Exception):
    """A file could not be sent or fetched; the message says where, why, and what to check."""


class Closed(BulkError):
    """The other side has closed the connection, or it broke."""


class Dropped(BulkError):
    """A server closed the connection before it had taken the proof: nothing has begun, and it may be tried again."""


class Link:
    """An encrypted connection; whatever happens to it is a :class:`BulkError`.

    ``peer`` is how messages call the other end. The link owns ``sock``.
    """

    def __init__(self, sock: ssl.SSLSocket, peer: str) -> None:
        self._sock = sock
        self._peer = peer

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket. Not from another thread than the one that uses it: see :meth:`abort`."""
        self._sock.close()

    def abort(self) -> None:
        """Make every call that another thread has in progress, and every later one, fail."""
        with suppress(OSError):  # it may not be connected any more
            # The plain method: the one of SSLSocket makes it an unencrypted socket first.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def timeout(self, seconds: float | None) -> None:
        """Give each later call so many seconds; None for any number."""
        self._sock.settimeout(seconds)

    def prove(self, secret: bytes, seconds: float) -> None:
        """As a client: agree on keys, and prove the secret to each other, within ``seconds``.

        Nothing may be sent or believed before. ``seconds`` is each later call's limit too.
        Raises :class:`Dropped` where the server has closed the connection before that, and :class:`BulkError` where it
        is none of this gang.
        """
        deadline = time.monotonic() + seconds
        self.timeout(seconds)
        try:
            self._sock.do_handshake()
            client, server = self.proofs(secret)
            if not hmac.compare_digest(self.exactly(PROOF_BYTES, deadline), server):
                raise BulkError(
                    f"{self._peer} does not know this gang's secret: another gang or program uses this port, or "
                    "something between the two nodes decrypts the connection."
                )
            self.send(client)
            if self.exactly(len(WELCOME), deadline) != WELCOME:
                raise BulkError(f"{self._peer} does not follow the protocol of a gang.")
        except (ssl.SSLEOFError, ConnectionError) as error:
            raise Dropped(f"The connection to {self._peer} broke: {fault(error)}.") from None
        except ssl.SSLError as error:
            raise BulkError(f"{self._peer} does not follow the protocol of a gang ({error.reason or error}).") from None
        except (OSError, ValueError) as error:
            raise self._broken(error) from None
        except Closed as error:
            raise Dropped(str(error)) from None
        self.timeout(seconds)

    def proofs(self, secret: bytes) -> tuple[bytes, bytes]:
        """What client and server show over this very connection, once TLS is agreed on."""
        binding = self._sock.get_channel_binding("tls-unique")
        if not binding or self._sock.session_reused or self._sock.version() != "TLSv1.2":
            raise BulkError(f"The encryption agreed with {self._peer} cannot be tied to the gang's secret.")
        client, server = (
            hmac.digest(secret, f"gang bulk {who} ".encode() + binding, "sha256") for who in ("client", "server")
        )
        return client, server

    def send(self, data: bytes | memoryview) -> None:
        """Send all of ``data``."""
        try:
            self._sock.sendall(data)
        except (OSError, ValueError) as error:
            raise self._broken(error) from None

    def receive(self, most: int) -> bytes:
        """At least one byte, and at most ``most``."""
        try:
            data = self._sock.recv(most)
        except (OSError, ValueError) as error:
            raise self._broken(error) from None
        if not data:
            raise Closed(f"{self._peer} closed the connection too early.")
        return data

    def send_header(self, header: dict[str, Any]) -> None:
        """Send a small JSON object."""
        text = json.dumps(header).encode()
        if len(text) > _HEADER_BYTES:
            raise BulkError(f"A request of {len(text)} bytes is too large: {_HEADER_BYTES} is the limit.")
        self.send(len(text).to_bytes(4, "big") + text)

    def header(self) -> dict[str, Any]:
        """Receive a small JSON object."""
        size = int.from_bytes(self.exactly(4), "big")
        if size > _HEADER_BYTES:
            raise BulkError(f"{self._peer} announces a header of {size} bytes; {_HEADER_BYTES} is the limit.")
        try:
            return parse(self.exactly(size))
        except Nonsense:
            raise BulkError(f"{self._peer} sent a header that is not a JSON object.") from None

    def answer(self) -> dict[str, Any]:
        """Receive the server's answer; its error, where it has one, is raised."""
        header = self.header()
        if "error" in header:
            raise BulkError(f"{self._peer} refuses: {sentence(header['error'])}")
        return header

    def send_file(self, source: IO[bytes], size: int) -> None:
        """Send ``size`` bytes of ``source``."""
        while size:
            data = source.read(min(size, CHUNK))
            if not data:
                raise BulkError("The file became shorter while it was sent.")
            self.send(data)
            size -= len(data)

    def fill(self, room: memoryview) -> None:
        """Receive as many bytes as ``room`` has, in place."""
        # There are sixty-four TLS records in each MiB, and SSLSocket's own method is a Python call for each.
        read = self._sock._sslobj.read  # type: ignore[attr-defined]
        filled, size = 0, len(room)
        try:
            while filled < size:
                count = read(size - filled, room[filled:])
                if not count:
                    raise BulkError(f"{self._peer} closed the connection too early.")
                filled += count
        except (OSError, ValueError) as error:
            raise self._broken(error) from None

    def exactly(self, size: int, deadline: float | None = None) -> bytes:
        """The next ``size`` bytes."""
        parts = []
        while size:
            if deadline is not None:
                self.timeout(max(0.001, deadline - time.monotonic()))
            parts.append(self.receive(size))
            size -= len(parts[-1])
        return b"".join(parts)

    def _broken(self, error: OSError | ValueError) -> BulkError:
        why = fault(error) if isinstance(error, OSError) else str(error)
        kind = Closed if isinstance(error, (ConnectionError, ssl.SSLEOFError)) else BulkError
        return kind(f"The connection to {self._peer} broke: {why}.")


def server_context(folder: str) -> ssl.SSLContext:
    """A fresh key for a server. ``folder`` must be private: the key is in it for the moment of being loaded."""
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    path = os.path.join(folder, f".{os.urandom(8).hex()}.pem")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "w") as file:
            file.write(self_signed())
        context.load_cert_chain(path)  # takes a path only
    finally:
        os.unlink(path)
    return context


def client_context() -> ssl.SSLContext:
    """What a client needs: the certificate is looked at by nobody."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    # AES-128 first: a file that passes through many nodes is encrypted and decrypted on each.
    context.set_ciphers("AES128+ECDHE+AESGCM:ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL:!PSK")
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    return context
