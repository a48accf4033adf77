"""The nodes of a gang join: late ones are named, and awaited until a deadline. Those that cannot take part, have ended
or do not come are left out where the step can do without them; else they end the gang.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from ..failure_record import Failure
from ..loop.event_loop import Loop, Timer
from ..settings import settings

if TYPE_CHECKING:
    from .failures import Failures
    from .lost_nodes import LostNodes
    from .roster import Roster

UNFIT, ABSENT, GONE = "its preflight failed", "it did not join", "lost"
"""Why a node is left out, in the metadata; its failure follows."""

_TOLD = {UNFIT: "cannot take part", ABSENT: "did not join", GONE: "was lost"}
_TOLD_LATER = {**_TOLD, UNFIT: "could not take part"}

_NOBODY = {"hostname": "", "address": "", "cpus": 0, "gpus": 0}
"""What is known of a node that has not joined."""

ENDING = "this gang is ending: "
"""What the refusal of a restarted node begins with where the gang ends for another reason, which follows."""

PROGRESS_S = 5.0
"""When a late node is first named; then at twice the time, and so on: 5, 10, 20, 40 s."""


class JoinDeadline:
    """Waits ``timeout_s`` seconds for all of ``num_nodes`` nodes; ``joined`` has those that have joined by now, and
    ``absent`` those that will not.

    ``say`` takes a line for the user, ``overdue`` the missing nodes when the deadline has passed.
    """

    def __init__(
        self,
        loop: Loop,
        num_nodes: int,
        timeout_s: float,
        joined: Collection[int],
        absent: Collection[int],
        say: Callable[[str], None],
        overdue: Callable[[list[int]], None],
    ) -> None:
        self._loop = loop
        self._num_nodes = num_nodes
        self._timeout_s = timeout_s
        self._joined, self._absent = joined, absent
        self._say, self._overdue = say, overdue
        self._started = time.monotonic()
        self._has_said = False
        self._timers: list[Timer] = [loop.call_later(timeout_s, self._over)]
        self._progress(PROGRESS_S)

    def end(self) -> None:
        """Wait for no node any more."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self._has_said and not self._late():
            self._has_said = False
            waited = time.monotonic() - self._started
            which = f"other {self._num_nodes - len(self._absent)}" if self._absent else self._num_nodes
            self._say(f"All {which} nodes have joined after {waited:.0f} s.")

    def _late(self) -> list[int]:
        return [node for node in range(self._num_nodes) if node not in self._joined and node not in self._absent]

    def _missing(self) -> str:
        missing = self._late()
        names = ", ".join(str(index) for index in missing[:8])
        names += f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        return f"node {names}" if len(missing) == 1 else f"nodes {names}"

    def _progress(self, at_s: float) -> None:
        def say_progress() -> None:
            if not self._late():  # one that has joined has still to say why it cannot take part
                return
            self._has_said = True
            waited = time.monotonic() - self._started
            self._say(
                f"{len(self._joined)} of {self._num_nodes} nodes have joined, waiting for {self._missing()} "
                f"for {waited:.0f} s."
            )
            self._progress(2 * at_s)

        self._timers.append(self._loop.call_later(self._started + at_s - time.monotonic(), say_progress))

    def _over(self) -> None:
        self._has_said = False  # what becomes of those that are missing is reported next
        self._overdue(self._late())

    def failure(self) -> Failure:
        """That of a gang which cannot do without the missing nodes."""
        text = (
            f"did not join within {self._timeout_s:g} s (all_nodes_started_timeout): {len(self._joined)} of "
            f"{self._num_nodes} nodes had joined, {self._missing()} had not. Look at that node's own log and "
            "whether the cluster had room for it"
        )
        return Failure(self._late()[0], "timeout", text, time.time())

    def not_come(self, node: int) -> Failure:
        """That of a missing node which is left out."""
        return Failure(node, "timeout", f"not within {self._timeout_s:g} s (all_nodes_started_timeout)", time.time())


