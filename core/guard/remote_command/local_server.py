"""The guard's server for programs of its node (:mod:`.shim`) that have commands run on another (:mod:`.client`)."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from ..channel.listener import BACKLOG, RETRY_SECONDS, Listener
from ..channel.unproven import Waiting
from ..channel.workers import Workers
from ..loop.limits import Complaint
from .client import call

if TYPE_CHECKING:
    from ..loop.event_loop import Loop
    from .client import Streams

SOCKET = "callers"
"""The name of the guard's socket in its folder."""

_LONGEST_PATH = 100
"""Bytes of a socket's path; Linux takes 107, and macOS 103. The folder's may have more."""

LONGEST_REQUEST = 1 << 20
"""Bytes of a program's command line: more than the kernel gives a program."""

MOST_REQUESTS, REQUEST_SECONDS = 256, 30.0
"""How many programs may be sending their request at once, and how long each may take for that."""

MOST_COMMANDS = 4096
"""Commands that run at once; more wait."""


class CommandRequests:
    """Serves the programs of this node that want a command run on another, each in a thread of its own.

    Parameters
    ----------
    loop : Loop
        Accepts them.
    say : callable
        Takes a line for the user.
    node : int
        This node's index.
    folder : str
        A private folder: who may enter it may have commands run.
    key : bytes
        What nodes show each other (:func:`~.remote_command.node_server.node_key`).
    nodes : list of dict
        "names" (what it may be called), "address" and "port" of each node's server.

    Raises
    ------
    OSError
        When there can be no socket in the folder.
    """

    def __init__(
        self,
        loop: Loop,
        say: Callable[[str], None],
        node: int,
        folder: str,
        key: bytes,
        nodes: list[dict[str, Any]],
    ) -> None:
        self._key, self._nodes, self._loop = key, nodes, loop
        sock = socket.socket(socket.AF_UNIX)
        try:
            _bind(sock, folder)
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
        complain = self._complain = Complaint(say, f"node {node}", "for programs that have commands run on other nodes")
        self._workers = Workers(loop, MOST_COMMANDS, complain)
        self._listener = Listener(loop, sock, Waiting(MOST_REQUESTS, REQUEST_SECONDS), self._begin, complain)

    def close(self) -> None:
        """Take no more. Those that are served end with their programs."""
        self._listener.close()
        self._workers.close()

    def _begin(self, program: socket.socket, address: str) -> None:
        _Request(self._loop, self._listener, program, self._serve, self._complain)

    def _serve(self, request: _Request) -> None:
        self._workers.put(partial(self._call, request.program, request.arguments, request.streams))

    def _call(self, program: socket.socket, arguments: list[str], streams: Streams) -> None:
        with program, suppress(OSError):  # the program has gone
            try:
                code = call(self._nodes, self._key, arguments, streams, program.fileno())
            finally:
                for fd in streams:
                    os.close(fd)
            program.settimeout(REQUEST_SECONDS)
            program.sendall(b"%d\n" % code)


def _bind(sock: socket.socket, folder: str) -> None:
    path = os.path.join(folder, SOCKET)
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        sock.bind(path)
        return
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        sock.bind(f"/proc/self/fd/{place}/{SOCKET}")
    finally:
        os.close(place)


class _Request:
    """A program's request as it comes: the length of the command line with the standard streams, then its arguments."""

    def __init__(
        self,
        loop: Loop,
        listener: Listener,
        program: socket.socket,
        serve: Callable[[_Request], None],
        complain: Complaint,
    ) -> None:
        self.program = program
        self.arguments: list[str] = []
        self.streams: Streams = (-1, -1, -1)
        self._loop, self._listener, self._serve = loop, listener, serve
        self._complain = complain
        self._fds = array.array("i")
        self._left = -1  # bytes to come; -1 while their number has not come
        self._data = bytearray()
        self._over = False
        program.setblocking(False)
        loop.add_reader(program, self._on_ready)
        self._place = listener.waiting.enter("", self._drop)

    def _drop(self, overdue: bool) -> bool:
        if not overdue:
            self._on_ready()  # the loop may not have come to it yet
        self._end(False)
        return True

    def _on_ready(self) -> None:
        try:
            whole = not self._over and self._read()
        except BlockingIOError:
            return
        except _NoRoom as error:
            self._complain(error)
            self._loop.remove_reader(self.program)
            self._loop.call_later(RETRY_SECONDS, self._again)
            return
        except (OSError, ValueError):  # it has gone, or is none of our programs
            self._end(False)
            return
        if whole:
            self._end(True)

    def _again(self) -> None:
        if not self._over:
            self._loop.add_reader(self.program, self._on_ready)

    def _read(self) -> bool:
        """Read what has come; whether that is all. Raises ValueError where it is not what our program sends."""
        if self._left < 0:
            _have_room(self.program)
            room = socket.CMSG_SPACE(3 * self._fds.itemsize)
            data, extra, _, _ = self.program.recvmsg(4, room, socket.MSG_CMSG_CLOEXEC)
            for level, kind, content in extra:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    self._fds.frombytes(content[: len(content) - len(content) % self._fds.itemsize])
            self._left = int.from_bytes(data, "big")
            if len(data) != 4 or len(self._fds) != 3 or self._left > LONGEST_REQUEST:
                raise ValueError
        while self._left:
            part = self.program.recv(self._left)
            if not part:
                raise ValueError
            self._data += part
            self._left -= len(part)
        return True

    def _end(self, whole: bool) -> None:
        if self._over:
            return
        self._over = True
        self._listener.leave(self._place)
        self._loop.remove_reader(self.program)
        if whole:
            self.arguments = [os.fsdecode(argument) for argument in bytes(self._data).split(b"\0")]
            self.streams = (self._fds[0], self._fds[1], self._fds[2])
            self._serve(self)
        else:
            self.program.close()
            for fd in self._fds:
                os.close(fd)


class _NoRoom(OSError):
    """No descriptor is free."""


def _have_room(sock: socket.socket) -> None:
    """Raise :class:`_NoRoom` unless a program's streams and a connection to another node have room.

    The kernel would drop streams for which there is none.
    """
    fds: list[int] = []
    try:
        for _ in range(4):
            fds.append(os.dup(sock.fileno()))
    except OSError as error:
        raise _NoRoom(*error.args) from None
    finally:
        for fd in fds:
            os.close(fd)
