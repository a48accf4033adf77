"""Notices on node 0 that no node of the gang makes progress, and brings the stacks of all nodes together.

Each node reports when it has been still for the timeout, and when it goes on (:mod:`..stalls.watch`). The gang is
stalled when all nodes are still whose body is not over: as long as one of them works, the others wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..failure_record import Failure
from ..settings import settings
from ..stalls import groups, limits

if TYPE_CHECKING:
    from ..loop.event_loop import Loop
    from ..loop.framing import Header
    from .roster import Roster

COLLECT_S = 15.0
"""A node that has not sent its stacks by then is named as one that has not. A node takes 5 s at most for the stacks of
Python, and 8 s for those of C.
"""

TEXT = 64 * 1024
"""Characters of all stacks of a gang."""


class GangStall:
    """The stall of a gang, and the stacks of its nodes.

    Parameters
    ----------
    fail : callable
        Takes the failure of a gang that has stalled.

    Attributes
    ----------
    stalled : dict or None
        While the gang is stalled: ``since`` (epoch), ``seconds``, ``line`` and ``text`` for the user, and ``groups``.
    """

    def __init__(self, loop: Loop, roster: Roster, num_nodes: int, fail: Callable[[Failure], None]) -> None:
        self._loop, self._roster, self._num_nodes, self._fail = loop, roster, num_nodes, fail
        self.stalled: dict[str, Any] | None = None
        self._still: set[int] = set()
        self._not_before = 0.0
        self._number = 0
        self._collections: dict[int, tuple[dict[int, Any], Callable[[dict[int, Any], set[int]], None]]] = {}

    @property
    def timeout_s(self) -> float:
        """Seconds after which the gang ends, or, where that is off, the card shows it."""
        return settings().stall_timeout or limits.CARD_S

    def still(self, node: int, is_still: bool) -> None:
        """``node`` has made no progress for the timeout, or makes some again."""
        if is_still:
            self._still.add(node)
            self._check()
        else:
            self._still.discard(node)
            self.stalled = None

    def progressed(self) -> None:
        """A body is over, or came to a collective: the others may go on, and have the time again."""
        self.stalled = None
        self._not_before = time.monotonic() + self.timeout_s
        if self._still:
            self._loop.call_later(self.timeout_s + 0.1, self._check)

    def _present(self) -> set[int]:
        """The nodes that can be asked."""
        return {0} | set(self._roster.members)

    def _nodes(self) -> set[int]:
        """Who could make progress."""
        return self._present() - self._roster.done - self._roster.left

    def _is_stalled(self) -> bool:
        nodes = self._nodes()
        is_complete = len(self._roster.infos) == self._num_nodes
        return is_complete and bool(nodes) and nodes <= self._still and time.monotonic() >= self._not_before

    def _check(self) -> None:
        if self._is_stalled() and self.stalled is None:
            self.collect(self._stalls)

    def _stalls(self, records: dict[int, Any], missing: set[int]) -> None:
        if not self._is_stalled() or self.stalled is not None:
            return
        found = groups.grouped(records)
        line, text = groups.line(found), groups.text(found, missing)[:TEXT]
        since = time.time() - self.timeout_s
        self.stalled = {"since": since, "seconds": self.timeout_s, "line": line, "text": text, "groups": found}
        if settings().stall_timeout:
            self._fail(self._failure(found, line, text))

    def _failure(self, found: list[dict[str, Any]], line: str, text: str) -> Failure:
        """Of the node and rank that stand alone, if some do."""
        node, rank = 0, None
        if found:
            node = found[0]["nodes"][0]
            if len(found) > 1 and groups.size(found[0]) == 1 and found[0]["ranks"]:
                rank = found[0]["ranks"][0]
        others = ", and neither has any other node" if self._num_nodes > 1 else ""
        what = f"has made no progress for {self.timeout_s:g} s (stall_timeout){others}: {line}"
        return Failure(node, "stall", what, time.time(), text, rank=rank)

    # -- stacks ------------------------------------------------------------------------------------------------------

    def collect(self, then: Callable[[dict[int, Any], set[int]], None]) -> None:
        """Ask all nodes for their stacks; ``then(records, missing)``, by node, and the nodes that have sent none."""
        self._number += 1
        number = self._number
        self._collections[number] = ({}, then)
        self._roster.broadcast({"op": "stacks", "number": number})
        self._loop.call_later(COLLECT_S, lambda: self._collected(number))

    def received(self, node: int, header: Header) -> None:
        """``node`` has sent its stacks."""
        collection = self._collections.get(header["number"])
        if collection is not None:
            collection[0][node] = header["records"]
            if self._present() <= collection[0].keys():
                self._collected(header["number"])

    def _collected(self, number: int) -> None:
        records, then = self._collections.pop(number, (None, None))
        if records is not None and then is not None:
            then(records, self._present() - records.keys())

    def wanted(self, node: int, header: Header) -> None:
        """``node`` wants the stacks of all nodes."""

        def found(records: dict[int, Any], missing: set[int]) -> None:
            all_groups = groups.grouped(records)
            text = groups.text(all_groups, missing)[:TEXT]
            small = [{**group, "stack": ""} for group in all_groups[groups.MOST_GROUPS :]]
            reply = {"groups": all_groups[: groups.MOST_GROUPS] + small, "text": text}
            self._roster.send(node, {"op": "stacks-found", "number": header["number"], **reply})

        self.collect(found)
