"""What a node has of one broadcast: the part that grows, whoever sends it, and the passing on to the nodes after it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..loop.limits import what_ran_out
from ..settings import settings
from ..tls.link import CHUNK, BulkError, Link
from .hop import hops_of, passing_on, send_body
from .partial_file import Lost, Part

if TYPE_CHECKING:
    from .hop import Branches, Hop, Passing

KEEP_SECONDS = 30.0
"""How long a node that has lost its sender keeps its part for another one, and its report for who asks again."""

_BUSY_SECONDS = 2.0


class _NoThread(Lost):
    """This node cannot pass the file on."""


class Delivery:
    """One transfer on one node: its part, whoever sends it, and the passing on."""

    def __init__(self, transfer: str, to: str, part: Part, key: bytes) -> None:
        self.part = part
        self._touched = time.monotonic()
        self._transfer, self._to, self._key = transfer, to, key
        self._link: Link | None = None
        self._keeper: threading.Timer | None = None
        self._writing = threading.Lock()
        self._changed = threading.Condition()
        self._passing: Passing | Branches | None = None
        self._running: set[Passing | Branches] = set()

    def receive(self, link: Link, hops: list[Hop]) -> None:
        """Take what is missing from ``link``, which takes the place of whoever sent before.

        Raises
        ------
        Lost
            This node cannot have the file, or cannot pass it on.
        BulkError
            The connection broke.
        """
        self.part.hold()
        try:
            self._attach(link, hops)
            with self._writing:  # the thread of the one before may still be writing what it has got
                if self.part.lost is not None:
                    raise self.part.lost
                link.timeout(settings().broadcast_stall_timeout)
                link.send_header({"have": self.part.have})
                self._fill(link)
        except (BulkError, _NoThread):
            self._detach(link)
            raise
        finally:
            self.part.release()

    def report(self, link: Link) -> None:
        """Say whom the nodes from here on could not reach, when that is known."""
        with self._changed:
            passing = self._passing
        while True:
            with self._changed:
                over = self._changed.wait_for(lambda: passing not in self._running, _BUSY_SECONDS)
            if over:
                break
            link.send_header({"busy": True})
        link.send_header({"done": True})
        send_body(link, {"missed": list(passing.missed.items()) if passing is not None else []})
        self._touched = time.monotonic()

    def forgotten(self) -> bool:
        """Whether nobody will ask for it any more."""
        idle = time.monotonic() - self._touched > KEEP_SECONDS
        with self._changed:
            return idle and not self._running and (self.part.complete or self.part.lost is not None)

    def close(self) -> None:
        """Remove what is not complete, and stop passing it on."""
        with self._changed:
            self._forget_keeper()
            passing = self._passing
        self.part.fail("The node has ended its part in the gang.")
        if passing is not None:
            passing.stop()

    def _fill(self, link: Link) -> None:
        part = self.part
        while size := int.from_bytes(length := link.exactly(4), "big"):
            if size > min(CHUNK - 4, part.size - part.have):
                raise part.fail("More is sent than was announced.")
            room = part.room()
            room[:4] = length
            link.fill(memoryview(room)[4 : 4 + size])
            part.append(room, size)
        trailer = link.header()
        if "cancel" in trailer:
            raise part.fail(str(trailer["cancel"]), everywhere=True)
        if not part.complete:
            part.commit(trailer.get("sha256"))

    def _attach(self, link: Link, hops: list[Hop]) -> None:
        with self._changed:
            self._forget_keeper()
            before, self._link = self._link, link
            self.part.fed = True
            old = self._passing
            if old is None or old.starved or old.hops != hops:
                self._passing = passing_on(self.part, self._transfer, self._to, hops, self._key)
                if hops:
                    self._running.add(self._passing)
                    self.part.hold()
                    self._start(self._passing)
            else:
                old = None
        if before is not None:
            before.abort()
        if old is not None:
            old.stop()

    def _start(self, passing: Passing | Branches) -> None:
        try:
            threading.Thread(target=self._pass_on, args=(passing,), name="broadcast", daemon=True).start()
        except RuntimeError as error:
            self._passing = None
            self._running.discard(passing)
            self.part.release()
            # Not of the part itself, which control will send to this node alone.
            raise _NoThread(f"The guard has {what_ran_out(error)} to send the file on.", everywhere=False) from None

    def _detach(self, link: Link) -> None:
        """The sender is gone: wait for another one, for some time."""
        with self._changed:
            if self._link is link:
                self._link = None
                self.part.fed = False
                if not self.part.complete and self.part.lost is None:
                    self._keep()

    def _keep(self) -> None:
        self._keeper = threading.Timer(KEEP_SECONDS, self._give_up)
        self._keeper.daemon = True
        try:
            self._keeper.start()
        except RuntimeError as error:
            self._keeper = None
            self.part.fail(f"The guard has {what_ran_out(error)} to wait for another sender.")

    def _give_up(self) -> None:
        with self._changed:
            if self._keeper is None:
                return  # another sender came at the last moment
        self.part.fail(f"No more came within {KEEP_SECONDS:g} s.", everywhere=True)

    def _forget_keeper(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            self._keeper = None

    def _pass_on(self, passing: Passing | Branches) -> None:
        try:
            passing.run()
        except Lost:
            pass  # who sends to us learns it, too
        finally:
            self.part.release()
            with self._changed:
                self._running.discard(passing)
                self._changed.notify_all()


_lock = threading.Lock()
_deliveries: dict[tuple[str, int], Delivery] = {}


def find(
    request: dict[str, Any], body: dict[str, Any], key: bytes, place: Callable[[str], str]
) -> tuple[Delivery, list[Hop]]:
    """The delivery that a request goes on with, or a new one, and the nodes after this one.

    Raises
    ------
    Lost
        When the file cannot be taken here.
    """
    try:
        name = str(request["take"]), int(request["node"])
        to, size, mode, hops = str(body["to"]), int(body["size"]), int(body["mode"]), hops_of(body["hops"])
        path = place(to)
        os.fsencode(path)
        if "\0" in path or size < 0:
            raise ValueError(path)
    except (KeyError, TypeError, ValueError):
        raise Lost("The request is none that a node knows.", everywhere=False) from None
    except BulkError as error:
        raise Lost(str(error), everywhere=False) from None
    with _lock:
        for old in [old for old, delivery in _deliveries.items() if delivery.forgotten()]:
            del _deliveries[old]
        known = _deliveries.get(name)
        if known is None or known.part.lost is not None:
            known = _deliveries[name] = Delivery(name[0], to, Part(path, size, mode), key)
        return known, hops


def close_all() -> None:
    """Remove every part that is not complete, and stop passing on."""
    with _lock:
        deliveries = list(_deliveries.values())
        _deliveries.clear()
    for delivery in deliveries:
        delivery.close()
