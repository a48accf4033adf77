"""Sends a broadcast on from one node: to the next node, or, where that one cannot be reached, to the one after it.
What is small goes to the first nodes of several parts of the rest.

What goes over a connection (:mod:`~core.guard.tls.endpoints`):

    sender      {"take": transfer, "node": receiver's index}, then a body: target, size, mode, the nodes after it
    receiver    {"have": bytes it has already of this transfer}
    sender      the rest in frames (4 bytes of length, data), an empty frame, then {"sha256"}, or {"cancel": why}
    receiver    {"busy"} every few seconds while nodes behind it are not done, then {"done"} and a body: whom it missed

or {"error": why} at any point from the receiver. A body is JSON after 4 bytes of length: a thousand nodes are more than
a header holds.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..channel.connection import sentence
from ..loop.framing import Nonsense
from ..loop.untrusted import parse
from ..settings import settings
from ..tls.endpoints import connect
from ..tls.link import CHUNK, BulkError, Link
from .partial_file import SMALL_BYTES, Lost

if TYPE_CHECKING:
    from .partial_file import Original, Part

    Hop = tuple[int, str, int]

BRANCHES = 4
"""To so many nodes a node sends what is small, each of which passes it on to its part of the rest."""

BRANCH_FROM = 8
"""Up to so many nodes are a chain in any case: a connection takes some milliseconds."""

_BODY_BYTES = 1 << 20
_LAST_WORDS_SECONDS = 1.0


def passing_on(source: Original | Part, transfer: str, to: str, hops: list[Hop], key: bytes) -> Passing | Branches:
    """What sends ``source`` to all ``hops``: along a chain, or, where it is small and they are many, along a tree.

    A chain has each byte on every link once, and takes as long as its connections, one after the other.
    """
    if source.size > SMALL_BYTES or len(hops) <= BRANCH_FROM:
        return Passing(source, transfer, to, hops, key)
    return Branches(source, transfer, to, hops, key)


class Passing:
    """Sends ``source`` to the first of ``hops`` (index, address, port) that takes it, which passes it on to the rest.

    Attributes
    ----------
    missed : dict of int to str
        After :meth:`run`: the nodes that do not have it, by index, with the reason.
    """

    def __init__(self, source: Original | Part, transfer: str, to: str, hops: list[Hop], key: bytes) -> None:
        self.hops = hops
        self.missed: dict[int, str] = {}
        self._source, self._transfer, self._to, self._key = source, transfer, to, key
        self._lock = threading.Lock()
        self._link: Link | None = None
        self._stopped = False
        self.starved = False
        """It ended because this node itself was cut off, not because there was nobody left to try."""

    def stop(self) -> None:
        """Make :meth:`run`, in another thread, end without further attempts."""
        with self._lock:
            self._stopped = True
            if self._link is not None:
                self._link.abort()

    def run(self, progress: Callable[[int], None] = lambda sent: None) -> None:
        """Do it. :class:`~.partial_file.Lost` when the source ends before its end."""
        for number, hop in enumerate(self.hops):
            try:
                self._send(hop, self.hops[number + 1 :], progress)
                return
            except BulkError as error:
                if self._stopped:
                    return
                # The next node may have been given another sender, because we are thought to be dead. Then to go round
                # it would take its own next node away from it.
                if not self._source.supplied():
                    self.starved = True
                    return
                self.missed[hop[0]] = str(error)

    def _send(self, hop: Hop, rest: list[Hop], progress: Callable[[int], None]) -> None:
        index, address, port = hop
        with connect(address, port, self._key) as link:
            with self._lock:
                if self._stopped:
                    return
                self._link = link
            try:
                link.timeout(settings().broadcast_stall_timeout)
                self._begin(link, index, rest, progress)
            except BulkError as error:
                raise _last_words(link, address) or error from None
            except Lost as lost:
                if lost.everywhere:
                    with contextlib.suppress(BulkError):
                        link.send(bytes(4))
                        link.send_header({"cancel": str(lost)})
                raise
            finally:
                with self._lock:
                    self._link = None

    def _begin(self, link: Link, index: int, rest: list[Hop], progress: Callable[[int], None]) -> None:
        source = self._source
        link.send_header({"take": self._transfer, "node": index})
        send_body(link, {"to": self._to, "size": source.size, "mode": source.mode, "hops": rest})
        offset = link.answer().get("have")
        if type(offset) is not int or not 0 <= offset <= source.size:
            raise BulkError("The node does not say how much it has.")
        room = memoryview(bytearray(CHUNK))  # a frame, whose length makes whole TLS records
        while offset < source.size:
            have = source.available(offset)
            while offset < have:
                frame = source.frame(offset, have, room)
                link.send(frame)
                offset += len(frame) - 4
                progress(offset)
        digest = source.digest()
        link.send(bytes(4))
        link.send_header({"sha256": digest})
        while "done" not in link.answer():
            pass  # it is waiting for the nodes behind it
        self.missed.update(_missed(receive_body(link)))


class Branches:
    """As :class:`Passing`, by several at once, each with its part of ``hops``. What they read must be small."""

    def __init__(self, source: Original | Part, transfer: str, to: str, hops: list[Hop], key: bytes) -> None:
        self.hops = hops
        bounds = [len(hops) * branch // BRANCHES for branch in range(BRANCHES + 1)]
        self._branches = [Passing(source, transfer, to, hops[a:b], key) for a, b in itertools.pairwise(bounds)]

    @property
    def missed(self) -> dict[int, str]:
        return {index: why for branch in self._branches for index, why in branch.missed.items()}

    @property
    def starved(self) -> bool:
        return any(branch.starved for branch in self._branches)

    def stop(self) -> None:
        for branch in self._branches:
            branch.stop()

    def run(self, progress: Callable[[int], None] = lambda sent: None) -> None:
        lost: list[Lost] = []

        def run(branch: Passing) -> None:
            try:
                branch.run()
            except Lost as error:
                lost.append(error)

        others, threads = self._branches[1:], []
        with contextlib.suppress(RuntimeError):  # no thread: the branches that are left come one after the other
            while others:
                threads.append(threading.Thread(target=run, args=(others[0],), name="broadcast", daemon=True))
                threads[-1].start()
                del others[0]
        for branch in (self._branches[0], *others):
            run(branch)
        for thread in threads[: len(self._branches) - 1 - len(others)]:
            thread.join()
        if lost:
            raise lost[0]


def _last_words(link: Link, address: str) -> BulkError | None:
    """Why the node at the other end of a broken connection stopped taking, where it could say so."""
    link.timeout(_LAST_WORDS_SECONDS)
    with contextlib.suppress(BulkError):
        header = link.header()
        if "error" in header:
            return BulkError(f"{address} says: {sentence(header['error'])}")
    return None


def send_body(link: Link, body: dict[str, Any]) -> None:
    """Send a JSON object that may be larger than a header."""
    text = json.dumps(body).encode()
    if len(text) > _BODY_BYTES:
        raise BulkError(f"A list of {len(text)} bytes is too large: {_BODY_BYTES} is the limit.")
    link.send(len(text).to_bytes(4, "big") + text)


def receive_body(link: Link) -> dict[str, Any]:
    """Receive what :func:`send_body` sent."""
    size = int.from_bytes(link.exactly(4), "big")
    if size > _BODY_BYTES:
        raise BulkError(f"A list of {size} bytes is announced; {_BODY_BYTES} is the limit.")
    try:
        return parse(link.exactly(size))
    except Nonsense:
        raise BulkError("What should be a JSON object is none.") from None


def hops_of(value: Any) -> list[Hop]:
    """The nodes of a list that came over a connection; ValueError or TypeError where it is none."""
    return [(int(index), str(address), int(port)) for index, address, port in value]


def _missed(body: dict[str, Any]) -> dict[int, str]:
    try:
        return {int(index): sentence(why) for index, why in body["missed"]}
    except (KeyError, TypeError, ValueError):
        raise BulkError("The node's report is none.") from None
