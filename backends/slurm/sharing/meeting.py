"""Where those processes of one run meet that wait for its tasks: a socket that one of them serves for all.

The socket has a name, and no file: it is gone with the process that serves it, whatever ends that, and another process
can take its place at once. Nothing is left behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

MEET_S = 10.0
"""For a process to connect: the one that serves may be busy with the import of Metaflow."""

WAITING = 1024
"""Connections that may wait to be accepted: each of a run's processes has one."""

_LONGEST = 1 << 20  # bytes of a message; the options of a job are some hundred

_STEP_S = 0.02


def address(*parts: str) -> str:
    """The name of the socket of this user's processes that agree in these parts."""
    return f"\0metaflow-slurm-{os.getuid()}-" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


class Link:
    """A connection for messages in JSON, one a line.

    Attributes
    ----------
    pid : int
        Of the process at the other end.
    is_ours : bool
        Whether that is this user's: others could know the socket's name, too.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket, self._received = connection, b""
        size = struct.calcsize("3i")
        self.pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        self.is_ours = uid == os.getuid()

    def send(self, **message: Any) -> bool:
        """Whether the other end is still there to get it."""
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def receive(self, timeout_s: float | None) -> dict[str, Any] | None:
        """The next message; None where the other end is gone. Raises TimeoutError."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while b"\n" not in self._received and len(self._received) < _LONGEST:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            try:
                part = self._socket.recv(65536)
            except TimeoutError:
                raise
            except OSError:
                return None
            finally:
                self._socket.settimeout(None)
            if not part:
                return None
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        try:
            message = json.loads(line)
        except ValueError:
            return None
        return message if isinstance(message, dict) else None

    def close(self) -> None:
        """Close it, and so end what the other end waits for."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def meet(name: str, serve: Callable[[socket.socket], None]) -> Link | None:
    """Connect to the process that serves this name. Where none does, this one will: ``serve`` gets the socket.

    Returns None where that cannot be: the tasks are submitted one by one then.
    """
    deadline = time.monotonic() + MEET_S
    while time.monotonic() < deadline:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(MEET_S)
            connection.connect(name)
            connection.settimeout(None)
        except ConnectionRefusedError:
            connection.close()
            if not _serves(name, serve):
                time.sleep(_STEP_S)  # another process is about to
            continue
        except OSError:
            connection.close()
            return None
        link = Link(connection)
        if link.is_ours:
            return link
        link.close()
        return None
    return None


def _serves(name: str, serve: Callable[[socket.socket], None]) -> bool:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(name)
        listener.listen(WAITING)
    except OSError:
        listener.close()
        return False
    serve(listener)
    return True
