"""SIGINT in the run's process is passed on to the gangs of the run, so that they end at once; SIGUSR1 prints stacks.

A terminal sends Ctrl-C to every process of the run; an IDE's stop button, a service manager or a notebook sends SIGINT
to the run's process only. Metaflow then waits five seconds for tasks that have received no signal, and kills them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType

from ..exceptions import GangFailed
from ..guard.processes import process_table
from ..metaflow_compat.configuration import waits_for_a_backend
from ..rendezvous.local_nodes import CONTROL_MARKER

STACKS_WANTED = signal.SIGUSR1
"""To the run's process, or to a guard: print the stacks of all nodes. Neither Metaflow nor the guard uses it."""

_installed = False


def pass_on_interrupts() -> None:
    """Wrap the process's handler for SIGINT, once; the wrapper calls the old handler too. Take SIGUSR1 as well."""
    global _installed
    if _installed or threading.current_thread() is not threading.main_thread():
        return
    _installed = True
    if signal.getsignal(STACKS_WANTED) is signal.SIG_DFL:
        signal.signal(STACKS_WANTED, lambda number, frame: _print_stacks())
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):
        return  # ignored on purpose, as by a shell for what a script starts with "&", or not Python's

    def handler(number: int, frame: FrameType | None) -> None:
        mine = process_table.descendants([os.getpid()])
        controls = process_table.marked(CONTROL_MARKER, str(os.getpid()), mine)
        entries = process_table.table()
        # Only the tasks: each ends what it has started.
        process_table.send({pid for pid in controls if entries.get(pid) and entries[pid].parent == os.getpid()}, number)
        before(number, frame)

    signal.signal(signal.SIGINT, handler)


def _print_stacks() -> None:
    """Have the guards of this run's control tasks print the stacks of all nodes of their gangs."""
    mine = process_table.descendants([os.getpid()])
    entries = process_table.table()
    controls = process_table.marked(CONTROL_MARKER, str(os.getpid()), mine)
    parents = {pid for pid in controls if entries.get(pid) and entries[pid].parent == os.getpid()}
    children = {pid for pid in mine if entries.get(pid) and entries[pid].parent in parents}
    process_table.send(
        [pid for pid in children if _is_guard(pid) and process_table.catches(pid, STACKS_WANTED)], STACKS_WANTED
    )


def _is_guard(pid: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return b"guard.__main__" in file.read()
    return False


def run_of() -> int:
    """The process of the run that started this control task, or that waits for it on a backend."""
    return int(os.environ[CONTROL_MARKER])


def has_ended(run: int) -> bool:
    """Whether the process ``run``, which has started this one, has ended: it is no ancestor any more."""
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
    """Refuse to form a gang whose run has been killed in the second that its task took to start.

    Raises
    ------
    GangFailed
    """
    if has_ended(run):
        raise GangFailed(f"The process of the run ({run}) has ended while this task started: no gang is formed for it.")


def heed_one_interrupt() -> None:
    """In the process in which Metaflow waits for a gang on Batch or Kubernetes: ignore a second SIGINT.

    The first one has Metaflow end the gang there. Ctrl-C arrives twice, from the terminal and passed on, and the second
    would abort that and leave the nodes running.
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
