"""Requests for ports, for files that go with the gang, and for files that are sent to other nodes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...loop.limits import what_ran_out

if TYPE_CHECKING:
    from ...hub_link.hub_access import HubAccess
    from ...loop.event_loop import Loop
    from ...loop.framing import Header
    from ..cleanup import Cleanup
    from ..identity import NodeIdentity
    from .dispatch import Method
    from .pending_requests import PendingRequests


class PortAndFileRequests:
    """Each method does what the request of its name asks for."""

    def __init__(
        self,
        loop: Loop,
        identity: NodeIdentity,
        hub: HubAccess,
        pending: PendingRequests,
        cleanup: Cleanup,
        say: Callable[[str], None],
    ) -> None:
        self._loop, self._identity, self._hub = loop, identity, hub
        self._pending, self._cleanup, self._say = pending, cleanup, say

    def methods(self) -> dict[str, Method]:
        return {"port": self.port, "own": self.own, "broadcast": self.broadcast}

    def port(self, number: int, header: Header, payload: bytes) -> None:
        """Lease a port until the node ends: ``exact``, or any where that is 0."""
        from ...host.ports import lease_exact, lease_port

        try:
            exact = header["exact"]
            lease = lease_exact(exact) if exact else lease_port()
        except (OSError, ValueError) as error:
            self._pending.reply(number, {"error": str(error)})
            return
        self._cleanup.leases.append(lease)
        self._pending.reply(number, {"port": lease.port})

    def own(self, number: int, header: Header, payload: bytes) -> None:
        """Remove a folder, too, in the end, or files of a pattern that nobody uses then; or what tries have left in
        what is owned.
        """
        if "path" in header:
            self._cleanup.owned.add_folder(header["path"])
        elif "left_by_tries" in header:
            self._cleanup.owned.add_left_by_tries(header["left_by_tries"])
        else:
            self._cleanup.owned.add_pattern(header["pattern"])
        self._pending.reply(number, {})

    def broadcast(self, number: int, header: Header, payload: bytes) -> None:
        """Send a file to other nodes, each of which passes it on to the next; on a thread."""
        from ...file_broadcast.sender import send  # here and not in the thread: no descriptor may be left then
        from ...remote_command.node_server import node_key
        from ...tls.link import BulkError

        whose = f"The guard of node {self._identity.index}"

        def work() -> None:
            reply: Header = {}
            try:
                send(node_key(self._hub.link.secret), header["path"], header["to"], header["hops"], self._say)
            except MemoryError as error:
                reply = {"error": f"{whose} has {what_ran_out(error)} to send the file."}
            except (BulkError, OSError, ValueError) as error:
                reply = {"error": str(error)}
            self._loop.call_soon_threadsafe(lambda: self._pending.reply(number, reply))

        try:
            threading.Thread(target=work, name="broadcast", daemon=True).start()
        except RuntimeError as error:
            self._pending.reply(number, {"error": f"{whose} has {what_ran_out(error)} to send the file."})
