"""How a gang is stopped: the message to its nodes, and the time that bodies have to save before."""

from __future__ import annotations

from ..failure_record import PREEMPTED, Failure

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes 3 ms to import
    from ..loop.framing import Header

UNWIND_S = 3.0
"""How long a body may take until it begins to save, and a task until it has ended after that."""


def extra_s(save_s: float) -> float:
    """Seconds by which a gang's end may be later because of those who save: processes have ``save_s`` from SIGTERM to
    SIGKILL, and then the functions of ``on_preemption`` as long again.
    """
    return 2 * save_s + UNWIND_S if save_s else 0.0


def stop_message(failure: Failure) -> Header:
    """The message that stops a node, because of ``failure``, the first one."""
    return {"op": "stop", "order": failure.order, "preempted": failure.kind == PREEMPTED}
