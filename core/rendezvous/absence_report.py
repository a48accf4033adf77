"""Nodes that end before they could join: what they leave for those who wait for them.

On a cluster nobody sees the end of another node's process at once, or at all. So whatever ends a gang's task before it
has joined leaves word at the meeting place: control a tombstone, another node an object for which control looks.
"""

from __future__ import annotations

import atexit
import contextlib
import socket
import sys
import time
import traceback
from types import TracebackType
from typing import Any

from ..guard.coordinator.root_cause import failure_report
from ..guard.failure_record import Failure
from ..metaflow_compat import configuration, environment
from ..metaflow_compat.datastores import open_flow_datastore
from ..metaflow_compat.environment import is_local, pathspec
from ..step import nested_run
from .datastore_meeting import DatastoreMeeting

_expected = False
"""Whether this process runs a step of ours, which our decorators know once the flow file is loaded."""

_settled = False
"""Whether this node has joined, or told why not."""


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
    _expected = _expected or pathspec()[2:3] == [step]


def watch() -> None:
    """In a task on a cluster: have word left where it ends before it has joined, also while the flow file is loaded."""
    in_a_cluster = not is_local() and configuration.is_step_of_a_foreach() and len(pathspec()) == 4
    if not in_a_cluster or nested_run.is_started_by_a_body():
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
    if _settled or is_local() or len(pathspec()) != 4:
        return
    flow, run, step, task = pathspec()
    try:
        kind, root = environment.datastore()
        datastore = open_flow_datastore(flow, kind, root)
        meeting = DatastoreMeeting(datastore, flow, run, step, environment.control_task(task), environment.attempt())
        node = environment.node_index(configuration.is_control_command())
    except Exception:  # in the midst of Python's end, or of a package's import: what can be told is told
        return
    leave_word(meeting, node, {"kind": kind, "text": text, "detail": detail})


def _ended() -> None:
    if not configuration.has_read_the_flow():
        tell("its process ended while its flow file was loaded. Its own log may say more")
    elif _expected:
        tell("its process ended before it joined. Its own log may say more")
