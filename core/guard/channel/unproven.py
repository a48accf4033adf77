"""Connections that have not proved the gang's secret yet: how long each may take, and which one is dropped for another.

A port that others reach gets connections of which nothing ever comes: of port scanners and health checks, or of
an attacker. They must not keep out the gang's own nodes. So there are places for some thousand; where all are
taken, the oldest that has not gone on for a moment has to go, of that address which has the most. (A gang may well have
one address, on one machine or behind one translated address: so no address has a limit of its own.)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice

SILENT_SECONDS = 0.1
"""How long a connection is safe that has sent nothing, while all places are taken. A node sends its hello as soon
as the kernel has connected it, so they are usually there before the connection is looked at."""

BEGUN_SECONDS = 0.15
"""The same for one that has sent something sensible: its next step takes one round trip. A node that is dropped
connects again.
"""

DROPS_AT_ONCE = 16
"""How many overdue connections are dropped before the loop's other callbacks have their turn: some 3 ms. A crowd that
came together would be dropped together, in half a second, and all of it would come again at once."""


class Place:
    """One connection's. ``drop(overdue)`` ends it, and returns whether it did: where it is not overdue, it stays if
    something has come of it meanwhile.
    """

    __slots__ = ("address", "begun", "came", "drop", "moved")

    def __init__(self, address: str, drop: Callable[[bool], bool], now: float) -> None:
        self.address = address
        self.drop = drop
        self.came = self.moved = now
        self.begun = False

    def goes_on(self) -> None:
        """It has sent something sensible."""
        self.begun = True
        self.moved = time.monotonic()

    def safe_until(self) -> float:
        return self.moved + (BEGUN_SECONDS if self.begun else SILENT_SECONDS)


class Waiting:
    """At most ``limit`` connections, which may be changed at any time, each for at most ``seconds``."""

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit = limit
        self.seconds = seconds
        self._places: dict[Place, None] = {}  # in the order in which they came
        self._by_address: dict[str, dict[Place, None]] = {}

    def __len__(self) -> int:
        return len(self._places)

    @property
    def full(self) -> bool:
        return len(self._places) >= self.limit

    def enter(self, address: str, drop: Callable[[bool], bool]) -> Place:
        """A place for a connection that comes from ``address``."""
        place = Place(address, drop, time.monotonic())
        self._places[place] = None
        self._by_address.setdefault(address, {})[place] = None
        return place

    def leave(self, place: Place) -> None:
        """The connection has proved itself, or is over. Harmless when repeated."""
        if self._places.pop(place, place) is None:
            place.drop = _gone  # the connection has its place in turn: no circle, see Stream
            mates = self._by_address[place.address]
            del mates[place]
            if not mates:
                del self._by_address[place.address]

    def drop_one(self) -> bool:
        """Drop the one that has to go for another; False where all have to be given some more time."""
        if not self._places:
            return False
        now = time.monotonic()
        crowd = max(self._by_address.values(), key=len)
        for place in list(crowd):
            if place.safe_until() <= now and place.drop(False):
                self.leave(place)
                return True
        return not self.full

    def seconds_to_wait(self) -> float:
        """Until :meth:`drop_one` can drop one."""
        crowd = max(self._by_address.values(), key=len)
        return max(0.0, min(place.safe_until() for place in crowd) - time.monotonic())

    def drop_overdue(self) -> bool:
        """Drop those that have had their time, :data:`DROPS_AT_ONCE` at most. Returns whether there are more."""
        latest = time.monotonic() - self.seconds
        for place in list(islice(self._places, DROPS_AT_ONCE)):
            if place.came > latest:
                return False  # those behind it came later
            if place in self._places:  # else it went with one before it
                place.drop(True)
                self.leave(place)
        return any(place.came <= latest for place in islice(self._places, 1))

    def drop_all(self) -> None:
        """Drop all."""
        for place in list(self._places):
            place.drop(True)
            self.leave(place)


def _gone(overdue: bool) -> bool:
    return True
