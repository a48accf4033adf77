"""The guard's last act: what is left of the gang on this node goes, and what must stay is stored."""

from __future__ import annotations

import os
import signal
import subprocess
import time

from . import processes
from .launches import LEFT_S
from .owned import remove_abandoned, remove_folder

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes 3 ms to import
    from .node import Node
    from .wire import Header

GRACE_S = 0.5
"""Between SIGTERM and SIGKILL, as for what the gang has started."""

_STEP_S = 0.01

SAVER_TIMEOUT_S = 10.0
"""For importing Metaflow and writing the other nodes' logs; a datastore that takes longer has to do without."""


def tidy(node: Node) -> None:
    """End descendants and strays, store logs, give back ports, remove the private folder."""
    if node.callers is not None:
        node.callers.close()
    if node.peers is not None:
        node.peers.close()
    tasks = {task.pid for task in node.work.tasks.values()}
    _end_strays(node, tasks)
    if node.saver is not None and tasks and not (node.bye or node.stored):
        _save_logs(node, node.saver)
    for lease in node.leases:
        lease.release()
    node.owned.remove()
    if tasks and node.folder:
        remove_abandoned(node.folder, node.gang_id)
    remove_folder(node.folder)
    node.voice.finish()


def _end_strays(node: Node, tasks: set[int]) -> None:
    """End what is left of this node's processes, which may clean up: Open MPI's daemon of a task that imported mpi4py,
    for one, removes its folder below /tmp a moment after the task.
    """

    def left() -> set[int]:
        found = processes.descendants([os.getpid()]) | _strays(node, tasks)
        return found if processes.sees_all() else found | processes.groups(pid for pid in tasks if pid > 0)

    def left_after(seconds: float) -> set[int]:
        deadline = time.monotonic() + seconds
        while (strays := left()) and time.monotonic() < deadline:
            time.sleep(_STEP_S)
        return strays

    if node.bye and not node.stopping:
        left_after(LEFT_S)  # as what a launch has left behind may finish by itself
    processes.terminate(left())
    processes.send(left_after(GRACE_S), signal.SIGKILL)


def _strays(node: Node, tasks: set[int]) -> set[int]:
    """What the task, or user code in it, had started by itself."""
    return (processes.marked(processes.GANG_MARKER, node.name) | node.task_children.living()) - {node.task_pid, *tasks}


def _save_logs(node: Node, saver: Header) -> None:
    """The task is dead, so another process that has Metaflow stores the other nodes' logs."""
    try:
        subprocess.run(
            saver["argv"],
            env=saver["env"],
            cwd=saver["cwd"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=node.err,
            timeout=SAVER_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        node.say(f"The logs of the other nodes could not be stored: {error}")
