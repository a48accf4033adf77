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
    if _settled:
        return
    try:
        found = _place()
    except Exception:  # in the midst of Python's end, or of a package's import: what can be told is told
        return
    if found is not None:
        leave_word(*found, {"kind": kind, "text": text, "detail": detail})


def notice_program(is_control: bool) -> dict[str, Any] | None:
    """The program by which this node's guard leaves word where this process dies before it has joined; what it tells
    comes as the last argument. None where control's guard sees the ends of all.
    """
    if is_local() or len(pathspec()) != 4:
        return None
    # Metaflow first: it loads its extensions.
    program = f"import sys, metaflow, importlib; importlib.import_module({__name__!r}).tell_for_another(sys.argv[-1])"
    context = [configuration.CONTROL] if is_control else []
    return {"argv": [sys.executable, "-c", program, *context], "env": dict(os.environ), "cwd": os.getcwd()}


def tell_for_another(text: str) -> None:
    """Leave word for a process that is dead, in its environment, unless it has left its own, which says more. Raises
    what the datastore does.
    """
    found = _place()
    if found is not None and not (found[0].word() if found[1] else found[0].story()):
        leave_word(*found, {"kind": "absent", "text": text, "detail": ""})


def _place() -> tuple[DatastoreMeeting, int] | None:
    """Where the nodes of this process's gang meet, and which node it is; None where it is none of a cluster's."""
    if is_local() or len(pathspec()) != 4:
        return None
    flow, run, step, task = pathspec()
    datastore = open_flow_datastore(flow, *environment.datastore())
    meeting = DatastoreMeeting(datastore, flow, run, step, environment.control_task(task), environment.attempt())
    return meeting, environment.node_index(configuration.is_control_command())


def _ended() -> None:
    if not configuration.has_read_the_flow():
        tell("its process ended while its flow file was loaded. Its own log may say more")
    elif _expected:
        tell("its process ended before it joined. Its own log may say more")
