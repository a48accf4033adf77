"""Has this process write its Python stacks into a file of the node's folder when its guard sends a signal.

Ranks and bodies call :func:`register`; ``core/ranks/rank_main.py`` loads this file by its path, so it imports nothing
of this package. faulthandler writes the stacks at once, in C, whatever the interpreter does. Then a handler of Python
adds :data:`ANSWER`, which the main thread does only when it gets back to the interpreter: not while it waits, or spins,
in C code.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

DUMP = signal.SIGRTMIN + 10 if sys.platform == "linux" else 0
"""A real-time signal, which user code hardly has a handler for; where it has one, ours is not installed. The ones
before are those of :mod:`core.guard_client.link`.
"""

FOLDER = "stacks"
"""In the node's private folder: a file ``PID.DESCRIPTOR.NAME`` of each process."""

BODY = "body"
"""NAME of the step's own process; ranks have their number, or nothing."""

ANSWER = b"\n[answered]\n"

_DESCRIPTOR = 180
"""The least one: user code that closes descriptors which it has not opened, begins with the low ones."""


def rank_folder() -> str:
    """The private folder of the node on which this rank runs; "" where it is not known."""
    return os.environ.get("METAFLOW_GANG_FOLDER") or os.path.dirname(os.environ.get("METAFLOW_GANG_LOG_FILE", ""))


def register(folder: str, name: str) -> None:
    """Have the signal :data:`DUMP` write this process's stacks from now on. Does nothing where that is not possible.

    Parameters
    ----------
    folder : str
        The node's private folder.
    name : str
        :data:`BODY`, or the rank's number.
    """
    with contextlib.suppress(Exception):  # no descriptor is left, no such folder, not the main thread
        if folder and DUMP and signal.getsignal(DUMP) is signal.SIG_DFL:
            _register(os.path.join(folder, FOLDER), name)


def _register(folder: str, name: str) -> None:
    import faulthandler
    import fcntl

    pid = os.getpid()
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    first = os.path.join(folder, f".{pid}")
    low = os.open(first, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    fd = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, _DESCRIPTOR)
    os.close(low)

    def answer(number: int, frame: FrameType | None) -> None:
        if os.getpid() == pid:
            with contextlib.suppress(OSError):
                os.write(fd, ANSWER)

    signal.signal(DUMP, answer)
    faulthandler.register(DUMP, file=fd, all_threads=True, chain=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [DUMP])
    os.rename(first, os.path.join(folder, f"{pid}.{fd}.{name}"))  # now the guard may send it
