"""One node's guard: what its task asks for, what the hub says, and how the node stops.

When the gang stops, every request that waits is answered so at once (:mod:`.desk`), the task's body is interrupted by a
signal, and everything that runs (:mod:`.work`) is ended. The guard itself goes when its task has gone
(:mod:`.farewell`).
"""

from __future__ import annotations

import signal
import socket
import threading
import time

from . import farewell, processes
from .desk import Desk
from .launches import Launch, NodeTask
from .loop import Loop
from .uplink import LocalUplink, RemoteUplink
from .verdict import CUT, LOST, PEER, Failure, causes, story
from .watch import StopWatch, TaskWatch
from .wire import Stream, WireError
from .work import Work

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes 3 ms to import
    from .ports import PortLease
    from .uplink import Uplink
    from .wire import Header

BODY_GRACE_S = 2.0
"""How long an interrupted body may take for its own ``finally`` blocks before its stacks are printed and it is
killed.
"""

STACKS_S = 0.2
"""Between asking a task for its stacks and SIGKILL; faulthandler writes them at once, without the GIL."""

TASKS_GRACE_S = 3.5
"""How long the other nodes' tasks of a local gang may take to tell the story and store their state after the stop."""

GONE_GRACE_S = 3.0
"""How long control's guard waits for the other guards once its own task is dead."""

STORY_DEADLINE_S = 3.0
"""How long the hub may take to tell the story; it tells it within a second, so then it is lost."""

ENDING_S = 2.0
"""How long a task that has closed its end of the pair may take to be gone."""

LATELY_S = 3.0
"""How far before the stop a traceback in an error file still counts as evidence."""

_AFTERTHOUGHTS = ("task", "task-signal", "task-words")
"""Kinds of records that may still come once the node is stopping: how a task died that is known to be dead."""


