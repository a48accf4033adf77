"""Commands that another node has this one run: the serving side of :mod:`.client`.

The thread of the connection does all its reading and writing (see :mod:`.protocol`). The guard's loop starts and ends
the command, and one thread for each stream brings its output; they leave what they have, and wake the connection.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from ..processes import process_table
from ..tls.link import BulkError, Link
from .protocol import COMMAND, ENDED, PIECE, REFUSED, STDERR, STDIN, STDOUT, TAKEN, WINDOW, Exchange, Outlet, taken

if TYPE_CHECKING:
    from ..children.launch import Launch
    from ..children.launcher import Launcher
    from ..children.output import Sink
    from ..loop.framing import Header

DRAIN_S = 0.5
"""How long output may stay open, with nothing in it, once all that was started is gone: something slipped away."""

LINGER_S = 5.0
"""How long a caller that knows the exit code may take to close. We do not: it would lose what is under way."""


def serve(link: Link, request: Header, launcher: Launcher, env: dict[str, str], cwd: str) -> None:
    """Run the command of one caller, until it has ended and the caller knows how, or until the caller has gone.

    The command comes in the first frame, since it may be longer than a header, and is run by ``/bin/sh -c``, as an SSH
    server does it. Raises :class:`BulkError` when the caller has gone.
    """
    exchange = Exchange(link)
    try:
        wake, stdin = _pipe(True), _pipe(False)
    except OSError as error:
        exchange.send(REFUSED, f"Node {launcher.node} cannot run a command: {error.strerror}.".encode())
        _linger(exchange)
        return
    run = _Run(exchange, launcher, {**env, process_table.GANG_MARKER: launcher.name}, cwd, wake, stdin)
    try:
        run.serve()
    finally:
        run.close()


def _pipe(reader_waits_not: bool) -> tuple[int, int]:
    read, write = os.pipe()
    os.set_blocking(write, False)
    if reader_waits_not:
        os.set_blocking(read, False)
    return read, write


class _Output:
    """Takes one stream of the command, on that stream's own thread."""

    def __init__(self, run: _Run, stream: int) -> None:
        self._run, self._stream = run, stream

    def write(self, data: bytes) -> None:
        self._run.output(self._stream, data)

    def end(self) -> None:
        self._run.output_ended()


