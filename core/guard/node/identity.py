"""Which node of which gang this guard serves, and what its task has sent about itself at the start."""

from __future__ import annotations

import time


class NodeIdentity:
    """The values that the task sends in its first request; they do not change from then on.

    Attributes
    ----------
    started_at : float
        When this guard started, by time.monotonic().
    task_pid : int
        The process of the task.
    index : int
        Of the node; 0 is control.
    gang_id : str
        Names the gang and its attempt on this machine.
    folder : str
        The node's private folder; empty before the first request.
    seen_by_control : bool
        Whether control's guard is the task's parent, and sees its end.
    control_guard : int
        In a local gang, on nodes other than 0: the process of control's guard; 0 elsewhere.
    interrupt_signal, stacks_signal : int
        Interrupt the body, and have the task print its stacks.
    """

    def __init__(self, task_pid: int) -> None:
        self.started_at = time.monotonic()
        self.task_pid = task_pid
        self.index = 0
        self.gang_id = ""
        self.folder = ""
        self.seen_by_control = False
        self.control_guard = 0
        self.interrupt_signal = 0
        self.stacks_signal = 0

    @property
    def name(self) -> str:
        """What marks this node's processes, and begins the names of its launches."""
        return f"{self.gang_id}.{self.index}"
