"""Requests about the gang as a whole: its forming, its collectives, and how control waits for the others."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ...failure_record import Failure
from ...hub_link.hub_link import RemoteHubLink
from ...hub_link.local_hub_link import LocalHubLink
from ...loop.limits import too_few_files
from ...phases import MET

if TYPE_CHECKING:
    from ...card.access import CardAccess
    from ...children.supervisor import Work
    from ...hub_link.hub_access import HubAccess
    from ...loop.event_loop import Loop
    from ...loop.framing import Header
    from ...phases import NodePhases
    from ..cleanup import Cleanup
    from ..identity import NodeIdentity
    from ..local_tasks import LocalTasks
    from ..node_failures import NodeFailures
    from ..state import NodeState
    from .dispatch import Method
    from .pending_requests import PendingRequests


class GangRequests:
    """Each method does what the request of its name asks for. ``from_hub`` takes the hub's messages to this node."""

    def __init__(
        self,
        loop: Loop,
        identity: NodeIdentity,
        state: NodeState,
        hub: HubAccess,
        pending: PendingRequests,
        work: Work,
        local_tasks: LocalTasks,
        cleanup: Cleanup,
        failures: NodeFailures,
        phases: NodePhases,
        card: CardAccess,
        from_hub: Callable[[Header, bytes], None],
        say: Callable[[str], None],
    ) -> None:
        self._loop, self._identity, self._state, self._hub = loop, identity, state, hub
        self._pending, self._work, self._local_tasks = pending, work, local_tasks
        self._cleanup, self._failures, self._phases, self._card = cleanup, failures, phases, card
        self._from_hub, self._say = from_hub, say
        self._collectives: dict[int, int] = {}  # by their number in the gang: the request that waits
        self._roster: Header | None = None

    def methods(self) -> dict[str, Method]:
        return {
            "open": self.open,
            "start-nodes": self.start_nodes,
            "join": self.join,
            "joined": self.joined,
            "node-failed": self.node_failed,
            "gather": self.gather,
            "hold": self.hold,
            "tolerate": self.tolerate,
            "finish": self.finish,
            "tasks-gone": self.tasks_gone,
        }

    def open(self, number: int, header: Header, payload: bytes) -> None:
        """Control only: open the hub. The reply has an ``error`` where that cannot go well."""
        lack = too_few_files(header["num_nodes"], header.get("local", False))
        if lack is not None:
            self._pending.reply(number, {"error": lack})
            return
        link = LocalHubLink(
            self._loop,
            self._identity.folder,
            self._say,
            self._from_hub,
            header["num_nodes"],
            header["timeout"],
            header["identity"],
            header["host"],
            self._hub.debug,
            header.get("may_leave_out", 0),
        )
        self._hub.link = link
        if header.get("card"):
            self._card.begin(header["card"], header["num_nodes"])
            self._phases.card = header["card"].get("view", "")
        self._pending.reply(number, {"port": link.port, "address": link.address, "secret": link.secret.hex()})

    def start_nodes(self, number: int, header: Header, payload: bytes) -> None:
        """Control of a local gang: start the other nodes' tasks."""
        self._cleanup.saver = header["saver"]
        for spec in header["tasks"]:
            self._work.start_task(spec, header["meeting_variable"], payload, self._identity.folder)
        self._pending.reply(number, {})

    def join(self, number: int, header: Header, payload: bytes) -> None:
        """Join the hub; the reply is that of :meth:`joined`. A ``failure`` ends the gang once the hub has this node."""
        self._phases.note(MET)
        if isinstance(self._hub.link, LocalHubLink):
            self._hub.link.join({**header["info"], "address": header["address"]})
        else:
            info = {**header["info"], **({"guard": os.getpid()} if self._identity.seen_by_control else {})}
            if "failure" in header:
                info["unfit"] = True
            link = RemoteHubLink(
                self._loop,
                self._identity.index,
                {**header, "info": info},
                self._say,
                self._from_hub,
                self._failures.hub_lost,
                self._failures.fail,
                self._hub.debug,
            )
            self._hub.link = link
            if "failure" in header:
                link.on_connected = partial(self._failures.fail, Failure.from_json(header["failure"]))
        self.joined(number, header, payload)

    def joined(self, number: int, header: Header, payload: bytes) -> None:
        """The reply has the ``nodes`` once all have joined, and those ``left_out``, and after ``wait`` seconds whether
        this one has.
        """
        self._pending.rename(number, "join")
        if self._roster is not None:
            self._pending.reply_all("join", self._roster)
        elif header.get("wait"):
            self._loop.call_later(
                header["wait"], lambda: self._pending.reply(number, {"connected": self._hub.link.connected})
            )

    def all_joined(self, header: Header) -> None:
        """The last node has joined the hub, whose message has the nodes, and those that are left out."""
        self._card.all_joined(header["nodes"])
        self._state.all_joined()
        facts = self._hub.link.facts()
        self._roster = {"nodes": header["nodes"], "left_out": header["left_out"], "facts": facts}
        self._cleanup.notice = None
        self._pending.reply_all("join", self._roster)

    def node_failed(self, number: int, header: Header, payload: bytes) -> None:
        """Control: a node has failed before it joined, and has left a record of it."""
        self._failures.fail(Failure.from_json(header["failure"]))
        self._pending.reply(number, {})

    def gather(self, number: int, header: Header, payload: bytes) -> None:
        """This node's part of a collective. The reply has all parts, or those for this node."""
        self._collectives[header["seq"]] = number
        part = {name: header[name] for name in ("seq", "kind", "entry", "root")}
        self._hub.send({"op": "gather", **part}, payload)

    def gathered(self, header: Header, payload: bytes) -> None:
        """The hub has everybody's part of a collective."""
        number = self._collectives.pop(header["seq"], None)
        if number is not None:
            self._pending.reply(number, {"entries": header["entries"]}, payload)

    def hold(self, number: int, header: Header, payload: bytes) -> None:
        """A node whose launcher runs the body on control only: the reply comes when control's body is done."""
        if self._hub.link.control_done:
            self._pending.reply(number, {})

    def tolerate(self, number: int, header: Header, payload: bytes) -> None:
        """Control: from here on the loss of another node ends that node only."""
        self._hub.send({"op": "tolerate", "only_nodes": header["only_nodes"]})
        self._pending.reply(number, {})

    def finish(self, number: int, header: Header, payload: bytes) -> None:
        """Control: the reply names those that are lost, when every other node has stored its state and left."""
        self._local_tasks.maybe_finish()

    def tasks_gone(self, number: int, header: Header, payload: bytes) -> None:
        """Control of a local gang: the reply has the nodes' logs, when all their tasks are gone."""
        self._local_tasks.await_gone()
