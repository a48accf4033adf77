"""Node 0's link to the hub, which is in its own process, with all that the other nodes connect to."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..channel.accept import Acceptor
from ..channel.connection import Identity
from ..coordinator.hub import Hub
from ..coordinator.messages import HEADER_BYTES, inline_bytes
from ..loop.limits import Complaint

if TYPE_CHECKING:
    from ..debug_log import DebugLog
    from ..loop.event_loop import Loop
    from ..loop.framing import Header
    from ..tls.uploads import UploadServer
    from .hub_link import UploadsReady


class LocalHubLink:
    """Control's: the hub itself, the socket on which the others reach it, and the server for uploads.

    Parameters
    ----------
    folder : str
        Private; large values are stored in a folder below.
    say : callable
        Takes a line for the user.
    on_message : callable
        Takes the hub's messages to this node: ``on_message(header, payload)``.
    timeout_s : float
        Seconds in which all nodes have to join.
    identity : list
        Of the gang, as :class:`Identity` has it.
    host : str
        The address on which the others reach the hub.
    debug : DebugLog or None
    may_leave_out : int
        How many nodes that cannot take part the gang can begin without.

    Raises
    ------
    OSError
        When nothing can listen on ``host``.
    """

    control_done = False
    connected = True

    def __init__(
        self,
        loop: Loop,
        folder: str,
        say: Callable[[str], None],
        on_message: Callable[[Header, bytes], None],
        num_nodes: int,
        timeout_s: float,
        identity: list[str | int],
        host: str,
        debug: DebugLog | None = None,
        may_leave_out: int = 0,
    ) -> None:
        self._debug = debug
        self.secret = os.urandom(32)
        self.all_left = num_nodes == 1
        self._folder, self._say, self._on_message = folder, say, on_message
        self._uploads: UploadServer | None = None
        self._hub = Hub(loop, num_nodes, timeout_s, self._deliver, say, self._start_uploads, debug, may_leave_out)
        self._acceptor = Acceptor(
            loop,
            host,
            self.secret,
            Identity(*identity),  # type: ignore[arg-type]
            self._hub.accept,
            self._hub.refuse,
            frame_bytes=HEADER_BYTES + inline_bytes(num_nodes),
            header_bytes=HEADER_BYTES,
            say=say,
        )
        self.address = self._acceptor.address
        self.port = self._acceptor.port

    def join(self, info: Header) -> None:
        self._hub.join(0, info)

    def _deliver(self, header: Header, payload: bytes) -> None:
        if self._debug is not None:
            self._debug.write("from the hub:", header, payload)
        if header["op"] == "all-left":
            self.all_left = True
        self._on_message(header, payload)

    def _start_uploads(self) -> int:
        if self._uploads is None:
            from ..tls.uploads import UploadServer

            folder = os.path.join(self._folder, "values")
            os.makedirs(folder, mode=0o700, exist_ok=True)
            complain = Complaint(self._say, "node 0", "for large values")
            self._uploads = UploadServer(self.address, self.secret, folder, complain=complain)
        return self._uploads.port

    def send(self, header: Header, payload: bytes = b"") -> None:
        self._hub.receive(0, header, payload)

    def with_uploads(self, ready: UploadsReady) -> None:
        ready(self.address, self._start_uploads(), self.secret)

    def has_left(self, node: int) -> bool:
        return node in self._hub.roster.left

    def has_joined(self, node: int) -> bool:
        return node in self._hub.roster.infos

    def guards(self) -> dict[int, int]:
        roster = self._hub.roster
        found = {node: roster.infos[node].get("guard") for node in roster.members if node in roster.infos}
        return {node: pid for node, pid in found.items() if type(pid) is int and pid > 1}

    def samples(self) -> Header:
        return {str(node): sample for node, sample in self._hub.reports.samples.items()}

    def traces(self) -> dict[int, Header]:
        return self._hub.reports.traces

    def facts(self) -> list[object]:
        return self._hub.roster.facts()

    def stalled(self) -> Header | None:
        return self._hub.reports.stalled()

    def restarts(self) -> list[Header]:
        return self._hub.reports.restarts

    def clock(self) -> tuple[float, float]:
        return 0.0, 0.0

    def phases_of_nodes(self) -> dict[int, tuple[float, dict[str, float]]]:
        return self._hub.reports.phases.nodes

    def phases(self) -> Header:
        return self._hub.reports.phases.summary()

    def leave(self, then: Callable[[], None]) -> None:
        then()

    def may_leave(self, reported: bool) -> bool:
        return reported and not self._hub.roster.members_left

    def close(self, then: Callable[[], None]) -> None:
        self._acceptor.close()
        if self._uploads is not None:
            self._uploads.close()
        self._hub.close(then)