class _Run:
    """One caller's command."""

    def __init__(
        self,
        exchange: Exchange,
        launcher: Launcher,
        env: dict[str, str],
        cwd: str,
        wake: tuple[int, int],
        stdin: tuple[int, int],
    ) -> None:
        self._exchange, self._launcher, self._env, self._cwd = exchange, launcher, env, cwd
        self._wake = wake
        self._stdin_read, stdin_write = stdin
        self._stdin: Outlet | None = Outlet(exchange, STDIN, stdin_write)
        self._command: str | None = None
        # Of the guard's loop alone:
        self._launch: Launch | None = None
        # Of all threads, under the lock:
        self._changed = threading.Condition()
        self._posted: deque[tuple[int, bytes]] = deque()
        self._credit = {STDOUT: WINDOW, STDERR: WINDOW}
        self._held_up = 0
        self._open_streams = 2
        self._last_moved = 0.0
        self._exit_code: int | None = None
        self._caller_gone = False

    # -- the connection's thread -------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Until the exit code, or the refusal, is out."""
        while not self._pass_on():
            for kind, data in self._exchange.transfer():
                self._take(kind, data)
            self._wait()
        _linger(self._exchange)

    def _pass_on(self) -> bool:
        """Send what the other threads have left; whether that was the last."""
        with self._changed:
            last = False
            while self._posted:
                kind, data = self._posted.popleft()
                self._exchange.send(kind, data)
                last = kind == REFUSED
            if self._exit_code is not None and not self._output_to_come():
                self._exchange.send(ENDED, str(self._exit_code).encode())
                last = True
            return last

    def _output_to_come(self) -> bool:
        return self._open_streams > 0 and (self._held_up > 0 or time.monotonic() < self._last_moved + DRAIN_S)

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._exchange, self._exchange.events)
        poll.register(self._wake[0], select.POLLIN)
        if self._stdin is not None and self._stdin.waiting:
            poll.register(self._stdin.fd, select.POLLOUT)
        ready = {fd for fd, _ in poll.poll(None if self._exit_code is None else DRAIN_S * 1000)}
        if self._wake[0] in ready:
            os.read(self._wake[0], 4096)
        if self._stdin is not None and self._stdin.fd in ready:
            self._write_stdin(self._stdin)

    def _write_stdin(self, stdin: Outlet) -> None:
        try:
            stdin.write()
        except OSError:  # Nobody reads it any more. What comes is not taken, so the caller stops sending.
            self._close_stdin()
            return
        if stdin.over:
            self._close_stdin()

    def _close_stdin(self) -> None:
        if self._stdin is not None:
            os.close(self._stdin.fd)
            self._stdin = None

    def _take(self, kind: int, data: bytes) -> None:
        if kind == COMMAND and self._command is None:
            self._command = os.fsdecode(data)
            self._launcher.loop.call_soon_threadsafe(self._start)
        elif kind == STDIN:
            if self._stdin is not None:
                self._stdin.put(data)
                if self._stdin.over:
                    self._close_stdin()
        elif kind == TAKEN:
            stream, count = taken(data)
            with self._changed:
                self._credit[stream] = self._credit.get(stream, 0) + count
                self._changed.notify_all()
        else:
            raise BulkError(f"A frame of kind {kind} has no meaning here.")

    def close(self) -> None:
        """The caller has its answer, or has gone: nothing of its command stays."""
        with self._changed:
            self._caller_gone = True
            self._posted.clear()
            self._changed.notify_all()
            for fd in self._wake:
                os.close(fd)
        self._close_stdin()
        self._launcher.loop.call_soon_threadsafe(self._end)

    # -- the guard's loop --------------------------------------------------------------------------------------------

    def _start(self) -> None:
        launcher = self._launcher
        with self._changed:
            if self._caller_gone:
                return
        why = launcher.refusal()
        if why:
            self._post(REFUSED, f"Node {launcher.node} starts no command any more: {why}.".encode())
            return
        plan = {
            "processes": [
                {
                    "argv": ["/bin/sh", "-c", self._command],
                    "env": self._env,
                    "cwd": self._cwd,
                    "title": "a command that another node runs here",
                    "is_foreign": True,
                }
            ],
            "check": False,
        }
        try:
            self._launch = launcher.launch(plan, self._done, self._sinks, self._stdin_read)
        except (OSError, RuntimeError, ValueError) as error:
            self._post(REFUSED, f"Node {launcher.node} cannot run a command: {error}.".encode(errors="replace"))
        self._close_stdin_read()

    def _sinks(self, stream: str) -> list[Sink]:
        return [_Output(self, STDOUT if stream == "stdout" else STDERR)]

    def _done(self, launch: Launch) -> None:
        self._launch = None
        with self._changed:
            self._exit_code = launch.children[0].exit_code
            self._last_moved = time.monotonic()
            self._poke()

    def _end(self) -> None:
        self._close_stdin_read()
        if self._launch is not None:
            self._launch.end()

    def _close_stdin_read(self) -> None:
        if self._stdin_read >= 0:
            os.close(self._stdin_read)
            self._stdin_read = -1

    # -- any thread --------------------------------------------------------------------------------------------------

    def output(self, stream: int, data: bytes) -> None:
        """Send output of the command, as the caller takes it; nowhere, once it has gone."""
        view = memoryview(data)
        while view:
            with self._changed:
                self._held_up += 1
                self._changed.wait_for(lambda: self._credit[stream] > 0 or self._caller_gone)
                self._held_up -= 1
                if self._caller_gone:
                    return
                piece, view = view[: min(PIECE, self._credit[stream])], view[min(PIECE, self._credit[stream]) :]
                self._credit[stream] -= len(piece)
                self._last_moved = time.monotonic()
                self._posted.append((stream, bytes(piece)))
                self._poke()

    def output_ended(self) -> None:
        with self._changed:
            self._open_streams -= 1
            self._poke()

    def _post(self, kind: int, data: bytes) -> None:
        with self._changed:
            self._posted.append((kind, data))
            self._poke()

    def _poke(self) -> None:
        """Wake the connection's thread. Under the lock: the pipe is closed under it."""
        if not self._caller_gone:
            with suppress(BlockingIOError):  # full, so it wakes anyway
                os.write(self._wake[1], b"\0")


def _linger(exchange: Exchange) -> None:
    """Send what is left, and wait for the caller to close."""
    deadline = time.monotonic() + LINGER_S
    with suppress(BulkError):
        while (left := deadline - time.monotonic()) > 0:
            for _ in exchange.transfer():
                pass
            poll = select.poll()
            poll.register(exchange, exchange.events)
            poll.poll(left * 1000)
