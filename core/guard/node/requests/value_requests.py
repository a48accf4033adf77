"""Requests for large values of collectives: upload one to node 0, receive what node 0 sends, send it to other nodes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ...loop.limits import what_ran_out

if TYPE_CHECKING:
    from ...file_broadcast.value_server import ValueServer
    from ...hub_link.hub_access import HubAccess
    from ...loop.event_loop import Loop
    from ...loop.framing import Header
    from ..cleanup import Cleanup
    from ..identity import NodeIdentity
    from .dispatch import Method
    from .pending_requests import PendingRequests


class ValueRequests:
    """Each method does what the request of its name asks for; the reply comes when it is done, or has an ``error``."""

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
        self._server: ValueServer | None = None

    def methods(self) -> dict[str, Method]:
        return {"upload-value": self.upload, "serve-values": self.serve, "send-values": self.send}

    def upload(self, number: int, header: Header, payload: bytes) -> None:
        """Send the file ``path`` to node 0, where it lies as ``name`` in the folder of values."""
        from ...tls.uploads import put  # here and not in the thread: no descriptor may be left then

        def ready(address: str, port: int, secret: bytes) -> None:
            self._in_thread(number, partial(put, address, port, secret, header["name"], header["path"]))

        self._hub.link.with_uploads(ready)

    def serve(self, number: int, header: Header, payload: bytes) -> None:
        """Receive values of node 0 on this node's address ``host``; the reply has the port."""
        from ...file_broadcast.value_server import ValueServer, values_key

        identity = self._identity
        if self._server is None:
            key, folder = values_key(self._hub.link.secret), os.path.join(identity.folder, "values")
            try:
                self._server = ValueServer(header["host"], key, folder, identity.index, self._say)
            except (OSError, RuntimeError) as error:
                text = f"The guard of node {identity.index} cannot receive large values: {error}"
                self._pending.reply(number, {"error": text})
                return
            self._cleanup.servers.append(self._server)
        self._pending.reply(number, {"port": self._server.port})

    def send(self, number: int, header: Header, payload: bytes) -> None:
        """Send the file ``path`` of node 0 to the nodes ``hops``, each of which passes it on to the next."""
        from ...file_broadcast.sender import send
        from ...file_broadcast.value_server import values_key

        def say(line: str) -> None:
            """A value has no progress that the user would want to see."""

        key = values_key(self._hub.link.secret)
        self._in_thread(number, partial(send, key, header["path"], header["name"], header["hops"], say))

    def _in_thread(self, number: int, work: Callable[[], None]) -> None:
        from ...tls.link import BulkError

        def lacks(error: BaseException) -> Header:
            whose = f"The guard of node {self._identity.index}"
            return {"error": f"{whose} has {what_ran_out(error)} for a large value."}

        def run() -> None:
            reply: Header = {}
            try:
                work()
            except MemoryError as error:
                reply = lacks(error)
            except (BulkError, OSError, ValueError) as error:
                reply = {"error": str(error)}
            self._loop.call_soon_threadsafe(lambda: self._pending.reply(number, reply))

        try:
            threading.Thread(target=run, name="value", daemon=True).start()
        except RuntimeError as error:
            self._pending.reply(number, lacks(error))
