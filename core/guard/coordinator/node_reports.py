"""What nodes report to the hub about themselves, and what nothing else of the hub depends on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..failure_record import Failure
from ..text import indent
from .gang_phases import GangPhases

if TYPE_CHECKING:
    from ..loop.event_loop import Loop
    from ..loop.framing import Header
    from .gang_stall import GangStall
    from .roster import Roster


class NodeReports:
    """Phases, samples, traces, stalls and restarts.

    Attributes
    ----------
    samples : dict
        By node: the newest sample.
    traces : dict
        By node: the traces of torch's profiler that its ranks have written; see ``core/storage/traces.py``.
    restarts : list of dict
        What control's task says of each restart of ranks, and last of why there was none: ``line``, ``detail``, ``at``.
    """

    def __init__(self, loop: Loop, roster: Roster, num_nodes: int, fail: Callable[[Failure], None]) -> None:
        self._loop, self._roster, self._num_nodes, self._fail = loop, roster, num_nodes, fail
        self.phases = GangPhases()
        self.samples: dict[int, Header] = {}
        self.traces: dict[int, Header] = {}
        self.restarts: list[Header] = []
        self._stall: GangStall | None = None

    def stalled(self) -> Header | None:
        """Where all ranks stand, while the gang makes no progress."""
        return self._stall.stalled if self._stall is not None else None

    def told_of_restarts(self) -> str:
        """All restarts, for the failure report, the first one's failure in full; "" where there were none."""
        lines = []
        for entry in self.restarts:
            lines.append(entry["line"])
            if entry is self.restarts[0] and entry["detail"].strip():
                lines.append(indent(entry["detail"]))
        return "\n".join(lines)

    def _stalls(self) -> GangStall:
        if self._stall is None:
            from .gang_stall import GangStall  # not for gangs that never need it

            self._stall = GangStall(self._loop, self._roster, self._num_nodes, self._fail)
        return self._stall

    def take(self, node: int, header: Header) -> bool:
        """Whether the message is one of these, and so says nothing about the node's part in the gang's end: one that
        was under way when the gang stopped may come later.
        """
        op = header["op"]
        if op == "sample":
            self.samples[node] = header["sample"]
        elif op == "traces":
            self.traces[node] = header["found"]
        elif op == "phases":
            connection = self._roster.members.get(node)
            self.phases.take(node, header, connection.offset if connection is not None else 0.0)
        elif op == "restarted" and node == 0:
            self.restarts.append(header["entry"])
        elif op == "tidy-up" and node == 0:
            self._roster.broadcast({"op": "tidy-up"})
        elif op == "tidied":
            self._roster.deliver({"op": "tidied", "node": node}, b"")
        elif op == "ranks-failed":  # node 0 has started what has failed there, and may start it again
            self._roster.deliver({"op": "ranks-failed", "failure": header["failure"]}, b"")
        elif op == "still":
            self._stalls().still(node, header["still"])
        elif op == "stacks":
            self._stalls().received(node, header)
        elif op == "want-stacks":
            self._stalls().wanted(node, header)
        else:
            if op in ("done", "gather") and self._stall is not None:
                self._stall.progressed()
            return False
        return True
