"""Requests that start processes: launches, processes beside the body, and servers that run other nodes' commands."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ...phases import OUTPUT, RANKS

if TYPE_CHECKING:
    from ...card.access import CardAccess
    from ...children.child import Child
    from ...children.launch import Launch
    from ...children.launcher import Launcher
    from ...children.supervisor import Work
    from ...hub_link.hub_access import HubAccess
    from ...loop.event_loop import Loop
    from ...loop.framing import Header
    from ...phases import NodePhases
    from ...remote_command.node_server import NodeServer
    from ..cleanup import Cleanup
    from ..identity import NodeIdentity
    from ..state import NodeState
    from .dispatch import Method
    from .pending_requests import PendingRequests
    from .restart_requests import RestartRequests

TAILS_LIMIT = 1 << 20
"""Characters of last output that the results of one launch have together; the failed process's is whole."""


class ProcessRequests:
    """Each method does what the request of its name asks for."""

    def __init__(
        self,
        loop: Loop,
        identity: NodeIdentity,
        state: NodeState,
        hub: HubAccess,
        pending: PendingRequests,
        work: Work,
        launcher: Launcher,
        cleanup: Cleanup,
        phases: NodePhases,
        card: CardAccess,
        restarts: RestartRequests,
        say: Callable[[str], None],
    ) -> None:
        self._loop, self._identity, self._state, self._hub = loop, identity, state, hub
        self._pending, self._work, self._launcher = pending, work, launcher
        self._cleanup, self._phases, self._card, self._say = cleanup, phases, card, say
        self._restarts = restarts
        self._node_server: NodeServer | None = None

    def methods(self) -> dict[str, Method]:
        return {
            "launch": self.launch,
            "pause-ranks": self.pause_ranks,
            "start": self.start,
            "serve-commands": self.serve_commands,
            "forward-commands": self.forward_commands,
        }

    def launch(self, number: int, header: Header, payload: bytes) -> None:
        """Run the processes of a plan. The reply has their results, when nothing of them is left."""

        plan = header["plan"]
        given_up = self._restarts.begins(plan)

        def done(launch: Launch) -> None:
            results = launch.results()
            for record in results:  # a node may have hundreds of ranks, and a reply is one frame
                record["tail"] = record["tail"][-TAILS_LIMIT // len(results) :]
            reply: Header = {"results": results}
            is_cancelled = launch.cancelled and not launch.restartable
            if launch.has_been_given_up and not self._state.is_stopping:
                reply["given_up"] = given_up(launch)
                if launch.failed is not None:
                    reply["given_up"]["failed"] = _in_full(launch.failed)
            elif is_cancelled or launch.port_is_taken():
                reply["port_taken"] = True
            elif launch.failed is not None:
                reply["failed"] = _in_full(launch.failed)
                reply["ends"] = self._state.is_stopping
            elif self._state.is_stopping:
                reply["stopped"] = True
            self._pending.reply(number, reply)

        if self._state.has_left:
            self._pending.reply(number, {"stopped": True})
        elif self._work.is_cancelled(plan["key"]):
            is_given_up = plan.get("restartable")
            reply = {"given_up": self._restarts.never_began()} if is_given_up else {"port_taken": True}
            self._pending.reply(number, reply)
        else:
            launch = self._launcher.launch(plan, done)
            launch.on_output = partial(self._phases.note, OUTPUT)
            self._phases.note(RANKS)
            self._card.launched(plan)

    def pause_ranks(self, number: int, header: Header, payload: bytes) -> None:
        """A node without ranks waits to run a ``plan``, or, where that is None, no more."""
        self._launcher.pause(header["plan"])
        self._pending.reply(number, {})

    def start(self, number: int, header: Header, payload: bytes) -> None:
        """Start a process that runs beside the body. The reply comes when it has reported that it is ready."""
        from ...children.service import Daemon

        if self._state.has_left:
            self._pending.reply(number, {"stopped": True})
        else:
            reply = partial(self._pending.reply, number)
            Daemon(self._launcher, header["plan"], header["ready"], header["timeout"], reply, header["shown"])

    def serve_commands(self, number: int, header: Header, payload: bytes) -> None:
        """Run commands of the other nodes here, and take files of them. The reply has the port."""
        from ...remote_command.node_server import NodeServer, node_key

        if self._node_server is None:
            key = node_key(self._hub.link.secret)
            folder = self._identity.folder
            self._node_server = NodeServer(
                self._launcher, self._say, folder, header["host"], key, header["env"], header["cwd"]
            )
            self._cleanup.servers.append(self._node_server)
        self._pending.reply(number, {"port": self._node_server.port})

    def forward_commands(self, number: int, header: Header, payload: bytes) -> None:
        """Let programs of this node have commands run on the others, by a socket in the folder."""
        from ...remote_command.local_server import CommandRequests
        from ...remote_command.node_server import node_key

        key = node_key(self._hub.link.secret)
        index = self._identity.index
        server = CommandRequests(self._loop, self._say, index, header["folder"], key, header["nodes"])
        self._cleanup.servers.insert(0, server)
        self._pending.reply(number, {})


def _in_full(failed: Child) -> Header:
    return {**failed.result(), "traceback": failed.traceback()}
