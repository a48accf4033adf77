"""Programs on this node, run by its guard: to their end, or beside the step's body."""

from __future__ import annotations

import re
from typing import Any

from ..dry_run.call import is_shown_instead
from ..exceptions import BadAttribute, GangException, PortTaken, ProcessFailed
from ..guard.text import indent, last_lines
from ..guard_client.link import Link
from .launch_plan import LaunchPlan, Process, ProcessResult


class LaunchGivenUp(Exception):
    """A restartable launch has failed, on this node or another, and nothing of it is left on this node.

    Attributes
    ----------
    record : dict
        ``failures`` and ``hints`` of this node, as records on the clock of node 0; ``port_taken``; ``made_progress``;
        and ``failed``, for :class:`ProcessFailed`, where a process of this node has failed.
    """

    def __init__(self, record: dict[str, Any]) -> None:
        super().__init__("a launch was given up")
        self.record = record


def run_to_their_end(link: Link, plan: LaunchPlan) -> list[ProcessResult]:
    """Have the guard run ``plan`` and return how its processes ended; see :meth:`Gang.launch`.

    In a dry run none starts, and all end well.

    Raises
    ------
    ProcessFailed
        When a process of this node has failed.
    PortTaken
        When a foreign program holds the plan's port.
    LaunchGivenUp
        When a plan that is restartable has failed, on any node, in one of these ways.
    """
    if is_shown_instead(plan.processes):
        return [ProcessResult(process.title, process.rank, 0) for process in plan.processes]
    header, _ = link.request("launch", plan=plan.to_json())
    if "given_up" in header:
        raise LaunchGivenUp(header["given_up"])
    if header.get("port_taken"):
        raise PortTaken("Another program took the port that was chosen for this launch.")
    if "failed" in header:
        raise ProcessFailed(header["failed"])
    return [
        ProcessResult(record["title"], record["rank"], record["exit_code"], record["tail"])
        for record in header["results"]
    ]


def pause_ranks(link: Link, plan: LaunchPlan | None) -> None:
    """Have interpreters wait on this node, which has no ranks and may get those of ``plan``, where that is ``warm``;
    None ends them.
    """
    if plan is None or plan.warm:
        link.request("pause-ranks", plan=None if plan is None else plan.to_json())


def start_in_background(link: Link, node_index: int, process: Process, ready: str, timeout: float, shown: bool) -> None:
    """Have the guard start ``process`` and wait until it is ready; see :meth:`Gang.start`, which has the parameters.

    Raises
    ------
    ProcessFailed
        When it ended before it was ready.
    GangException
        When it was not ready within ``timeout`` seconds; the guard has ended it.
    BadAttribute
        When ``ready`` is not a regular expression.
    """
    try:
        re.compile(ready.encode())
    except (AttributeError, re.error) as error:
        raise BadAttribute(f"current.gang.start(ready={ready!r}) is not a regular expression: {error}.") from None
    if is_shown_instead((process,)):
        return
    plan = LaunchPlan((process,)).to_json()
    header, _ = link.request("start", plan=plan, ready=ready, timeout=timeout, shown=shown)
    if "failed" in header:
        raise ProcessFailed(header["failed"])
    if "late" in header:
        said = last_lines(header["late"]["tail"])
        raise GangException(
            f"{process.title} on node {node_index} was not ready within {timeout:g} s, and was ended. "
            + (f"Its last output:\n{indent(said)}" if said.strip() else "It wrote nothing.")
        )


def refuse_after_the_body(link: Link, what: str) -> None:
    """Raise :class:`GangException` where the step's body has ended: other nodes may have ended too.

    Without it their ends would be reported as failures of theirs.

    Parameters
    ----------
    what : str
        What needs the gang, at the start of the message.
    """
    if link.is_over:
        raise GangException(
            f"{what} needs the gang, which works together until the step's body ends. It has ended here: do this "
            "in the body, not in a step decorator after its yield."
        )
