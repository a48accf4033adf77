"""What a task may ask of its guard: one method for each request, named after it."""

from __future__ import annotations

import os
import threading
import time
from functools import partial

from ..children import launch as launches
from ..children.launch import Launch
from ..failure_record import EVIDENCE, Failure
from ..hub_link.hub_link import RemoteHubLink
from ..hub_link.local_hub_link import LocalHubLink
from ..loop.framing import WireError
from ..loop.limits import too_few_files, what_ran_out
from ..processes import process_table
from ..processes.stopped import control_guard_of
from ..processes.watch import TaskWatch

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes 3 ms to import
    from ..loop.framing import Header
    from .node import Node


NO_PROC = (
    "This system has no /proc. The gang works, and ends as a whole; but a process that leaves the process group of "
    "what the gang has started may outlive it, and one that is stopped (SIGSTOP) is not told."
)

TAILS_LIMIT = 1 << 20
"""Characters of last output that the results of one launch have together; the failed process's is whole."""


class Requests:
    """Does for ``node`` what its task asks; each request is answered exactly once, now or when what it waits for is."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._gathers: dict[int, int] = {}
        self._roster: list[Header] | None = None

    def handle(self, op: str, header: Header, payload: bytes) -> None:
        """One request. What the guard cannot do ends the gang, and is told as its end."""
        request: int = header["id"]
        try:
            getattr(self, op.replace("-", "_"))(request, header, payload)
        except (OSError, RuntimeError, ValueError, WireError) as error:
            # No descriptor, thread or room on the disk is left.
            text = f"its guard could not do what the task asked for ({op}): {type(error).__name__}: {error}"
            self._node.fail(Failure(self._node.index, "guard", text, time.time()))
            self._node.desk.answer(request, {"stopped": True})

    def gathered(self, header: Header, payload: bytes) -> None:
        """The hub has everybody's part of a collective."""
        request = self._gathers.pop(header["seq"], None)
        if request is not None:
            self._node.desk.answer(request, {"entries": header["entries"]}, payload)

    def setup(self, request: int, header: Header, payload: bytes) -> None:
        """Who the task is and how it may be interrupted; must come first."""
        self._node.index = header["node"]
        self._node.folder = header["folder"]
        self._node.owned.keep(self._node.folder, self._node.task_pid)
        self._node.gang_id = header["gang_id"]
        self._node.signals = (header["interrupt_signal"], header["stacks_signal"])
        self._node.task_children.number = header.get("number", 0)
        self._node.seen_by_control = header.get("seen_by_control", False)
        if self._node.seen_by_control:
            self._node.control_guard = control_guard_of(self._node.task_pid)
            self._node.task_children.watch_output()
        elif not process_table.sees_all():
            self._node.say(NO_PROC)
        if header.get("notice_program"):
            from .meeting_notice import MeetingNotice

            self._node.notice = MeetingNotice(header["notice_program"], self._node.err)
        self._node.ending.hooks_s = header.get("end_timeout", self._node.ending.hooks_s)
        launches.UNKILLABLE_S = header.get("unkillable_timeout", launches.UNKILLABLE_S)
        if "sigterm" in header:
            self._node.preemption.listen(header["sigterm"])
        if header.get("notice"):
            self._node.preemption.watch(header["notice"], header["since"])
        if header.get("watch_parent"):
            TaskWatch(self._node.loop, header["watch_parent"], self._node.run_gone)
            self._node.task_children.watch_output()
        self._node.desk.answer(request, {})

    def open(self, request: int, header: Header, payload: bytes) -> None:
        """Control only: open the hub; answered with an ``error`` where that cannot go well."""
        lack = too_few_files(header["num_nodes"], header.get("local", False))
        if lack is not None:
            self._node.desk.answer(request, {"error": lack})
            return
        where = (header["identity"], header["host"], header.get("timeouts"))
        node = self._node
        hub = node.uplink = LocalHubLink(
            node.loop, node.folder, node.say, node.from_hub, header["num_nodes"], header["timeout"], *where
        )
        self._node.desk.answer(request, {"port": hub.port, "address": hub.address, "secret": hub.secret.hex()})

    def start_nodes(self, request: int, header: Header, payload: bytes) -> None:
        """Control of a local gang: start the other nodes' tasks."""
        self._node.saver = header["saver"]
        for spec in header["tasks"]:
            self._node.work.start_task(spec, header["meeting_variable"], payload, self._node.folder)
        self._node.desk.answer(request, {})

    def join(self, request: int, header: Header, payload: bytes) -> None:
        """Join the hub; answered as :meth:`joined` is. A ``failure`` ends the gang once the hub hears this node."""
        if isinstance(self._node.uplink, LocalHubLink):
            self._node.uplink.join({**header["info"], "address": header["address"]})
        else:
            info = {**header["info"], **({"guard": os.getpid()} if self._node.seen_by_control else {})}
            if "failure" in header:
                info["unfit"] = True
            node = self._node
            request_to_join = {**header, "info": info}
            link = node.uplink = RemoteHubLink(
                node.loop, node.index, request_to_join, node.say, node.from_hub, node.hub_lost, node.fail
            )
            if "failure" in header:
                link.on_connected = partial(self._node.fail, Failure.from_json(header["failure"]))
        self.joined(request, header, payload)

    def joined(self, request: int, header: Header, payload: bytes) -> None:
        """Answered with the ``nodes`` once all have joined, and after ``wait`` seconds with whether this one has."""

        def waited() -> None:
            uplink = self._node.uplink
            self._node.desk.answer(request, {"connected": uplink is not None and uplink.connected})

        self._node.desk.rename(request, "join")
        if self._roster is not None:
            self.all_joined(self._roster)
        elif header.get("wait"):
            self._node.loop.call_later(header["wait"], waited)

    def all_joined(self, nodes: list[Header]) -> None:
        """The hub has the last node."""
        self._roster = nodes
        self._node.notice = None
        self._node.desk.answer_all("join", {"nodes": nodes})

    def node_failed(self, request: int, header: Header, payload: bytes) -> None:
        """Control: a node has failed before it joined, and has left word of it."""
        self._node.fail(Failure.from_json(header["failure"]))
        self._node.desk.answer(request, {})

    def gather(self, request: int, header: Header, payload: bytes) -> None:
        self._gathers[header["seq"]] = request
        self._node.send(
            {"op": "gather", "seq": header["seq"], "kind": header["kind"], "entry": header["entry"]}, payload
        )

    def put(self, request: int, header: Header, payload: bytes) -> None:
        self._transfer(request, header)

    def get(self, request: int, header: Header, payload: bytes) -> None:
        self._transfer(request, header)

    def _transfer(self, request: int, header: Header) -> None:
        """A value too large for a frame, by a bulk stream of its own, on a thread."""

        def ready(address: str, port: int, secret: bytes) -> None:
            try:
                threading.Thread(target=work, args=(address, port, secret), name="bulk", daemon=True).start()
            except RuntimeError as error:
                answer = {"error": f"The guard of node {self._node.index} has {what_ran_out(error)} for a large value."}
                self._node.desk.answer(request, answer)

        def work(address: str, port: int, secret: bytes) -> None:
            from ..tls import values

            answer: Header = {}
            try:
                transfer = values.put if header["op"] == "put" else values.get
                transfer(address, port, secret, header["name"], header["path"])
            except (values.BulkError, OSError, ValueError) as error:
                answer = {"error": str(error)}
            self._node.loop.call_soon_threadsafe(lambda: self._node.desk.answer(request, answer))

        assert self._node.uplink is not None
        self._node.uplink.with_bulk(ready)

    def serve_peers(self, request: int, header: Header, payload: bytes) -> None:
        """Let the other nodes run commands and leave files here; answered with the port."""
        from ..remote_command.node_server import PeerServer, peer_key

        assert self._node.uplink is not None
        if self._node.peers is None:
            key = peer_key(self._node.uplink.secret)
            self._node.peers = PeerServer(self._node, header["host"], key, header["env"], header["cwd"])
        self._node.desk.answer(request, {"port": self._node.peers.port})

    def reach_peers(self, request: int, header: Header, payload: bytes) -> None:
        """Let programs of this node have commands run on the others, by a socket in the folder."""
        from ..remote_command.local_server import Callers
        from ..remote_command.node_server import peer_key

        assert self._node.uplink is not None
        key = peer_key(self._node.uplink.secret)
        self._node.callers = Callers(
            self._node.loop, self._node.say, self._node.index, header["folder"], key, header["nodes"]
        )
        self._node.desk.answer(request, {})

    def own(self, request: int, header: Header, payload: bytes) -> None:
        """Remove a folder, too, in the end, or files of a pattern that nobody uses then."""
        if "path" in header:
            self._node.owned.add_folder(header["path"])
        else:
            self._node.owned.add_pattern(header["pattern"])
        self._node.desk.answer(request, {})

    def broadcast(self, request: int, header: Header, payload: bytes) -> None:
        """Send a file to other nodes, each of which passes it on to the next; on a thread."""

        from ..file_broadcast.sender import send  # here and not in the thread: no descriptor may be left then
        from ..remote_command.node_server import peer_key
        from ..tls.link import BulkError

        whose = f"The guard of node {self._node.index}"

        def work() -> None:
            assert self._node.uplink is not None
            answer: Header = {}
            try:
                send(peer_key(self._node.uplink.secret), header["path"], header["to"], header["hops"], self._node.say)
            except MemoryError as error:
                answer = {"error": f"{whose} has {what_ran_out(error)} to send the file."}
            except (BulkError, OSError, ValueError) as error:
                answer = {"error": str(error)}
            self._node.loop.call_soon_threadsafe(lambda: self._node.desk.answer(request, answer))

        try:
            threading.Thread(target=work, name="broadcast", daemon=True).start()
        except RuntimeError as error:
            self._node.desk.answer(request, {"error": f"{whose} has {what_ran_out(error)} to send the file."})

    def launch(self, request: int, header: Header, payload: bytes) -> None:
        def done(launch: Launch) -> None:
            results = launch.results()
            for record in results:  # a node may have hundreds of ranks, and an answer is one frame
                record["tail"] = record["tail"][-TAILS_LIMIT // len(results) :]
            answer: Header = {"results": results}
            if launch.cancelled or launch.port_is_taken():
                answer["port_taken"] = True
            elif launch.failed is not None:
                answer["failed"] = {**launch.failed.result(), "traceback": launch.failed.traceback()}
                answer["ends"] = self._node.stopping
            elif self._node.stopping:
                answer["stopped"] = True
            self._node.desk.answer(request, answer)
            self._node.work_gone()

        if self._node.bye:
            self._node.desk.answer(request, {"stopped": True})
        elif self._node.work.is_cancelled(header["plan"]["key"]):
            self._node.desk.answer(request, {"port_taken": True})
        else:
            self._node.work.launch(self._node.name, self._node.index, header["plan"], done)

    def start(self, request: int, header: Header, payload: bytes) -> None:
        """Start a process that runs beside the body; answered when it has said that it is ready."""
        from ..children.service import Daemon

        if self._node.bye:
            self._node.desk.answer(request, {"stopped": True})
        else:
            answer = partial(self._node.desk.answer, request)
            Daemon(self._node, header["plan"], header["ready"], header["timeout"], answer, header["shown"])

    def port(self, request: int, header: Header, payload: bytes) -> None:
        from ..host.ports import lease_exact, lease_port

        try:
            exact = header["exact"]
            lease = lease_exact(exact) if exact else lease_port()
        except (OSError, ValueError) as error:
            self._node.desk.answer(request, {"error": str(error)})
            return
        self._node.leases.append(lease)
        self._node.desk.answer(request, {"port": lease.port})

    def fail(self, request: int, header: Header, payload: bytes) -> None:
        """The body, or Metaflow around it, raised. Answered with the story."""
        if not self._node.stopping:
            words = (header["kind"], header["text"], time.time(), header["detail"])
            self._node.fail(Failure(self._node.index, *words, order=header.get("order", EVIDENCE)))
        self.unwound(request, header, payload)

    def save_seconds(self, request: int, header: Header, payload: bytes) -> None:
        """How long what the body registered for a preemption may take."""
        self._node.send({"op": "save-seconds", "seconds": header["seconds"]})
        self._node.desk.answer(request, {})

    def unwinding(self, request: int, header: Header, payload: bytes) -> None:
        """The body has ended badly, and would save. Answered with whether it is to."""
        self._node.maybe_save()

    def unwound(self, request: int, header: Header, payload: bytes) -> None:
        """The interrupted body has ended. Answered with the story."""
        self._node.desk.rename(request, "failure-report")
        self._node.task_unwound()
        if self._node.told is not None:
            self._node.desk.answer(request, self._node.told)

    def done(self, request: int, header: Header, payload: bytes) -> None:
        """The body has ended well. What is left is Metaflow's, which is not interrupted."""
        self._node.body_over = self._node.body_done = True
        self._node.send({"op": "done"})
        self._node.desk.answer(request, {})

    def hold(self, request: int, header: Header, payload: bytes) -> None:
        """A node whose launcher runs the body on control only: answered when control's body is done."""
        if self._node.uplink is not None and self._node.uplink.control_done:
            self._node.desk.answer(request, {})

    def tolerate(self, request: int, header: Header, payload: bytes) -> None:
        """Control: from here on the loss of another node ends that node only."""
        self._node.send({"op": "tolerate"})
        self._node.desk.answer(request, {})

    def finish(self, request: int, header: Header, payload: bytes) -> None:
        """Control: answered, with those that are lost, when every other node has stored its state and left."""
        self._node.maybe_finish()

    def tasks_gone(self, request: int, header: Header, payload: bytes) -> None:
        """Control of a local gang: answered with the nodes' logs, when all their tasks are gone."""
        self._node.task_waits()
        self._node.maybe_tasks_gone()

    def stored(self, request: int, header: Header, payload: bytes) -> None:
        """Metaflow has stored the state of the task, which has failed."""
        self._node.task_stored()
        self._node.desk.answer(request, {})

    def bye(self, request: int, header: Header, payload: bytes) -> None:
        """Metaflow has stored the task's state: nothing can fail here any more."""
        self._node.bye = True
        self._node.task_children.look()
        self._node.work.end_launches()  # a thread of the body may have left one
        self._node.maybe_leave()
