"""Reports of nodes that end before they could join, for the nodes that wait for them.

On a cluster no node sees the end of another node's process at once, or at all. So a task of a gang that ends before it
has joined reports that at the meeting place: node 0 by a tombstone, another node by an object for which node 0 looks.
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
from ..own_program import own_program
from .datastore_meeting import DatastoreMeeting

_expected = False
"""Whether this process runs the step of a gang, which is known once the flow file is loaded."""

_settled = False
"""Whether this node has joined, or has reported why not."""


def report_absence(meeting: DatastoreMeeting, node: int, record: dict[str, Any]) -> None:
    """Report at the ``meeting`` place that node ``node`` will not join.

    Raises nothing: the node ends with the failure itself.

    Parameters
    ----------
    record : dict
        The failure, as :func:`.exception_record.exception_record` makes it.
    """
    no_more_reports()
    names = {key: record.get(key, "") for key in ("exception", "message")}
    failure = Failure(node, record["kind"], record["text"], time.time(), record["detail"], **names)
    with contextlib.suppress(Exception):
        if node == 0:
            meeting.close(failure_report([failure], {0: socket.gethostname()}))
        else:
            meeting.report_failure(failure.to_json())


def no_more_reports() -> None:
    """Report nothing from here on: this node has joined, or its failure is reported."""
    global _settled
    _settled = True


def expect_step(step: str) -> None:
    """Note that step ``step`` of the flow is a gang's: a process that runs it has to join."""
    global _expected
    _expected = _expected or pathspec()[2:3] == [step]


def report_an_early_end() -> None:
    """In a task on a cluster: report an end before the join, also one while the flow file is loaded."""
    if is_local() or not configuration.is_step_of_a_foreach() or len(pathspec()) != 4:
        return
    before = sys.excepthook

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        before(kind, error, trace)
        last = traceback.format_exception_only(kind, error)[-1].strip()
        detail = "".join(traceback.format_exception(kind, error, trace))
        report_from_environment(f"its flow file could not be loaded: {last}", detail)

    sys.excepthook = uncaught
    atexit.register(_ended)


def report_from_environment(text: str, detail: str = "", kind: str = "absent") -> None:
    """Report a failure before the gang forms, when the task is known from its environment alone."""
    if _settled:
        return
    try:
        found = _place()
    except Exception:  # Python may be ending, or a package be half imported
        return
    if found is not None:
        report_absence(*found, {"kind": kind, "text": text, "detail": detail})


def notice_program(is_control: bool) -> dict[str, Any] | None:
    """The program by which this node's guard reports that this process has died before it joined.

    Its last argument is the message. None in a local gang, where node 0's guard sees all ends.
    """
    if is_local() or len(pathspec()) != 4:
        return None
    context = [configuration.CONTROL] if is_control else []
    return own_program(__name__, *context, function="report_for_another")


def report_for_another(text: str) -> None:
    """Report the end of a process that is dead, in its environment, unless it has reported itself.

    Raises what the datastore raises.
    """
    found = _place()
    if found is not None and not (found[0].has_reported(found[1]) if found[1] else found[0].failure_of_gang()):
        report_absence(*found, {"kind": "absent", "text": text, "detail": ""})


def _place() -> tuple[DatastoreMeeting, int] | None:
    """The meeting place of this process's gang and the index of its node; None where it is no task on a cluster."""
    if is_local() or len(pathspec()) != 4:
        return None
    flow, run, step, task = pathspec()
    datastore = open_flow_datastore(flow, *environment.datastore())
    meeting = DatastoreMeeting(datastore, flow, run, step, environment.control_task(task), environment.attempt())
    return meeting, environment.node_index(configuration.is_control_command())


def _ended() -> None:
    if not configuration.has_read_the_flow():
        report_from_environment("its process ended while its flow file was loaded. Its own log may say more")
    elif _expected:
        report_from_environment("its process ended before it joined. Its own log may say more")
