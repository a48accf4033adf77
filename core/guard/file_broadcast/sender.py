"""A file from one node to all others, along a chain: each node passes on what it has while the rest still arrives.

So it takes as long for a thousand nodes as for one. What is small goes along a tree instead, since in a chain the
connections, made one after the other, would take longest. A node that cannot be reached is left out: the node before
it sends to the one after it (:mod:`.hop`), which keeps what it has for a while and reports how much that is. At the
end control tries each node that was left out once more itself. A node's file appears when all of it is there and has
the SHA-256 that control gave; what is not complete is removed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..channel.connection import sentence
from ..tls.link import BulkError, Link
from . import receiver
from .hop import passing_on, receive_body
from .partial_file import Lost, Original

if TYPE_CHECKING:
    from .hop import Branches, Hop, Passing

PROGRESS_BYTES = 64 << 20
"""Above this size the user is told how far it is."""

_PROGRESS_SECONDS = 5.0


def send(key: bytes, path: str, to: str, hops: Sequence[Sequence[Any]], say: Callable[[str], object]) -> None:
    """Send the file ``path`` of this node to all ``hops``, where it becomes ``to``.

    Parameters
    ----------
    key : bytes
        What nodes show each other (:func:`~.remote_command.node_server.node_key`).
    to : str
        Absolute, or relative to each node's own working folder.
    hops : sequence of (node index, address, port)
        In the order in which they pass it on.
    say : callable
        Gets a line for the user now and then, where the file is large.

    Raises
    ------
    BulkError
        Names each node that did not get it; all others have it then. Or the file was changed meanwhile.
    OSError
        When the file cannot be read.
    """
    chain: list[Hop] = [(int(index), str(address), int(port)) for index, address, port in hops]
    source = Original(path)
    name = sentence(os.path.basename(path))
    try:
        progress = Progress(f"sending {name} ({source.size >> 20} MiB) to {len(chain)} nodes", source.size, say)
        transfer = os.urandom(16).hex()
        missed = _pass(passing_on(source, transfer, to, chain, key), progress)
        still = {}
        for hop in chain:
            if hop[0] in missed:
                still.update(_pass(passing_on(source, transfer, to, [hop], key), progress))
    except Lost as lost:
        raise BulkError(str(lost)) from None
    finally:
        source.close()
    if still:
        where = {index: address for index, address, _ in chain}
        raise BulkError(
            "\n".join(f"node {index} ({where[index]}) did not get {name}: {why}" for index, why in still.items())
        )
    progress.done()


def _pass(passing: Passing | Branches, progress: Progress) -> dict[int, str]:
    passing.run(progress)
    return passing.missed


class Progress:
    """Tells how far a large file is: at the start and the end, between them each tenth, but not too often."""

    def __init__(self, what: str, size: int, say: Callable[[str], object]) -> None:
        self._what, self._size, self._say = what, size, say
        self._told = -10
        self._next = 0.0
        self(0)

    def __call__(self, sent: int) -> None:
        if self._size <= PROGRESS_BYTES:
            return
        percent = sent * 100 // self._size
        if percent < 100 and percent >= self._told + 10 and time.monotonic() >= self._next:
            self._tell(percent)

    def done(self) -> None:
        """Everybody has it."""
        if self._size > PROGRESS_BYTES:
            self._tell(100)

    def _tell(self, percent: int) -> None:
        self._told, self._next = percent, time.monotonic() + _PROGRESS_SECONDS
        self._say(f"{self._what}: {percent} %")


def take(link: Link, request: dict[str, Any], key: bytes, place: Callable[[str], str]) -> None:
    """Serve one who sends this node a file, and pass it on to the nodes after it.

    ``place`` gives the path of a target by its name, and raises BulkError where nothing may go there. When the
    connection breaks, what has come is kept for some seconds, for another sender (:data:`~.receiver.KEEP_SECONDS`).
    """
    body = receive_body(link)
    try:
        mine, hops = receiver.find(request, body, key, place)
        mine.receive(link, hops)
    except Lost as lost:
        link.send_header({"error": str(lost)})
    else:
        mine.report(link)


def close() -> None:
    """This node takes no more and passes on no more: remove every part that is not complete."""
    receiver.close_all()
