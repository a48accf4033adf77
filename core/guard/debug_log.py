"""The guard's debug log, which METAFLOW_GANG_DEBUG switches on: one line for each thing that the guard does.

It is a file in the node's private folder, and each line is written at once, so that it is whole when the guard is
killed. It has no payloads, and of requests and messages only the fields in :data:`SHOWN`: no secret, no environment.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .loop.framing import Header

    class Identity(Protocol):
        """Whose log it is; see :class:`~.node.identity.NodeIdentity`."""

        started_at: float
        task_pid: int
        index: int
        gang_id: str
        folder: str

    class Part(Protocol):
        """A part of the guard that writes what it does where it has a log."""

        debug: DebugLog | None


NAME = "debug.log"
"""Of the file in the private folder."""

SAVER_SPEC = "debug-saver.json"
"""Beside it: which task's log it is, for the program that stores it where the task cannot."""

LIMIT_BYTES = 16 << 20
"""Of one log: hours of a gang that does nothing unusual, and still read at once."""

VALUE_CHARACTERS = 160
"""Of one value that is shown."""

WORD_CHARACTERS, WORDS = 60, 8
"""Of one word of a command line, and words of it."""

SHOWN = (
    "node",
    "num_nodes",
    "local",
    "seq",
    "kind",
    "root",
    "key",
    "rank",
    "order",
    "preempted",
    "host",
    "address",
    "port",
    "exact",
    "timeout",
    "wait",
    "seconds",
    "hops",
    "connected",
    "stopped",
    "ends",
    "title",
    "exit_code",
    "text",
    "error",
)
"""Fields of requests and messages that are shown, in this order; every other may hold what is the user's alone."""

FREQUENT = frozenset({"ping", "alive"})
"""Messages that are left out: several in a second for each node, which would fill the log of a large gang."""

_CUT = "the log ends here: it has reached its limit of %d bytes\n"


class DebugLog:
    """Writes the log of one guard.

    Parameters
    ----------
    identity : Identity
        The node. The times in the log begin with its guard.
    limit : int
        Bytes of the file, but for the line that says that it ends there.
    """

    def __init__(self, identity: Identity, limit: int = LIMIT_BYTES) -> None:
        self._started_at = identity.started_at
        self._room = limit
        self._limit = limit
        self._fd = -1
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(os.path.join(identity.folder, NAME), flags, 0o600)
        except OSError:
            return  # no descriptor is left, or no room: the gang goes on without its log
        began = time.time() - (time.monotonic() - self._started_at)
        wall = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(began))
        self._write(
            f"guard {os.getpid()} of node {identity.index} of gang {identity.gang_id}, task {identity.task_pid}, on "
            f"{os.uname().nodename}, started at {wall}.{int(began % 1 * 1e6):06d} UTC; times are seconds since then\n"
        )
        self.write("the log begins")

    def write(self, what: str, header: Header | None = None, payload: bytes = b"") -> None:
        """Write one line: the time, ``what``, the name and the shown fields of ``header``, and the payload's size."""
        if self._fd < 0:
            return
        pieces = [what]
        if header is not None:
            op = header.get("op")
            if op in FREQUENT:
                return
            pieces += [] if op is None else [str(op)]
            pieces += _fields(header)
        if payload:
            pieces.append(f"+{len(payload)} bytes")
        text = " ".join(pieces).rstrip(":").replace("\n", "\\n")
        self._write(f"{time.monotonic() - self._started_at:.6f} {text}\n")

    def started(self, what: str, pid: int, argv: Sequence[str]) -> None:
        """A child has been started, or could not be, where ``pid`` is less than 1."""
        how = f"started, pid {pid}" if pid > 0 else "could not be started"
        self.write(f"{what} {how}: {command(argv)}")

    def ended(self, pid: int, status: int) -> None:
        """A child, or what it has left, has ended; ``status`` is its exit code, or minus the signal's number."""
        self.write(f"pid {pid} ended, " + (f"signal {-status}" if status < 0 else f"exit code {status}"))

    def _write(self, line: str) -> None:
        data = line.encode(errors="backslashreplace")
        is_cut = len(data) > self._room
        self._room -= len(data)
        try:
            os.write(self._fd, (_CUT % self._limit).encode() if is_cut else data)
        except OSError:
            is_cut = True  # the disk is full
        if is_cut:
            os.close(self._fd)
            self._fd = -1


def keep(identity: Identity, parts: Iterable[Part]) -> None:
    """Start the log of the node, and hand it to the parts of its guard."""
    log = DebugLog(identity)
    for part in parts:
        part.debug = log


def command(argv: Sequence[str]) -> str:
    """A command line in short; of a program that is given as an argument its beginning."""
    words = [_short(str(word), WORD_CHARACTERS) for word in argv[:WORDS]]
    return " ".join(words) + (f" ... {len(argv) - WORDS} more" if len(argv) > WORDS else "")


def _fields(header: Header) -> list[str]:
    found = []
    for name in SHOWN:
        value = header.get(name)
        if isinstance(value, str) and value:
            found.append(f"{name}={_short(value, VALUE_CHARACTERS)!r}")
        elif isinstance(value, (bool, int, float)):
            found.append(f"{name}={value}")
    for name in ("failure", "failed"):
        fields = _fields(header[name]) if isinstance(header.get(name), dict) else []
        if fields:
            found.append(f"{name}: {' '.join(fields)}")
    return found


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}..."