class Node:
    """The guard of the task ``task_pid``, joined to it by ``sock``; ``out`` and ``err`` are the task's own streams."""

    def __init__(self, loop: Loop, sock: socket.socket, task_pid: int, out: int = 1, err: int = 2) -> None:
        self.loop = loop
        self.index = 0
        self.err = err
        self.folder = ""
        self.gang_id = ""
        self.task_pid = task_pid
        self.saver: Header | None = None
        self.leases: list[PortLease] = []
        self.speaking: list[threading.Thread] = []
        self.uplink: Uplink | None = None
        self.work = Work(loop, out, err, self.fail, self._port_taken, self._node_task_ended)
        stream = Stream(loop, sock)
        stream.on_close = lambda reason: self._link_closed()
        self._desk = Desk(stream, self._request)
        self._watch = TaskWatch(loop, task_pid, self._task_gone)
        self._stopwatch = StopWatch(loop, self._watched, self._was_stopped)
        self._signals = (0, 0)
        self._gathers: dict[int, int] = {}
        self._story: Header | None = None
        self._failures: list[Failure] = []  # of this node, and of its way to the hub
        self._stopping = False
        self._task_alive = True
        self._body_over = False  # nothing of the body is left to interrupt
        self._body_done = False  # it ended well
        self._unwound = False  # it failed, and has said so
        self._bye = False  # Metaflow has stored the task's state
        self._leaving = False
        self._finishing = False

    # -- the task's requests -----------------------------------------------------------------------------------------

    def _request(self, op: str, header: Header, payload: bytes) -> None:
        request: int = header["id"]
        try:
            getattr(self, "_do_" + op.replace("-", "_"))(request, header, payload)
        except (OSError, RuntimeError, ValueError, WireError) as error:
            # No descriptor, thread or room on the disk is left: that ends the gang, and is told as its end.
            text = f"its guard could not do what the task asked for ({op}): {type(error).__name__}: {error}"
            self.fail(Failure(self.index, "guard", text, time.time()))
            self._desk.answer(request, {"stopped": True})

    def _do_setup(self, request: int, header: Header, payload: bytes) -> None:
        """Who the task is and how it may be interrupted; must come first."""
        self.index = header["node"]
        self.folder = header["folder"]
        self.gang_id = header["gang_id"]
        self._signals = (header["interrupt_signal"], header["stacks_signal"])
        if header.get("watch_parent"):
            TaskWatch(self.loop, header["watch_parent"], self._run_gone)
        self._desk.answer(request, {})

    def _do_open(self, request: int, header: Header, payload: bytes) -> None:
        """Control only: open the hub."""
        uplink = LocalUplink(self, header["num_nodes"], header["timeout"], header["identity"], header["host"])
        self.uplink = uplink
        where = {"port": uplink.port, "address": uplink.address, "secret": uplink.secret.hex()}
        self._desk.answer(request, where)

    def _do_start_nodes(self, request: int, header: Header, payload: bytes) -> None:
        """Control of a local gang: start the other nodes' tasks."""
        self.saver = header["saver"]
        for spec in header["tasks"]:
            self.work.start_task(spec, header["meeting_variable"], payload, self.folder)
        self._desk.answer(request, {})

    def _do_join(self, request: int, header: Header, payload: bytes) -> None:
        """Join the hub; answered when all have."""
        if isinstance(self.uplink, LocalUplink):
            self.uplink.join({**header["info"], "address": header["address"]})
        else:
            self.uplink = RemoteUplink(self, header)

    def _do_gather(self, request: int, header: Header, payload: bytes) -> None:
        self._gathers[header["seq"]] = request
        self.send({"op": "gather", "seq": header["seq"], "kind": header["kind"], "entry": header["entry"]}, payload)

    def _do_put(self, request: int, header: Header, payload: bytes) -> None:
        self._transfer(request, header)

    def _do_get(self, request: int, header: Header, payload: bytes) -> None:
        self._transfer(request, header)

    def _transfer(self, request: int, header: Header) -> None:
        """A value too large for a frame, by a bulk stream of its own, on a thread."""

        def ready(address: str, port: int, secret: bytes) -> None:
            threading.Thread(target=work, args=(address, port, secret), name="bulk", daemon=True).start()

        def work(address: str, port: int, secret: bytes) -> None:
            from . import bulk

            answer: Header = {}
            try:
                transfer = bulk.put if header["op"] == "put" else bulk.get
                transfer(address, port, secret, header["name"], header["path"])
            except (bulk.BulkError, OSError, ValueError) as error:
                answer = {"error": str(error)}
            self.loop.call_soon_threadsafe(lambda: self._desk.answer(request, answer))

        assert self.uplink is not None
        self.uplink.with_bulk(ready)

    def _do_launch(self, request: int, header: Header, payload: bytes) -> None:
        def done(launch: Launch) -> None:
            answer: Header = {"results": launch.results()}
            if launch.cancelled or launch.port_is_taken():
                answer["port_taken"] = True
            elif launch.failed is not None:
                answer["failed"] = {**launch.failed.result(), "traceback": launch.failed.traceback()[0]}
            elif self._stopping:
                answer["stopped"] = True
            self._desk.answer(request, answer)
            self._maybe_stopped()
            self._maybe_leave()
            self._maybe_exit()

        if self._bye:
            self._desk.answer(request, {"stopped": True})
        elif self.work.is_cancelled(header["plan"]["key"]):
            self._desk.answer(request, {"port_taken": True})
        else:
            self.work.launch(f"{self.gang_id}.{self.index}", self.index, header["plan"], done)

    def _do_port(self, request: int, header: Header, payload: bytes) -> None:
        from .ports import lease_exact, lease_port

        try:
            exact = header["exact"]
            lease = lease_exact(exact) if exact else lease_port()
        except (OSError, ValueError) as error:
            self._desk.answer(request, {"error": str(error)})
            return
        self.leases.append(lease)
        self._desk.answer(request, {"port": lease.port})

    def _do_fail(self, request: int, header: Header, payload: bytes) -> None:
        """The body, or Metaflow around it, raised. Answered with the story."""
        if not self._stopping:
            self.fail(Failure(self.index, header["kind"], header["text"], time.time(), header["detail"]))
        self._do_unwound(request, header, payload)

    def _do_unwound(self, request: int, header: Header, payload: bytes) -> None:
        """The interrupted body has ended. Answered with the story."""
        self._desk.rename(request, "story")
        self._body_over = self._unwound = True
        self._maybe_stopped()
        if self._story is not None:
            self._desk.answer(request, self._story)

    def _do_done(self, request: int, header: Header, payload: bytes) -> None:
        """The body has ended well. What is left is Metaflow's, which is not interrupted."""
        self._body_over = self._body_done = True
        self.send({"op": "done"})
        self._desk.answer(request, {})

    def _do_hold(self, request: int, header: Header, payload: bytes) -> None:
        """A node whose launcher runs the body on control only: answered when control's body is done."""
        if self.uplink is not None and self.uplink.control_done:
            self._desk.answer(request, {})

    def _do_finish(self, request: int, header: Header, payload: bytes) -> None:
        """Control: answered when every other node has stored its state and left."""
        self._maybe_finish()

    def _do_tasks_gone(self, request: int, header: Header, payload: bytes) -> None:
        """Control of a local gang: answered with the nodes' logs, when all their tasks are gone."""
        self.saver = None  # the task does it
        self._maybe_tasks_gone()

    def _do_bye(self, request: int, header: Header, payload: bytes) -> None:
        """Metaflow has stored the task's state: nothing can fail here any more."""
        self._bye = True
        self.work.end_launches()  # a thread of the body may have left one
        self._maybe_leave()

    def _maybe_leave(self) -> None:
        if self._bye and not self._leaving and not self.work.launches:
            self._leaving = True
            if self.uplink is None:
                self._desk.answer_all("bye", {})
            else:
                self.uplink.leave(lambda: self._desk.answer_all("bye", {}))

    # -- what the hub says -------------------------------------------------------------------------------------------

    def from_hub(self, header: Header, payload: bytes) -> None:
        """One message of the hub."""
        op = header["op"]
        if op == "roster":
            self._desk.answer_all("join", {"nodes": header["nodes"]})
        elif op == "gathered":
            request = self._gathers.pop(header["seq"], None)
            if request is not None:
                self._desk.answer(request, {"entries": header["entries"]}, payload)
        elif op == "stop":
            self.send({"op": "heard"})
            self._stop(header["order"])
        elif op == "story":
            self._tell(header)
        elif op == "cancel":
            self.work.cancel(header["key"])
        elif op == "control-done":
            self._desk.answer_all("hold", {})
        elif op == "all-left":
            self._maybe_finish()
        elif op == "all-gone":
            self._maybe_exit()

    def hub_lost(self, text: str, node: int = 0) -> None:
        """The way to the hub is gone, for good: this node tells its own story."""
        if not self._bye:
            self._fail_alone(Failure(node, "lost", text, time.time(), order=LOST))

    def _hub_silent(self) -> None:
        if self._story is None:
            self.hub_lost(f"has not answered node {self.index} for {STORY_DEADLINE_S:g} s: {CUT}")

    def send(self, header: Header, payload: bytes = b"") -> None:
        """One message to the hub, where there is one."""
        if self.uplink is not None:
            self.uplink.send(header, payload)

    def say(self, text: str) -> None:
        """A line for the user, in the task's own log. On a thread: the log's reader may be stopped."""
        from .output import write_all

        line = f"[gang] {text}\n".encode(errors="replace")
        thread = threading.Thread(target=write_all, args=(self.err, line), daemon=True)
        thread.start()
        self.speaking.append(thread)

    # -- failing and stopping ----------------------------------------------------------------------------------------

    def fail(self, failure: Failure) -> None:
        """Something failed here first: tell the hub, which tells all, us included."""
        if self._stopping and failure.kind not in _AFTERTHOUGHTS:
            return
        if self.uplink is None or not self.uplink.connected:
            self._fail_alone(failure)  # there is no gang yet, and so no hub that would tell
        else:
            self._tell_hub(failure)
            self._stop(failure.order)

    def _tell_hub(self, failure: Failure) -> None:
        self._failures.append(failure)
        self.send({"op": "fail", "failure": failure.to_json()})

    def _fail_alone(self, failure: Failure) -> None:
        self._failures.append(failure)
        self._stop(failure.order)
        if self._story is None:
            told = causes(self._failures)
            self._tell({"story": story(told, {}), "causes": [{"node": cause.node} for cause in told]})

    def _stop(self, order: int) -> None:
        """From here on no death on this node is a cause."""
        if self._stopping:
            return
        self._stopping = True
        self.loop.call_later(STORY_DEADLINE_S, self._hub_silent)
        for failure in self.work.untold_deaths(self.index):
            self._tell_hub(failure)
        if order == PEER:
            # The cause may be a process here that has raised but not yet ended; its own words tell.
            for words in self.work.dying_words(self.index, time.time() - LATELY_S):
                self._tell_hub(words)
        grace = self.work.longest_grace()
        self.work.end_launches()
        self._desk.stop()
        if self._task_alive and not self._body_over:
            processes.send([self.task_pid], self._signals[0])
            self.loop.call_later(BODY_GRACE_S + grace, self._body_overdue)
        if self.work.tasks:
            self.loop.call_later(TASKS_GRACE_S, self.work.kill_tasks)
        self._maybe_stopped()

    def _body_overdue(self) -> None:
        if self._body_over or not self._task_alive:
            return
        self.say(
            f"node {self.index}'s step did not end within {BODY_GRACE_S:g} s of being interrupted; "
            "where it stands is printed here, then it is killed."
        )
        processes.send([self.task_pid], self._signals[1])
        self.loop.call_later(STACKS_S, self._kill_task)

    def _kill_task(self) -> None:
        if self._task_alive and not self._body_over:
            self._unwound = True  # its death is ours from here on
            processes.send([self.task_pid], signal.SIGKILL)
            if self._story is not None:
                self.say(self._story["story"])  # it cannot tell it itself any more

    def _maybe_stopped(self) -> None:
        """Everything that this node ran has ended."""
        if self._stopping and not self.work.launches and (self._body_over or not self._task_alive):
            self.send({"op": "stopped"})
            self._maybe_exit()

    def _tell(self, header: Header) -> None:
        self._story = {"story": header["story"], "causes": header["causes"]}
        self._desk.answer_all("story", self._story)
        if not self._task_alive and self.index == 0:
            self.say(f"Node 0's task is dead. {header['story']}")
        self._maybe_exit()

    def _port_taken(self, key: str) -> None:
        self.send({"op": "cancel", "key": key})

    # -- deaths ------------------------------------------------------------------------------------------------------

    def _node_task_ended(self, task: NodeTask) -> None:
        died = task.exit_code or 0
        left = self.uplink is not None and self.uplink.has_left(task.node)
        failure = task.failure(task.node, [])
        if not self._stopping:
            if died or not left:
                self.fail(failure)
        elif died and not self.work.killed_tasks:
            # No cause by itself any more, but it may tell how and why a task died that is known to be dead.
            self.fail(failure if died < 0 else failure.replaced(kind="task-words"))
        self._maybe_finish()
        self._maybe_tasks_gone()
        self._maybe_exit()

    def _link_closed(self) -> None:
        """The task's end of the pair closed: in order, when it has said all it had to; else its death, or as bad."""
        if self._bye or self._unwound:
            if not self._watch.works:
                self._task_gone()
        elif self._watch.works:
            # It may just be ending, and how it does says more than a signal of ours would.
            self.loop.call_later(ENDING_S, self._link_overdue)
        else:
            self._link_overdue()

    def _link_overdue(self) -> None:
        if self._task_alive:
            processes.send([self.task_pid], signal.SIGKILL)
            self._task_gone()

    def _task_gone(self) -> None:
        """The task is dead."""
        if not self._task_alive:
            return
        self._task_alive = False
        self._watch.close()
        self._desk.close()
        if not self._bye and not self._unwound:
            when = "after its body, while Metaflow stored its state" if self._body_done else "in the middle of its work"
            self.fail(Failure(self.index, "task", f"the node's task died {when}", time.time()))
        if not self._bye:
            self.loop.call_later(GONE_GRACE_S, self._exit)
        self._maybe_stopped()
        self._maybe_exit()

    def _run_gone(self) -> None:
        self.fail(Failure(self.index, "run", "the process of the run itself has ended", time.time()))

    def _watched(self) -> dict[int, tuple[int, str]]:
        watched = self.work.watched(self.index)
        if self._task_alive and not self._bye:
            watched[self.task_pid] = (self.index, "the node's task")
        return watched

    def _was_stopped(self, pid: int, node: int, title: str, seconds: float) -> None:
        text = f"{title} (process {pid}) has been stopped (SIGSTOP) for {seconds:.0f} s"
        self.fail(Failure(node, "stopped", text, time.time()))

    # -- the end -----------------------------------------------------------------------------------------------------

    def _maybe_finish(self) -> None:
        if self.uplink is not None and self.uplink.all_left and self.work.tasks_settled:
            self._desk.answer_all("finish", {})

    def _maybe_tasks_gone(self) -> None:
        if self.work.tasks_settled:
            self._desk.answer_all("tasks-gone", {"logs": self.work.logs()})

    def _maybe_exit(self) -> None:
        if self._task_alive or self.work.launches or not self.work.tasks_settled:
            return
        if self._bye or self.uplink is None or self.uplink.may_leave(self._story is not None):
            self._exit()

    def _exit(self) -> None:
        if not self._finishing:
            self._finishing = True
            farewell.tidy(self)
            if self.uplink is None:
                self.loop.stop()
            else:
                self.uplink.close(self.loop.stop)
