"""The tries of one call that starts ranks: what failed in one is gathered, node 0 decides, and all nodes try again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..exceptions import GangInterrupt, PortTaken, ProcessFailed
from ..guard.coordinator.root_cause import causes
from ..guard.failure_record import EVIDENCE, Failure
from ..logs import say
from .collectives import LOST, Member, gather, gather_to_all
from .programs import LaunchGivenUp
from .restarts import RankFailure, RestartPolicy, in_one_line
from .spares.world import World
from .spares.worlds import Worlds

RESTART_COUNT, MAX_RESTARTS = "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS"
"""torch's variables, by which scripts know that they were started again."""

RESTART = "GANG_RESTART"
"""The same as a variable of ours, which no other launcher sets."""

_UNKNOWN = "a rank has failed, and no node knows which"

_OVER, _AGAIN, _PORT, _END = "over", "again", "port", "end"


class Again(Exception):
    """The launch has failed, on all nodes, and is to be started again."""


@dataclass(frozen=True)
class Decision:
    """What node 0 decides for all nodes. ``line`` is for the log, ``world`` that of the next try."""

    what: str
    line: str = ""
    world: World | None = None


class Tries:
    """The tries of one call, the same object from the first to the last.

    A launch of a plan that is ``restartable`` ends on all nodes when a process of it fails on any. What each node
    knows of that goes to node 0, which decides; where it is not tried again, the gang ends by that failure.

    Parameters
    ----------
    gang : Member
    policy : RestartPolicy
    is_alone : bool
        Whether only node 0 makes the call, as where the body runs on it alone.
    worlds : Worlds, optional
        Which nodes have ranks, where the gang goes on without those that it loses.

    Attributes
    ----------
    number : int
        Restarts by now.
    """

    def __init__(
        self, gang: Member, policy: RestartPolicy, is_alone: bool = False, worlds: Worlds | None = None
    ) -> None:
        self._gang, self._policy, self._is_alone, self._worlds = gang, policy, is_alone, worlds
        self._times: list[float] = []
        self._records: list[dict[str, Any]] = []

    @property
    def number(self) -> int:
        return len(self._times)

    @property
    def has_restarts(self) -> bool:
        """Whether there may be any; the plan is ``restartable`` then."""
        return self._policy.restarts > 0

    def variables(self) -> dict[str, str]:
        """Variables for the ranks of the next try; none where there are no restarts."""
        if not self.has_restarts:
            return {}
        count = str(self.number)
        return {RESTART: count, RESTART_COUNT: count, MAX_RESTARTS: str(self._policy.restarts)}

    def run(self, launch: Callable[[], object]) -> None:
        """One try. Every node must call it, unless it ``is_alone``.

        Parameters
        ----------
        launch : callable
            Starts this node's part, and waits for its end. It makes no collective after that; where there are
            ``worlds``, none at all, since it is not called on a node without ranks.

        Raises
        ------
        Again
            It has failed, and is to be called again, on every node. Nothing of it is left on this node.
        PortTaken
            On every node: a foreign program holds the port.
        ProcessFailed
            It has failed, the gang ends by that, and a process of this node is among those that failed.
        """
        if not self.has_restarts:
            launch()
            return
        own: dict[str, Any] | None = None
        try:
            if self._worlds is None or self._worlds.has_this_node:
                launch()
        except LaunchGivenUp as given_up:
            own = given_up.record
        try:
            decision = self._decided(own)
        except GangInterrupt:  # node 0 has ended the gang before this node has its decision
            self._raise_own(own)
            raise
        if decision.what == _PORT:
            raise PortTaken("Another program took the port that was chosen for this launch.")
        if decision.what == _END:
            self._end(own)
        if decision.what == _AGAIN:
            self._times.append(time.monotonic())
            if self._gang.node_index == 0:
                say(decision.line)
            if self._worlds is not None and decision.world is not None:
                self._worlds.become(decision.world)
            self._gang._link.request("tidy-up", nodes=self._gang.num_nodes if self._is_alone else 0)
            raise Again

    def _decided(self, own: dict[str, Any] | None) -> Decision:
        if self._is_alone:
            return self._decide([own])
        kind = "run(), the end of its ranks"
        records = gather(self._gang, kind, own, 0, LOST)
        decision = self._decide(records) if records is not None else None
        found = gather_to_all(self._gang, kind, decision)[0]
        assert isinstance(found, Decision)
        return found

    def _decide(self, records: list[Any]) -> Decision:
        """On node 0: from what each node knows; None of one whose ranks have all ended with code 0, LOST of one that
        was lost before it could report.
        """
        given_up: list[dict[str, Any]] = [record for record in records if record not in (None, LOST)]
        if self._worlds is not None and self._worlds.has_failed(records):
            lost = self._worlds.losses()
            if not self._worlds.now.is_enough or not lost.keys().isdisjoint(self._worlds.now.nodes):
                return self._go_on_without(lost, given_up)
        if not given_up:
            return Decision(_OVER)
        failures = [Failure.from_json(found) for record in given_up for found in record["failures"]]
        if any(record["port_taken"] for record in given_up):
            return Decision(_PORT)
        if all(failure.order != EVIDENCE for failure in failures):
            failures += [Failure.from_json(found) for record in given_up for found in record["hints"]]
        first = causes(failures) or [Failure(0, "exit", _UNKNOWN, time.time())]
        self._records = [failure.to_json() for failure in (*first, *(one for one in failures if one not in first))]
        return self._again_or_end(first, given_up, {})

    def _go_on_without(self, lost: dict[int, Failure], given_up: list[dict[str, Any]]) -> Decision:
        """Nodes that have ranks are ``lost``, which explains whatever has failed on others; or there are too few."""
        assert self._worlds is not None
        of_world = [failure for node, failure in lost.items() if node in self._worlds.now.nodes] or [*lost.values()]
        first = sorted(of_world, key=lambda failure: failure.time)
        self._records = [failure.to_json() for failure in first]
        return self._again_or_end([failure.replaced(kind="lost") for failure in first], given_up, lost)

    def _again_or_end(self, first: list[Failure], given_up: list[dict[str, Any]], lost: dict[int, Failure]) -> Decision:
        """The decision by the failures that explain the rest, which the guard gets as well."""
        line = in_one_line(first, [node.hostname for node in self._gang.nodes])
        has_progress = any(record["made_progress"] for record in given_up)
        now = time.monotonic()
        why = self._policy.refusal(RankFailure.of(first[0], has_progress, self.number), self._times, now)
        world, left_out = None, dict[int, str]()
        if self._worlds is not None:
            world, left_out = self._worlds.after(lost or self._worlds.losses(), None if lost else first[0])
            more = [f"node {node} is left out, since {text}" for node, text in left_out.items()]
            line = "; ".join(filter(None, (line, *more, world.changes_from(self._worlds.now))))
            why = why if world.is_enough else world.too_few()
        line = why or f"{self._policy.title(self._times, now)}: {line}"
        entry = {"line": line, "at": time.time(), "again": not why, "detail": "" if why else first[0].detail}
        self._gang._link.request("restarted", entry=entry, left_out=left_out)
        return Decision(_END if why else _AGAIN, line, world)

    def _end(self, own: dict[str, Any] | None) -> None:
        """Node 0 ends the gang by the failure; the others wait for that."""
        try:
            self._gang._link.request("fail-launch", failures=self._records)
        except GangInterrupt:
            self._raise_own(own)
            raise

    def _raise_own(self, own: dict[str, Any] | None) -> None:
        """Raise the failure of a process of this node, where there is one."""
        if own is not None and "failed" in own:
            raise ProcessFailed(own["failed"]) from None
