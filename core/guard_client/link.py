"""The task's end of the socket pair to its guard.

Synchronous: the calling thread sends a request and waits for its answer, so a task has no thread of ours and may fork.
When the gang stops, the guard sends a signal. The handler raises :class:`GangInterrupt` in the body; during a request,
the request itself ends at once and raises it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from types import FrameType
from typing import Any

from ..exceptions import BadAttribute, GangInterrupt, GuardDied
from ..guard import fault
from ..guard.loop.framing import Decoder, WireError, encode
from ..guard.processes import process_table
from ..guard.processes.lineage import give_number
from ..guard.processes.pipe_writers import left_by_task, pipes
from ..guard.text import how_it_ended

INTERRUPT = getattr(signal, "SIGRTMIN", signal.SIGUSR2 - 7) + 7 if sys.platform == "linux" else signal.SIGUSR2
"""Interrupts the body. A real-time signal where there are such: user code is free to use SIGUSR1 and SIGUSR2."""

WAKE = INTERRUPT + 1 if sys.platform == "linux" else signal.SIGIO
"""Sent by the kernel when the socket pair is readable; it is used to notice the end of the guard."""

STACKS = INTERRUPT + 2 if sys.platform == "linux" else signal.SIGUSR1
"""Makes faulthandler print the stacks of all threads, which needs neither the GIL nor a healthy interpreter."""

_DEATH_S = 3.0
"""Seconds for a guard that has closed its end of the pair to end, so that its exit code is known."""

_BOOT = (
    "import importlib.util as u, sys, runpy; "
    "s = u.spec_from_file_location('guard', sys.argv[1] + '/__init__.py', submodule_search_locations=[sys.argv[1]]); "
    "sys.modules['guard'] = m = u.module_from_spec(s); s.loader.exec_module(m); "
    "sys.argv[1:2] = []; runpy.run_module('guard.__main__', run_name='__main__', alter_sys=False)"
)


class Link:
    """Starts this node's guard and sends it requests. One per task and attempt.

    Parameters
    ----------
    interrupt : type
        What is raised in an interrupted body.

    Attributes
    ----------
    sigterm_pipe : int
        Descriptor of a pipe; a byte in it reports a SIGTERM to the guard.
    sigterm_read : int
        The number of its other end in the guard.
    number : int
        A number that programs of this process, but not the guard, inherit; 0 where there is none.
    is_over : bool
        Whether the body has ended, so that the user's code asks for nothing that needs other nodes any more.
    """

    _kind = "node"
    """Which guard to start; see the guard's ``__main__``."""

    def __init__(self, interrupt: type[GangInterrupt] = GangInterrupt) -> None:
        self.stopped = False
        self._interruption = interrupt
        self._owner = os.getpid()
        self._interrupted = False
        self.is_over = False
        self._shielded = False
        self._closed = False
        self._requests = 0
        self._answers: dict[int, tuple[dict[str, Any], bytes]] = {}
        self._decoder = Decoder()
        self._unsent = bytearray()
        self._sending = threading.RLock()
        self._reader = threading.Lock()
        self._read = threading.Condition()
        ours, theirs = socket.socketpair()
        self._sock = ours
        folder = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "guard")
        # What it needs to find its temporary folder and its locale; no other variable of the task.
        names = ("PATH", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT")
        self.sigterm_read, self.sigterm_pipe = os.pipe()
        os.set_blocking(self.sigterm_pipe, False)
        with theirs:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _BOOT, folder, str(theirs.fileno()), str(os.getpid()), self._kind],
                env={name: os.environ[name] for name in names if name in os.environ},
                pass_fds=(theirs.fileno(), self.sigterm_read),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        os.close(self.sigterm_read)
        self.number = 0
        self._attach()

    @property
    def guard_pid(self) -> int:
        return self._guard.pid

    @property
    def is_ours(self) -> bool:
        """Whether this is the process that started the guard, and not one that user code forked from it."""
        return os.getpid() == self._owner

    def _attach(self) -> None:
        """Install the handlers by which the guard, or its death, interrupts the body; mark the body's programs."""
        self.number = give_number()
        if threading.current_thread() is not threading.main_thread():
            return
        with contextlib.suppress(AttributeError):
            # The task may have been started with blocked signals, and the guard cannot reach the body otherwise.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (INTERRUPT, WAKE, STACKS))
        signal.signal(INTERRUPT, self._on_interrupt)
        signal.signal(WAKE, self._on_wake)
        with contextlib.suppress(AttributeError, ValueError, OSError, RuntimeError):
            faulthandler.register(STACKS, file=sys.__stderr__ or sys.stderr, all_threads=True)
        with contextlib.suppress(AttributeError, OSError):
            # The kernel sends a signal when the guard's end closes: a dead guard cannot.
            fcntl.fcntl(self._sock, fcntl.F_SETOWN, os.getpid())
            if hasattr(fcntl, "F_SETSIG"):  # else it is SIGIO
                fcntl.fcntl(self._sock, fcntl.F_SETSIG, WAKE)
            flags = fcntl.fcntl(self._sock, fcntl.F_GETFL)
            fcntl.fcntl(self._sock, fcntl.F_SETFL, flags | os.O_ASYNC)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        """The guard has sent the signal that the gang stops."""
        self.stopped = True
        if not self._shielded:
            self._interrupt()

    def _on_wake(self, number: int, frame: FrameType | None) -> None:
        """The socket has data, or the guard has closed its end; in the second case interrupt the body."""
        if self._shielded or self._interrupted or self._closed:
            return
        poll = select.poll()
        poll.register(self._sock, 0)
        if poll.poll(0):
            self._interrupt()

    def _interrupt(self) -> None:
        """End the body, once."""
        if not self._interrupted and not self._closed:
            self._interrupted = True
            raise self._interruption

    def _receive(self) -> None:
        try:
            data = self._sock.recv(1 << 20)
        except OSError as error:
            raise self._died() from error
        if not data:
            raise self._died()
        try:
            for header, payload in self._decoder.feed(data):
                self._answers[header["re"]] = (header, payload)
        except WireError as error:
            raise self._died() from error

    def _died(self) -> GuardDied:
        return GuardDied(
            f"The guard process of this node (process {self._guard.pid}) has died; it keeps the gang together, "
            f"so the gang ends here. {self._how_the_guard_ended()}"
        )

    def _how_the_guard_ended(self) -> str:
        """A sentence on how a guard ended that has closed its end of the pair."""
        try:
            code = self._guard.wait(_DEATH_S)
        except subprocess.TimeoutExpired:
            return "It has closed its connection, and does not end."
        if code == fault.EXIT_CODE:
            return f"It failed by a fault of its own, which this task's log has. {fault.BUG}"
        return f"It {how_it_ended(code)}." if code else "It ended before its work was done."

    def request(self, op: str, payload: bytes = b"", **fields: Any) -> tuple[dict[str, Any], bytes]:
        """Send request ``op`` to the guard and wait for its answer. Several threads may wait at once.

        Raises
        ------
        GangInterrupt
            The gang stops, so that the answer has no meaning any more.
        GuardDied
            The guard has died.
        BadAttribute
            In a process that was forked from the step's: two processes would read each other's answers.
        """
        if not self.is_ours:
            raise BadAttribute(
                f"current.gang belongs to the step's own process ({self._owner}), from which process {os.getpid()} was "
                "forked: use it there."
            )
        is_main = threading.current_thread() is threading.main_thread()
        if is_main:
            self._shielded = True
        try:
            with self._sending:
                self._requests += 1
                number = self._requests
                self._send(encode({"op": op, "id": number, **fields}, payload))
            header, answer = self._await(number)
        finally:
            if is_main:
                self._shielded = False
        if header.get("stopped"):
            self._interrupted |= is_main
            raise GangInterrupt
        if is_main and header.get("ends"):
            # A failure here stops the gang; the answer says more than the signal, which may still come.
            self._interrupted = True
        if is_main and self.stopped:
            # The signal came during the request. A failure of this node says more than that the gang stops.
            if "failed" in header:
                self._interrupted = True
            self._interrupt()
        return header, answer

    def _await(self, number: int) -> tuple[dict[str, Any], bytes]:
        """The answer to request ``number``. One waiting thread reads for all; the others wait for what it has read."""
        while number not in self._answers:
            if self._reader.acquire(blocking=False):
                try:
                    if number not in self._answers:
                        self._receive()
                finally:
                    self._reader.release()
                    with self._read:
                        self._read.notify_all()
            else:
                with self._read:
                    # It may have been read, or the reader have gone, since we looked; then nobody would wake us.
                    self._read.wait_for(lambda: number in self._answers or not self._reader.locked())
        return self._answers.pop(number)

    def _send(self, frame: bytes) -> None:
        # A handler of the user, of SIGALRM for example, may raise while this waits: the next call sends the rest first,
        # since the guard would wait for ever for the rest of a frame.
        self._unsent += frame
        poll = select.poll()
        poll.register(self._sock, select.POLLOUT)
        try:
            while self._unsent:
                poll.poll()
                with contextlib.suppress(BlockingIOError):
                    del self._unsent[: self._sock.send(self._unsent, socket.MSG_DONTWAIT)]
        except OSError as error:
            raise self._died() from error

    def quiet(self) -> None:
        """Interrupt nothing from here on: the body is over."""
        self._interrupted = True

    def clean_up_after_guard(self, gang_id: str, outputs: bool = False) -> None:
        """End what a dead guard and this process have started.

        Parameters
        ----------
        outputs : bool
            Whether programs that write to this process's stdout and stderr are ended too: pipes of this process alone.
        """
        names = pipes(os.getpid()) if outputs else set()
        since = process_table.started(os.getpid())
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline:
            left = process_table.marked(process_table.GANG_MARKER, gang_id)
            left |= process_table.descendants(left) | left_by_task(names, self.number, since)
            if not left:
                return
            process_table.send(left, signal.SIGKILL)
            time.sleep(0.01)

    def close(self) -> None:
        """Let the guard end. Harmless when repeated."""
        if self._closed:
            return
        self._closed = True
        os.close(self.sigterm_pipe)
        if not self.is_ours:
            self._sock.close()
            return
        with contextlib.suppress(OSError):
            flags = fcntl.fcntl(self._sock, fcntl.F_GETFL)
            fcntl.fcntl(self._sock, fcntl.F_SETFL, flags & ~os.O_ASYNC)
        self._sock.close()
        self._guard.returncode = 0  # it ends by itself, after us; nobody waits for it
