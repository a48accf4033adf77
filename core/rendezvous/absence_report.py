"""Nodes that end before they could join: what they leave for those who wait for them.

On a cluster nobody sees the end of another node's process at once, or at all. So whatever ends a gang's task before it
has joined leaves word at the meeting place: control a tombstone, another node an object for which control looks.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import sys
import time
import traceback
from types import TracebackType
from typing import Any

from ..gang.gang import TaskInfo
from ..guard.coordinator.root_cause import failure_report
from ..guard.failure_record import Failure
from ..step import nested_run
from .datastore_meeting import DatastoreMeeting
from .local_nodes import is_local

_expected = False
"""Whether this process runs a step of ours, which our decorators know once the flow file is loaded."""

_settled = False
"""Whether this node has joined, or told why not."""


def node_index(is_control: bool) -> int:
    """This node's index, also before the backend's own decorator has set Metaflow's variable for it."""
    environ = os.environ
    if "MF_PARALLEL_NODE_INDEX" in environ:
        return int(environ["MF_PARALLEL_NODE_INDEX"])
    if is_control:
        return 0
    if "MF_WORKER_REPLICA_INDEX" in environ:
        return int(environ["MF_WORKER_REPLICA_INDEX"]) + 1  # Kubernetes and Argo
    return int(environ["AWS_BATCH_JOB_NODE_INDEX"])


def control_task(task: TaskInfo) -> str:
    """The id of control's task; a gang of one may not have been told it."""
    return str(os.environ.get("MF_PARALLEL_CONTROL_TASK_ID") or task.task_id)


def leave_word(meeting: DatastoreMeeting, node: int, told: dict[str, Any]) -> None:
    """Say at the ``meeting`` place that node ``node`` will not join; ``told`` is of :func:`.record.record`. Raises
    nothing: the failure itself is what the node ends with.
    """
    settle()
    failure = Failure(node, told["kind"], told["text"], time.time(), told["detail"])
    with contextlib.suppress(Exception):
        if node == 0:
            meeting.close(failure_report([failure], {0: socket.gethostname()}))
        else:
            meeting.leave_word(failure.to_json())


def settle() -> None:
    """This node has joined, or what it had to tell is told."""
    global _settled
    _settled = True


def expect(step: str) -> None:
    """Step ``step`` of the flow is a gang's: if this process runs it, it has to join."""
    global _expected
    _expected = _expected or _pathspec()[2:3] == [step]


def watch() -> None:
    """In a task on a cluster: have word left where it ends before it has joined, also while the flow file is loaded."""
    if is_local() or "--ubf-context" not in sys.argv or len(_pathspec()) != 4 or nested_run.is_started_by_a_body():
        return
    before = sys.excepthook

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        before(kind, error, trace)
        last = traceback.format_exception_only(kind, error)[-1].strip()
        tell(f"its flow file could not be loaded: {last}", "".join(traceback.format_exception(kind, error, trace)))

    sys.excepthook = uncaught
    atexit.register(_ended)


def tell(text: str, detail: str = "", kind: str = "absent") -> None:
    """Leave word where nothing of the gang's is there yet: the task is known from its environment alone."""
    if _settled or is_local() or len(_pathspec()) != 4:
        return
    flow, run, step, task = _pathspec()
    try:
        from metaflow.datastore import FlowDataStore
        from metaflow.plugins import DATASTORES

        storage = next(store for store in DATASTORES if os.environ.get("MF_DATASTORE") == store.TYPE)
        root = os.environ.get("MF_DATASTORE_ROOT") or storage.get_datastore_root_from_config(print)
        datastore = FlowDataStore(flow, None, storage_impl=storage, ds_root=root)
        info = TaskInfo(flow, run, step, task, int(os.environ.get("MF_ATTEMPT", 0)))
        meeting = DatastoreMeeting(datastore, flow, run, step, control_task(info), info.attempt)
        node = node_index("ubf_control" in sys.argv)
    except Exception:  # in the midst of Python's end, or of a package's import: what can be told is told
        return
    leave_word(meeting, node, {"kind": kind, "text": text, "detail": detail})


def _ended() -> None:
    if "metaflow.cli" not in sys.modules:
        tell("its process ended while its flow file was loaded. Its own log may say more")
    elif _expected:
        tell("its process ended before it joined. Its own log may say more")


def _pathspec() -> list[str]:
    """Flow, run, step and task of this process, as the backends give them to its shell; empty where it is none."""
    return [piece for piece in os.environ.get("MF_PATHSPEC", "").split("/") if piece]
