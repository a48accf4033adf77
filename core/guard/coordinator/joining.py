"""The nodes of a gang join: late ones are named, and fail the gang at a deadline; those that cannot take part are left
out where the step can do without them.
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

WHY = "its preflight failed"
"""Why a node that cannot take part is left out, in the metadata; its failure follows."""

PROGRESS_S = 5.0
"""When a late node is first named; then at twice the time, and so on: 5, 10, 20, 40 s."""


class JoinDeadline:
    """Waits ``timeout_s`` seconds for all of ``num_nodes`` nodes; ``joined`` has those that have joined by now.

    ``say`` takes a line for the user, ``fail`` the failure when the deadline has passed.
    """

    def __init__(
        self,
        loop: Loop,
        num_nodes: int,
        timeout_s: float,
        joined: Collection[int],
        say: Callable[[str], None],
        fail: Callable[[Failure], None],
    ) -> None:
        self._loop = loop
        self._num_nodes = num_nodes
        self._timeout_s = timeout_s
        self._joined = joined
        self._say = say
        self._fail = fail
        self._started = time.monotonic()
        self._has_said = False
        self._timers: list[Timer] = [loop.call_later(timeout_s, self._overdue)]
        self._progress(PROGRESS_S)

    def end(self) -> None:
        """Wait for no node any more."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self._has_said and not self._late():
            self._has_said = False
            waited = time.monotonic() - self._started
            self._say(f"All {self._num_nodes} nodes have joined after {waited:.0f} s.")

    def _late(self) -> list[int]:
        return [index for index in range(self._num_nodes) if index not in self._joined]

    def _missing(self) -> str:
        missing = self._late()
        names = ", ".join(str(index) for index in missing[:8])
        names += f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        return f"node {names}" if len(missing) == 1 else f"nodes {names}"

    def _progress(self, at_s: float) -> None:
        def say_progress() -> None:
            self._has_said = True
            waited = time.monotonic() - self._started
            self._say(
                f"{len(self._joined)} of {self._num_nodes} nodes have joined, waiting for {self._missing()} "
                f"for {waited:.0f} s."
            )
            self._progress(2 * at_s)

        self._timers.append(self._loop.call_later(self._started + at_s - time.monotonic(), say_progress))

    def _overdue(self) -> None:
        text = (
            f"did not join within {self._timeout_s:g} s (all_nodes_started_timeout): {len(self._joined)} of "
            f"{self._num_nodes} nodes had joined, {self._missing()} had not. Look at that node's own log and "
            "whether the cluster had room for it"
        )
        self._fail(Failure(self._late()[0], "timeout", text, time.time()))


class Joining:
    """Decides for the hub when all nodes have joined, and without which of them the gang begins.

    A node cannot take part where it lacks what the step needs, which it reports as it joins, or where it has another
    version of this package than node 0 and most nodes.

    Parameters
    ----------
    failures : Failures
        Take what ends the gang before it begins.
    num_nodes, timeout_s, say
        See :class:`JoinDeadline`.
    may_leave_out : int
        How many nodes the step can do without.
    lost_nodes : callable
        Gives those of the gang, which has them from then on.

    Attributes
    ----------
    is_complete : bool
        Whether all nodes have joined, and the gang begins.
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
        self._left_out: dict[int, Failure] = {}
        self._deadline = JoinDeadline(loop, num_nodes, timeout_s, roster.infos, say, failures.add)

    def end(self) -> None:
        """Wait for no node any more."""
        self._deadline.end()

    def look(self) -> None:
        """A node has joined, or is left out: the gang begins if it was the last one."""
        infos = self._roster.infos
        # An unfit node sends its failure next: no body begins before that.
        awaited = [node for node, info in infos.items() if info.get("unfit") and node not in self._left_out]
        if len(infos) < self._num_nodes or awaited:
            return
        others = {node: text for node, text in self._roster.other_packages().items() if node not in self._left_out}
        failures = [Failure(node, "package", text, time.time()) for node, text in others.items()]
        agreeing = self._num_nodes - len(self._left_out) - len(failures)
        if self._leave_out(failures, 2 * agreeing > self._num_nodes):
            self._begin()

    def takes(self, failure: Failure) -> bool:
        """Whether this is the failure of a node that has joined only to report it, and the gang goes on without it."""
        node = failure.node
        if self._failures.stopping or not self._roster.infos.get(node, {}).get("unfit") or node in self._left_out:
            return False
        if self._leave_out([failure]):
            self.look()
        return True

    def told_of_unfit(self) -> str:
        """The nodes that are left out by now, for the report of a gang that ends before it begins; "" for none."""
        hostnames = self._roster.hostnames
        return "\n".join(
            f"Before, node {node} ({hostnames[node]}) could not take part: {failure.text}"
            for node, failure in self._left_out.items()
        )

    def _leave_out(self, failures: Sequence[Failure], is_right: bool = True) -> bool:
        """Whether the gang can do without the nodes of these ``failures``, which are left out then; else it ends."""
        if not failures:
            return True
        if not is_right or len(self._left_out) + len(failures) > self._may_leave_out:
            self._failures.add(failures[0])
            return False
        for failure in failures:
            self._left_out[failure.node] = failure
            self._lost_nodes().lose(failure, "cannot take part", WHY)
        return True

    def _begin(self) -> None:
        self.is_complete = True
        self.end()
        left_out = {str(node): f"{WHY}: {failure.text}" for node, failure in self._left_out.items()}
        more = {"settings": settings().as_dict(), "left_out": left_out}
        self._roster.broadcast({"op": "roster", "nodes": self._roster.nodes(), **more})
        for node in self._left_out:
            self._roster.send(node - 1, {"op": "left"})
