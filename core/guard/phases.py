"""The phases of a node: when its task started, met node 0, joined, began and ended its body, and was stored.

Each guard notes them once, as seconds since its task's start on the monotonic clock, and sends them to node 0's hub, a
handful of messages in a gang's life; :mod:`.coordinator.gang_phases` has those of all nodes there. The task gets them
by the request ``record`` (:meth:`NodePhases.record`), and node 0's log has them as one line.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from .processes import process_table
from .settings import settings

if TYPE_CHECKING:
    from .loop.framing import Header

    class Timers(Protocol):
        """What calls later."""

        def call_later(self, seconds: float, callback: Callable[[], None]) -> Any: ...

    class Link(Protocol):
        """The link to the hub, as far as it is used here."""

        @property
        def connected(self) -> bool: ...

        def send(self, header: Header, payload: bytes = b"") -> None: ...

        def phases(self) -> Header: ...

        def restarts(self) -> list[Header]: ...

    class Access(Protocol):
        """Where the link is found."""

        @property
        def link(self) -> Link: ...


STARTED, MET, JOINED, FORMED, RANKS, OUTPUT, DONE, FAILED, STORED = NAMES = (
    "started",
    "met",
    "joined",
    "formed",
    "ranks",
    "output",
    "done",
    "failed",
    "stored",
)
"""In their usual order: the task's process has started; it knows where node 0 is; all nodes have joined; what the
launcher gives is on ``current``, and the body begins; the first processes of a call have been started; the first of
them has written something; the body is over; the gang ends for a failure (on any node); Metaflow has stored the task.
"""

_OF_EVENTS = {
    "all_joined": JOINED,
    "body_done": DONE,
    "unwound": DONE,
    "stop": FAILED,
    "left": STORED,
    "failure_stored": STORED,
}
"""Which phase the events of :mod:`.node.state` begin."""

_AT_ONCE = frozenset({DONE, FAILED, STORED})
"""Sent at once: the node may be gone soon."""

SEND_S = 0.5
"""How long a phase waits for others that can go with it. Nodes after node 0 wait :data:`APART_S` longer than the one
before them, so that a thousand nodes that join at once do not send at once.
"""

APART_S = 0.001

TICKS_S = 100
"""Clock ticks of /proc in a second; the same on every Linux that runs Python (USER_HZ)."""


class NodePhases:
    """The phases of this node, each noted once.

    Parameters
    ----------
    loop : Loop
    hub : HubAccess
    say : callable
        Takes a line for the user.

    Attributes
    ----------
    since : float
        When the task started, in seconds since the epoch.
    times : dict of str to float
        By phase: seconds since the task's start. The order is that in which they were noted.
    on_note : callable
        Gets the name of each phase as it begins.
    card : str
        On node 0, the command that shows the gang's card; "" where it has none.
    """

    def __init__(self, loop: Timers, hub: Access, say: Callable[[str], None]) -> None:
        self.since = time.time()
        self.times: dict[str, float] = {}
        self.on_note: Callable[[str], None] = lambda name: None
        self.card = ""
        self._begun = time.monotonic()
        self._loop, self._hub, self._say = loop, hub, say
        self._index = 0
        self._is_dirty = self._is_waiting = False

    def task_started(self, index: int, pid: int) -> None:
        """The task ``pid`` of node ``index`` has reported itself; it started some time before that."""
        self._index = index
        ticks = process_table.started(pid)
        if ticks and hasattr(time, "CLOCK_BOOTTIME"):
            age = max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / TICKS_S)
            self._begun, self.since = time.monotonic() - age, time.time() - age
        self.note(STARTED, 0.0)

    def note(self, name: str, seconds: float | None = None) -> None:
        """Note that phase ``name`` begins now, or began ``seconds`` after the start. Only the first time counts."""
        if name in self.times:
            return
        self.times[name] = round(time.monotonic() - self._begun if seconds is None else seconds, 4)
        self._is_dirty = True
        self.on_note(name)
        if name in _AT_ONCE:
            self._send()
        elif not self._is_waiting:
            self._is_waiting = True
            self._loop.call_later(SEND_S + APART_S * self._index, self._send)
        if name == STORED and self._index == 0:
            self._say(closing_line(self._of_the_gang()) + (f"; card: {self.card}" if self.card else ""))

    def _of_the_gang(self) -> dict[str, float]:
        """Node 0's phases, where the body is done when the last node's is."""
        last = self._hub.link.phases().get(DONE, {}).get("last", 0.0) - self.since
        return {**self.times, DONE: max(last, self.times.get(DONE, last))}

    def event(self, name: str) -> None:
        """An event of the node's state has happened."""
        if name in _OF_EVENTS:
            self.note(_OF_EVENTS[name])

    def _send(self) -> None:
        self._is_waiting = False
        if self._is_dirty and self._hub.link.connected:
            self._is_dirty = False
            self._hub.link.send({"op": "phases", **self.as_dict()})

    def as_dict(self) -> Header:
        """``since`` and ``times``, as plain values."""
        return {"since": self.since, "times": dict(self.times)}

    def record(self) -> Header:
        """What the task keeps as Metaflow's metadata: its phases, the settings, and on node 0 the phases of all nodes
        and the restarts of ranks, with why there was none any more.
        """
        link = self._hub.link
        restarts = [{name: entry[name] for name in ("line", "at", "again")} for entry in link.restarts()]
        settings_now = settings().as_dict()
        return {"phases": self.as_dict(), "gang": link.phases(), "settings": settings_now, "restarts": restarts}


def closing_line(times: Mapping[str, float]) -> str:
    """How long each phase took, for node 0's log; the parts add up to the task's life."""
    if JOINED not in times:
        return f"failed {seconds(times.get(FAILED, times[STORED]))} after the start, before all nodes had joined"
    parts = [f"joined {seconds(times[JOINED])}"]
    end = times.get(FAILED, times.get(DONE, times[STORED]))
    begun = times[JOINED]
    for name, shown in ((FORMED, "launcher"), (RANKS, "ranks")):
        if begun <= times.get(name, -1.0) <= end:
            if name == RANKS or times[name] - begun >= 0.05:  # most launchers have nothing to wait for
                parts.append(f"{shown} {seconds(times[name] - begun)}")
            begun = times[name]
    parts.append(f"body{' failed after' if FAILED in times else ''} {seconds(end - begun)}")
    parts.append(f"stored {seconds(times[STORED] - end)}")
    return ", ".join(parts)


def seconds(value: float) -> str:
    """ "0.3 s", "512 s"."""
    return f"{max(value, 0.0):.{1 if value < 99.95 else 0}f} s"