class Joining:
    """Decides for the hub when all nodes have joined, and without which of them the gang begins.

    A node cannot take part where it lacks what the step needs, which it reports as it joins, or where it has another
    version of this package than node 0 and most nodes. One is absent that has ended before it joined, or has not come
    when the time is over. One may be lost, as its process ends, while it waits for others.

    Parameters
    ----------
    failures : Failures
        Take what ends the gang before it begins, and give what may end only one node.
    num_nodes, timeout_s, say
        See :class:`JoinDeadline`.
    may_leave_out : int
        How many nodes the step can do without.
    lost_nodes : callable
        Gives those of the gang, which has them from then on.

    Attributes
    ----------
    is_complete : bool
        Whether all nodes have joined that will, and the gang begins.
    """

    def __init__(
        self,
        loop: Loop,
        roster: Roster,
        failures: Failures,
        num_nodes: int,
        timeout_s: float,
        may_leave_out: int,
        say: Callable[[str], None],
        lost_nodes: Callable[[], LostNodes],
    ) -> None:
        self.is_complete = False
        self._roster, self._failures, self._lost_nodes = roster, failures, lost_nodes
        self._num_nodes, self._may_leave_out = num_nodes, may_leave_out
        self._left_out: dict[int, tuple[str, Failure]] = {}  # by node: why, one of the words above, and the failure
        self._absent: set[int] = set()
        self._deadline = JoinDeadline(loop, num_nodes, timeout_s, roster.infos, self._absent, say, self._overdue)
        failures.ends_one_node = self._ends_one_node

    def end(self) -> None:
        """Wait for no node any more."""
        self._deadline.end()

    def refuse(self, node: int) -> str | None:
        """Why ``node`` may not join, though it is of this gang; None where it may."""
        if node not in self._roster.infos and node not in self._left_out:
            return None
        if self._failures.stopping:
            return ENDING + self._failures.first_line()
        failure = Failure(node, "restarted", "was restarted: it joined twice in one attempt", time.time())
        if node not in self._left_out:
            self._failures.add(failure)
        lost = self._failures.lost_nodes
        if lost is not None and node in lost.lost:
            return f"this gang goes on without node {node}, which was lost before, or did not join in time"
        return f"node {node} has joined already, and was restarted; this attempt ends"

    def look(self) -> None:
        """A node has joined, or is left out: the gang begins if it was the last one."""
        infos = self._roster.infos
        # An unfit node sends its failure next: no body begins before that.
        awaited = [node for node, info in infos.items() if info.get("unfit") and node not in self._left_out]
        if len(infos) + len(self._absent) < self._num_nodes or awaited:
            return
        others = {node: text for node, text in self._roster.other_packages().items() if node not in self._left_out}
        failures = [Failure(node, "package", text, time.time()) for node, text in others.items()]
        agreeing = self._num_nodes - len(self._left_out) - len(failures)
        if self._leave_out(failures, UNFIT, 2 * agreeing > self._num_nodes):
            self._begin()

    def _ends_one_node(self, failure: Failure) -> bool:
        """Whether this failure, of before the gang begins, ends one node, without which the gang goes on."""
        node = failure.reporting_node
        if self.is_complete or node == 0 or node in self._left_out or failure.peer is not None:
            return False
        info = self._roster.infos.get(node)
        if not self._may_do_without(1):
            return False
        if info is None:
            self._leave_out([_with_its_last_line(failure)], ABSENT)
        else:
            self._leave_out([failure], UNFIT if info.get("unfit") else GONE)
        self.look()
        return True

    def _overdue(self, late: list[int]) -> None:
        """The time is over, and these nodes have not come."""
        if 0 not in late and self._may_do_without(len(late)):
            self._leave_out([self._deadline.not_come(node) for node in late], ABSENT)
            self.look()
        else:
            self._failures.end_by(self._deadline.failure())

    def told_of_left_out(self) -> str:
        """The nodes that are left out by now, for the report of a gang that ends before it begins; "" for none."""
        hostnames = self._roster.hostnames
        lines = []
        for node, (why, failure) in self._left_out.items():
            where = f"node {node} ({hostnames[node]})" if hostnames.get(node) else f"node {node}"
            lines.append(f"Before, {where} {_TOLD_LATER[why]}: {failure.text}")
        return "\n".join(lines)

    def _may_do_without(self, more: int) -> bool:
        return len(self._left_out) + more <= self._may_leave_out

    def _leave_out(self, failures: Sequence[Failure], why: str, is_right: bool = True) -> bool:
        """Whether the gang can do without the nodes of these ``failures``, which are left out then; else it ends."""
        if not failures:
            return True
        if not is_right or not self._may_do_without(len(failures)):
            self._failures.end_by(failures[0])
            return False
        for failure in failures:
            node = failure.reporting_node
            self._left_out[node] = why, failure
            if why == ABSENT:
                self._absent.add(node)
            self._lost_nodes().lose(failure, _TOLD[why], why)
        return True

    def _begin(self) -> None:
        self.is_complete = True
        self.end()
        self._roster.infos.update((node, dict(_NOBODY)) for node in self._absent)
        left_out = {str(node): f"{why}: {failure.text}" for node, (why, failure) in self._left_out.items()}
        more = {"settings": settings().as_dict(), "left_out": left_out}
        self._roster.broadcast({"op": "roster", "nodes": self._roster.nodes(), **more})
        for node in self._left_out:
            self._roster.send(node - 1, {"op": "left"})


def _with_its_last_line(failure: Failure) -> Failure:
    """That of a local task which has ended by itself, with its last line, as that of a traceback, which explains it;
    what a node has reported itself says why.
    """
    lines = failure.detail.strip().splitlines() if failure.kind == "task-exit" else []
    return failure.replaced(text=f"{failure.text}: {lines[-1].strip()}") if lines else failure
