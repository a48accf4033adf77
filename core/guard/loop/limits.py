"""The limit of open files, and the lines for the user when files, memory or threads run out."""

from __future__ import annotations

import errno
import resource  # here and not where it is needed: no descriptor may be left then to load it
import time
from collections.abc import Callable

RESERVED = 20
"""Open files of control's guard besides those for the nodes, at least: 13 while a body runs, and those of a launch."""

PER_NODE = 1
"""Open files of control's guard for each other node: its connection ..."""

PER_TASK = 4
"""... and in a local gang its output, by two pipes, and two logs."""

REPEAT_SECONDS = 60.0
"""After which the same complaint is repeated."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT)


def open_files() -> tuple[int, int]:
    """The soft and the hard limit of this process."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)


def raise_open_files(most: int = 0) -> int:
    """Raise the soft limit of open files to the hard one, or to ``most`` where that is given and less.

    Returns the soft limit that was there before, where that gave any more; else 0.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most if most and not 0 <= hard < most else hard
    if soft == wanted or soft < 0 or 0 < wanted < soft:
        return 0
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # a hard limit without an end, on systems where the soft one must have one
        return 0
    return soft


def too_few_files(num_nodes: int, has_their_tasks: bool) -> str | None:
    """Why this guard cannot be control's of ``num_nodes``, whose tasks it starts itself in a local gang; None where it
    can. Only what cannot go well is refused.
    """
    hard = open_files()[1]
    needed = (num_nodes - 1) * (PER_NODE + (PER_TASK if has_their_tasks else 0)) + RESERVED
    if hard < 0 or needed <= hard:
        return None
    return (
        f"A gang of {num_nodes} nodes needs {needed} open files in the guard of node 0, and the hard limit there is "
        f"{hard} (ulimit -Hn). Raise it for this machine or container, or use fewer nodes."
    )


def ran_out(error: BaseException) -> bool:
    """Whether this guard lacks descriptors, memory, room on a disk or threads."""
    return out_of_something(error) or isinstance(error, MemoryError) or "start new thread" in str(error)


def out_of_something(error: BaseException) -> bool:
    """Whether descriptors, memory or threads have run out; no fault of the connecting side."""
    return isinstance(error, OSError) and error.errno in _EXHAUSTED


class Complaint:
    """Tells the user, not too often, that a server goes on but has run out of something.

    ``say`` gets lines such as: "The guard of node 2 has no open file left (...) for its port, which ...".
    """

    def __init__(self, say: Callable[[str], None], whose: str, what: str) -> None:
        self._say = say
        self._whose = whose
        self._what = what
        self._next: dict[tuple[type, object], float] = {}  # by what has run out

    def __call__(self, error: BaseException) -> None:
        now, what = time.monotonic(), (type(error), getattr(error, "errno", None))
        if now >= self._next.get(what, 0.0):
            self._next[what] = now + REPEAT_SECONDS
            self._say(f"{self.text(error)} Whoever connects waits until that is over.")

    def text(self, error: BaseException) -> str:
        """What has run out, as a sentence."""
        what = what_ran_out(error)
        return f"The guard of {self._whose} has {what} for its port {self._what}."


def what_ran_out(error: BaseException) -> str:
    """A phrase: "no open file left (the limit is 1024, ulimit -n)"."""
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        return f"no open file left (the limit is {open_files()[0]}, ulimit -n)"
    if isinstance(error, OSError) and error.errno == errno.ENFILE:
        return "no open file left (the whole machine has none)"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no room left on the disk of {error.filename or 'its temporary folder'}"
    if isinstance(error, RuntimeError):
        return f"no thread left ({error}: a limit of processes, ulimit -u or the container's, or of memory)"
    return f"no memory left ({getattr(error, 'strerror', None) or error})"
