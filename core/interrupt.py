"""In the process of the run: a SIGINT that reaches it alone is passed on to the gangs it runs.

A terminal sends Ctrl-C to every process of the run; an IDE's stop button, a service manager or a notebook to the
run's own process only. Metaflow then waits five seconds for tasks that nobody told, and kills them. Passed on, the
interrupt ends a gang at once, the way Ctrl-C does.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

from .guard import processes

CONTROL_MARKER = "METAFLOW_GANG_CONTROL_OF"
"""Set in the environment of each gang's control task to the id of the run's process."""

_installed = False


def pass_on_interrupts() -> None:
    """Wrap the process's handler for SIGINT, once; what it did before it still does."""
    global _installed
    if _installed or threading.current_thread() is not threading.main_thread():
        return
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):
        return  # ignored on purpose, or not Python's: not ours to change
    _installed = True

    def handler(number: int, frame: FrameType | None) -> None:
        mine = processes.descendants([os.getpid()])
        controls = processes.marked(CONTROL_MARKER, str(os.getpid()), mine)
        entries = processes.table()
        # Only the tasks themselves: what they started is theirs to end.
        processes.send({pid for pid in controls if entries.get(pid) and entries[pid].parent == os.getpid()}, number)
        before(number, frame)

    signal.signal(signal.SIGINT, handler)


def heed_one_interrupt() -> None:
    """In the process in which Metaflow waits for a gang on Batch or Kubernetes: let a second SIGINT do nothing.

    The first makes it end what runs there. Ctrl-C reaches it twice, by the terminal and passed on, and Metaflow would
    break off in the midst of that and leave the nodes at work.
    """
    global _installed
    if _installed or os.environ.get(CONTROL_MARKER) != str(os.getppid()) or not _waits_for_a_backend():
        return
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        return
    _installed = True

    def handler(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        before(number, frame)

    signal.signal(signal.SIGINT, handler)


def _waits_for_a_backend() -> bool:
    """Whether this process is ``flow.py ... kubernetes step ...`` and no task of its own."""
    at = sys.argv.index("step") if "step" in sys.argv else 0
    return at > 0 and sys.argv[at - 1] in ("batch", "kubernetes")
