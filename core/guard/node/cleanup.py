"""The guard's last act: what is left of the gang on this node goes, and what must stay is stored."""

from __future__ import annotations

import os
import signal
import subprocess
import time

from ..children.launch import LEFT_S
from ..host.owned_files import remove_abandoned, remove_folder
from ..processes import process_table

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes 3 ms to import
    from ..loop.framing import Header
    from .node import Node

GRACE_S = 0.5
"""Between SIGTERM and SIGKILL, as for what the gang has started."""

_STEP_S = 0.01

SAVER_TIMEOUT_S = 10.0
"""For importing Metaflow and writing the other nodes' logs; a datastore that takes longer has to do without."""


def tidy(node: Node) -> None:
    """End descendants and strays, store logs, give back ports, remove the private folder."""
    if node.notice is not None:
        node.notice.wait()  # before everything that descends from here is ended
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
        found = process_table.descendants([os.getpid()]) | _strays(node, tasks)
        return found if process_table.sees_all() else found | process_table.groups(pid for pid in tasks if pid > 0)

    def left_after(seconds: float) -> set[int]:
        deadline = time.monotonic() + seconds
        while (strays := left()) and time.monotonic() < deadline:
            time.sleep(_STEP_S)
        return strays

    if node.bye and not node.stopping:
        left_after(LEFT_S)  # as what a launch has left behind may finish by itself
    process_table.terminate(left())
    process_table.send(left_after(GRACE_S), signal.SIGKILL)


def _strays(node: Node, tasks: set[int]) -> set[int]:
    """What the task, or user code in it, had started by itself."""
    return (process_table.marked(process_table.GANG_MARKER, node.name) | node.task_children.living()) - {
        node.task_pid,
        *tasks,
    }


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
