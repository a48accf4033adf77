"""In the process of the run: a SIGINT that reaches it alone is passed on to the gangs it runs.

A terminal sends Ctrl-C to every process of the run; an IDE's stop button, a service manager or a notebook to the
run's own process only. Metaflow then waits five seconds for tasks that nobody told, and kills them. Passed on, the
interrupt ends a gang at once, the way Ctrl-C does.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

from ..exceptions import GangFailed
from ..guard.processes import process_table
from ..metaflow_compat.configuration import waits_for_a_backend

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
        mine = process_table.descendants([os.getpid()])
        controls = process_table.marked(CONTROL_MARKER, str(os.getpid()), mine)
        entries = process_table.table()
        # Only the tasks themselves: what they started is theirs to end.
        process_table.send({pid for pid in controls if entries.get(pid) and entries[pid].parent == os.getpid()}, number)
        before(number, frame)

    signal.signal(signal.SIGINT, handler)


def run_of() -> int:
    """The process of the run that started this control task, or the one that waits for it elsewhere."""
    return int(os.environ[CONTROL_MARKER])


def has_ended(run: int) -> bool:
    """Whether the process ``run``, which has started this one, is gone: then it is no ancestor of it any more."""
    pid = os.getppid()
    while pid > 1 and pid != run:
        entry = process_table.lookup(pid)
        if entry is None:  # gone this moment, or there is no /proc
            return not _exists(run)
        pid = entry.parent
    return pid != run


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def refuse_without_a_run(run: int) -> None:
    """Nobody outlives the run. A task that starts takes a second to come this far, in which the run may be killed.

    Raises
    ------
    GangFailed
    """
    if has_ended(run):
        raise GangFailed(f"The process of the run ({run}) has ended while this task started: no gang is formed for it.")


def heed_one_interrupt() -> None:
    """In the process in which Metaflow waits for a gang on Batch or Kubernetes: let a second SIGINT do nothing.

    The first makes it end what runs there. Ctrl-C reaches it twice, by the terminal and passed on, and Metaflow would
    break off in the midst of that and leave the nodes at work.
    """
    global _installed
    if _installed or CONTROL_MARKER not in os.environ or not waits_for_a_backend():
        return
    refuse_without_a_run(run_of())
    if run_of() != os.getppid():
        return
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        return
    _installed = True

    def handler(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        before(number, frame)

    signal.signal(signal.SIGINT, handler)
