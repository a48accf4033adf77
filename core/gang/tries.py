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
from .collectives import Member, gather, gather_to_all
from .programs import LaunchGivenUp
from .restarts import RankFailure, RestartPolicy, in_one_line

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
    """What node 0 decides for all nodes. ``line`` is for the log."""

    what: str
    line: str = ""


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

    Attributes
    ----------
    number : int
        Restarts by now.
    """

    def __init__(self, gang: Member, policy: RestartPolicy, is_alone: bool = False) -> None:
        self._gang, self._policy, self._is_alone = gang, policy, is_alone
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
            Starts this node's part, and waits for its end. It makes no collective after that.

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
            launch()
        except LaunchGivenUp as given_up:
            own = given_up.record
        decision = self._decided(own)
        if decision.what == _PORT:
            raise PortTaken("Another program took the port that was chosen for this launch.")
        if decision.what == _END:
            self._end(own)
        if decision.what == _AGAIN:
            self._times.append(time.monotonic())
            if self._gang.node_index == 0:
                say(decision.line)
            self._gang._link.request("tidy-up", nodes=self._gang.num_nodes if self._is_alone else 0)
            raise Again

    def _decided(self, own: dict[str, Any] | None) -> Decision:
        if self._is_alone:
            return self._decide([own])
        kind = "run(), the end of its ranks"
        records = gather(self._gang, kind, own, 0)
        decision = self._decide(records) if records is not None else None
        found = gather_to_all(self._gang, kind, decision)[0]
        assert isinstance(found, Decision)
        return found

    def _decide(self, records: list[dict[str, Any] | None]) -> Decision:
        """On node 0: from what each node knows; None of one whose ranks have all ended with code 0."""
        given_up = [record for record in records if record is not None]
        if not given_up:
            return Decision(_OVER)
        failures = [Failure.from_json(found) for record in given_up for found in record["failures"]]
        if any(record["port_taken"] for record in given_up):
            return Decision(_PORT)
        if all(failure.order != EVIDENCE for failure in failures):
            failures += [Failure.from_json(found) for record in given_up for found in record["hints"]]
        first = causes(failures) or [Failure(0, "exit", _UNKNOWN, time.time())]
        self._records = [failure.to_json() for failure in (*first, *(one for one in failures if one not in first))]
        line = in_one_line(first, [node.hostname for node in self._gang.nodes])
        has_progress = any(record["made_progress"] for record in given_up)
        now = time.monotonic()
        why = self._policy.refusal(RankFailure.of(first[0], has_progress, self.number), self._times, now)
        line = why or f"{self._policy.title(self._times, now)}: {line}"
        entry = {"line": line, "at": time.time(), "detail": "" if why else first[0].detail}
        self._gang._link.request("restarted", entry=entry)
        return Decision(_END if why else _AGAIN, line)

    def _end(self, own: dict[str, Any] | None) -> None:
        """Node 0 ends the gang by the failure; the others wait for that."""
        try:
            self._gang._link.request("fail-launch", failures=self._records)
        except GangInterrupt:
            if own is not None and "failed" in own:
                raise ProcessFailed(own["failed"]) from None
            raise
