"""One node's guard: what its task asks for, what the hub says, and how it ends everything it started.

Requests of the task are frames with ``id`` and ``op``; each gets exactly one answer with ``re``. When the gang stops, every
request that waits is answered ``{"stopped": true}`` at once and the task's body is interrupted by a signal.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

from . import processes
from .children import Child, Launch, NodeTask
from .loop import Loop
from .uplink import LocalUplink, RemoteUplink
from .verdict import PEER, Failure, story
from .watch import StopWatch, TaskWatch
from .wire import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes 3 ms to import
    from typing import Any

    from .ports import PortLease
    from .uplink import Uplink
    from .wire import Header

BODY_GRACE_S = 2.0
"""How long an interrupted body may take for its own ``finally`` blocks before its stacks are printed and it is killed."""

STACKS_S = 0.2
"""Between asking a task for its stacks and SIGKILL; faulthandler writes them at once, without the GIL."""

TASKS_GRACE_S = 3.5
"""How long the other nodes' tasks of a local gang may take to tell the story and store their state after the stop."""

GONE_GRACE_S = 3.0
"""How long control's guard waits for the other guards once its own task is dead."""

LATELY_S = 3.0
"""How far before the stop a traceback in an error file still counts as evidence."""


class Node:
    """The guard of the task ``task_pid``, joined to it by ``sock``."""

    def __init__(self, loop: Loop, sock: socket.socket, task_pid: int, out: int = 1, err: int = 2) -> None:
        self.loop = loop
        self.index = 0
        self.exit_code = 0
        self.err = err
        self._out = out
        self._task_pid = task_pid
        self._stream = Stream(loop, sock)
        self._stream.on_frame = lambda header, payload: self._request(header, payload)
        self._stream.on_close = lambda reason: self._link_closed()
        self._watch = TaskWatch(loop, task_pid, self._task_gone)
        self._stopwatch = StopWatch(loop, self._watched, self._was_stopped)
        self._uplink: Uplink | None = None
        self._pending: dict[int, str] = {}
        self._gathers: dict[int, int] = {}
        self._launches: dict[str, Launch] = {}
        self._launch_requests: dict[str, int] = {}
        self._launch_count = 0
        self._tasks: dict[int, NodeTask] = {}
        self._leases: list[PortLease] = []
        self.folder = ""
        self._gang_id = ""
        self._control_task: Header = {}
        self._signals = (0, 0)
        self._stopping = False
        self._killed_tasks = False
        self._task_alive = True
        self._body_over = False
        self._body_done = False
        self._unwound = False
        self._bye = False
        self._story: Header | None = None
        self._finishing = False
        self._saver: Header | None = None
        loop.on_signal(signal.SIGCHLD, self._reap)

    # -- the task's requests -----------------------------------------------------------------------------------------

    def _request(self, header: Header, payload: bytes) -> None:
        handler = getattr(self, "_do_" + str(header["op"]).replace("-", "_"))
        self._pending[header["id"]] = header["op"]
        if self._stopping and header["op"] in _ENDED_BY_STOP:
            self._answer(header["id"], {"stopped": True})
        else:
            handler(header, payload)

    def _answer(self, request: int, header: Header, payload: bytes = b"") -> None:
        if self._pending.pop(request, None) is not None:
            self._stream.send({"re": request, **header}, payload)

    def _answer_all(self, op: str, header: Header) -> None:
        for request in [number for number, waiting in self._pending.items() if waiting == op]:
            self._answer(request, header)

    def _do_setup(self, header: Header, payload: bytes) -> None:
        """Who the task is and how it may be interrupted; must come first."""
        self.index = header["node"]
        self.folder = header["folder"]
        self._gang_id = header["gang_id"]
        self._signals = (header["interrupt_signal"], header["stacks_signal"])
        if header.get("watch_parent"):
            TaskWatch(self.loop, header["watch_parent"], self._run_gone)
        self._answer(header["id"], {})

    def _do_open(self, header: Header, payload: bytes) -> None:
        """Control only: open the hub."""
        uplink = LocalUplink(self, header["num_nodes"], header["timeout"], header["identity"], header["host"])
        self._uplink = uplink
        self._answer(header["id"], {"port": uplink.port, "address": uplink.address, "secret": uplink.secret.hex()})

    def _do_join(self, header: Header, payload: bytes) -> None:
        """Join the hub; answered when all have."""
        if isinstance(self._uplink, LocalUplink):
            self._uplink.join({**header["info"], "address": header["address"]})
        else:
            self._uplink = RemoteUplink(self, header)

    def _do_start_nodes(self, header: Header, payload: bytes) -> None:
        """Control of a local gang: start the other nodes' tasks."""
        self._saver = header["saver"]
        for spec in header["tasks"]:
            read, write = os.pipe()
            env = {**spec["env"], header["meeting_variable"]: str(read)}
            os.set_inheritable(read, True)
            task = NodeTask(self.loop, spec["node"], {**spec, "env": env}, self._out, self.err, self.folder, read)
            os.close(read)
            os.write(write, payload)  # some hundred bytes: always fits an empty pipe
            os.close(write)
            task.on_end = self._node_task_ended  # type: ignore[assignment]
            self._tasks[task.node] = task
        self._answer(header["id"], {})

    def _do_gather(self, header: Header, payload: bytes) -> None:
        self._gathers[header["seq"]] = header["id"]
        self._send({"op": "gather", "seq": header["seq"], "kind": header["kind"], "entry": header["entry"]}, payload)

    def _do_put(self, header: Header, payload: bytes) -> None:
        self._transfer(header, "put")

    def _do_get(self, header: Header, payload: bytes) -> None:
        self._transfer(header, "get")

    def _transfer(self, header: Header, direction: str) -> None:
        """A value too large for a frame, by a bulk stream of its own, on a thread."""
        assert self._uplink is not None

        def ready(address: str, port: int, secret: bytes) -> None:
            threading.Thread(target=work, args=(address, port, secret), name="bulk", daemon=True).start()

        def work(address: str, port: int, secret: bytes) -> None:
            from . import bulk

            answer: Header = {}
            try:
                getattr(bulk, direction)(address, port, secret, header["name"], header["path"])
            except (bulk.BulkError, OSError) as error:
                answer = {"error": str(error)}
            self.loop.call_soon_threadsafe(lambda: self._answer(header["id"], answer))

        self._uplink.with_bulk(ready)

    def _do_launch(self, header: Header, payload: bytes) -> None:
        self._launch_count += 1
        name = f"{self._gang_id}.{self.index}.{self._launch_count}"
        launch = Launch(self.loop, name, header["plan"], self._out, self.err)
        launch.on_failure = self._process_failed
        launch.on_done = self._launch_done
        self._launches[name] = launch
        self._launch_requests[name] = header["id"]

    def _do_port(self, header: Header, payload: bytes) -> None:
        from .ports import PortBusy, lease_exact, lease_port

        try:
            exact, host = header.get("exact"), header.get("host", "")
            lease = lease_exact(exact, host) if exact else lease_port(host)
        except PortBusy as error:
            self._answer(header["id"], {"error": str(error)})
            return
        self._leases.append(lease)
        self._answer(header["id"], {"port": lease.port})

    def _do_fail(self, header: Header, payload: bytes) -> None:
        """The body, or Metaflow around it, raised. Answered with the story."""
        if not self._stopping:
            self.fail(Failure(self.index, header["kind"], header["text"], time.time(), header["detail"]))
        self._unwind(header)

    def _do_unwound(self, header: Header, payload: bytes) -> None:
        """The interrupted body has ended. Answered with the story."""
        self._unwind(header)

    def _unwind(self, header: Header) -> None:
        self._pending[header["id"]] = "story"
        self._body_over = self._unwound = True
        self._maybe_stopped()
        if self._story is not None:
            self._answer(header["id"], self._story)

    def _do_done(self, header: Header, payload: bytes) -> None:
        """The body has ended well. What is left is Metaflow's, which is not interrupted."""
        self._body_over = self._body_done = True
        self._send({"op": "done"})
        self._answer(header["id"], {})

    def _do_hold(self, header: Header, payload: bytes) -> None:
        """A node whose launcher runs the body on control only: answered when control's body is done."""
        if isinstance(self._uplink, RemoteUplink) and self._uplink.control_done:
            self._answer(header["id"], {})

    def _do_finish(self, header: Header, payload: bytes) -> None:
        """Control: answered when every other node has stored its state and left."""
        if self._uplink is not None and self._uplink.all_left:
            self._maybe_finish()

    def _do_tasks_gone(self, header: Header, payload: bytes) -> None:
        """Control of a local gang: answered with the nodes whose logs are complete, when all their tasks are gone."""
        self._saver = None  # the task does it
        self._maybe_tasks_gone()

    def _do_bye(self, header: Header, payload: bytes) -> None:
        """Metaflow has stored the task's state: nothing can fail here any more."""
        self._bye = True
        if self._uplink is not None:
            self._uplink.leave(lambda: self._answer(header["id"], {}))
        else:
            self._answer(header["id"], {})

    # -- what the hub says -------------------------------------------------------------------------------------------

    def from_hub(self, header: Header, payload: bytes) -> None:
        op = header["op"]
        if op == "roster":
            self._answer_all("join", {"nodes": header["nodes"]})
        elif op == "gathered":
            request = self._gathers.pop(header["seq"], None)
            if request is not None:
                self._answer(request, {"entries": header["entries"]}, payload)
        elif op == "stop":
            self._stop(header["order"])
        elif op == "story":
            self._tell(header)
        elif op == "cancel":
            for launch in list(self._launches.values()):
                if launch.key == header["key"]:
                    launch.cancelled = True
                    launch.end()
        elif op == "control-done":
            self._answer_all("hold", {})
        elif op == "all-left":
            self._maybe_finish()
        elif op == "all-gone":
            self._maybe_exit()

    def hub_lost(self, text: str, node: int = 0) -> None:
        """The way to the hub is gone, for good: this node tells its own story."""
        if self._bye:
            return
        failure = Failure(node, "lost", text, time.time())
        self._stop(failure.order)
        if self._story is None:
            self._tell({"story": story([failure], {}), "causes": [failure.to_json()]})

    def say(self, text: str) -> None:
        """A line for the user, in the task's own log. On a thread: the log's reader may be stopped."""
        from .output import write_all

        line = f"[gang] {text}\n".encode()
        threading.Thread(target=write_all, args=(self.err, line), daemon=True).start()

    # -- failing and stopping ----------------------------------------------------------------------------------------

    def fail(self, failure: Failure) -> None:
        """Something failed here first: tell the hub, which tells all, us included."""
        if self._stopping and failure.kind not in ("task", "task-signal", "task-exit"):
            return
        self._send({"op": "fail", "failure": failure.to_json()})
        self._stop(failure.order)

    def _stop(self, order: int) -> None:
        """From here on no death on this node is a cause."""
        if self._stopping:
            return
        self._stopping = True
        if order == PEER:
            # The cause may be a process here that has raised but not yet ended; its own words tell.
            since = time.time() - LATELY_S
            for launch in self._launches.values():
                for child in launch.children:
                    words = child.dying_words(self.index, launch.peer_lost, since)
                    if words is not None:
                        self._send({"op": "fail", "failure": words.to_json()})
        for launch in list(self._launches.values()):
            launch.end()
        for request, op in list(self._pending.items()):
            if op in _ENDED_BY_STOP and op != "launch":
                self._answer(request, {"stopped": True})
        if self._task_alive and not self._body_over:
            self._stream.send({"event": "stop"})
            processes.send([self._task_pid], self._signals[0])
            graces = [launch.grace for launch in self._launches.values()]
            self.loop.call_later(BODY_GRACE_S + max(graces, default=0.0), self._body_overdue)
        if self._tasks:
            self.loop.call_later(TASKS_GRACE_S, self._kill_tasks)
        self._maybe_stopped()

    def _body_overdue(self) -> None:
        if self._body_over or not self._task_alive:
            return
        self.say(
            f"node {self.index}'s step did not end within {BODY_GRACE_S:g} s of being interrupted; "
            "where it stands is printed here, then it is killed."
        )
        processes.send([self._task_pid], self._signals[1])
        self.loop.call_later(STACKS_S, lambda: self._kill_task())

    def _kill_task(self) -> None:
        if self._task_alive and not self._body_over:
            self._unwound = True  # its death is ours from here on
            processes.send([self._task_pid], signal.SIGKILL)

    def _kill_tasks(self) -> None:
        self._killed_tasks = True
        processes.send([task.pid for task in self._tasks.values() if task.alive], signal.SIGKILL)

    def _maybe_stopped(self) -> None:
        """Everything that this node ran has ended."""
        if not self._stopping or self._launches or not (self._body_over or not self._task_alive):
            return
        self._send({"op": "stopped"})
        self._maybe_exit()

    def _tell(self, header: Header) -> None:
        self._story = {"story": header["story"], "causes": header["causes"]}
        self._answer_all("story", self._story)
        if not self._task_alive and self.index == 0:
            self.say(f"Node 0's task is dead. {header['story']}")
        self._maybe_exit()

    # -- deaths ------------------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            child = self._find(pid)
            if child is not None:
                child.reaped(os.waitstatus_to_exitcode(status))

    def _find(self, pid: int) -> Child | None:
        for launch in self._launches.values():
            child = launch.find(pid)
            if child is not None:
                return child
        return next((task for task in self._tasks.values() if task.pid == pid and task.alive), None)

    def _process_failed(self, launch: Launch, child: Child) -> None:
        if launch.port_is_taken():
            self._send({"op": "cancel", "key": launch.key})
            launch.end()
        else:
            self.fail(child.failure(self.index, launch.peer_lost))
            launch.end()

    def _launch_done(self, launch: Launch) -> None:
        del self._launches[launch.name]
        request = self._launch_requests.pop(launch.name)
        answer: Header = {"results": launch.results()}
        if launch.cancelled or launch.port_is_taken():
            answer["port_taken"] = True
        elif launch.failed is not None:
            answer["failed"] = {**launch.failed.result(), "traceback": launch.failed.traceback()[0]}
        elif self._stopping:
            answer["stopped"] = True
        self._answer(request, answer)
        self._maybe_stopped()

    def _node_task_ended(self, task: Child) -> None:
        assert isinstance(task, NodeTask)
        unexpected = task.exit_code if self._stopping else task.exit_code or not self._has_left(task.node)
        # After the stop only a signal that we did not send says more than is known: how a dead task died.
        if unexpected and (not self._stopping or (task.exit_code or 0) < 0 and not self._killed_tasks):
            self.fail(task.failure(task.node, []))
        self._maybe_finish()
        self._maybe_tasks_gone()
        self._maybe_exit()

    def _has_left(self, node: int) -> bool:
        return self._uplink is not None and self._uplink.has_left(node)

    def _link_closed(self) -> None:
        """The task's end of the pair closed: in order, when it has said all it had to; else its death, or as bad."""
        if not self._bye and not self._unwound:
            processes.send([self._task_pid], signal.SIGKILL)
            self._task_gone()
        elif not self._watch.works:
            self._task_gone()

    def _task_gone(self) -> None:
        """The task is dead."""
        if not self._task_alive:
            return
        self._task_alive = False
        self._watch.close()
        self._stream.close(flush=False)
        self._pending.clear()
        if not self._bye and not self._unwound:
            when = "after its body, while Metaflow stored its state" if self._body_done else "in the middle of its work"
            self.fail(Failure(self.index, "task", f"the node's task died {when}", time.time()))
        if not self._bye:
            self.loop.call_later(GONE_GRACE_S, self._exit)
        self._maybe_stopped()
        self._maybe_exit()

    def _stray(self) -> set[int]:
        """What the dead task, or user code in it, had started by itself."""
        found = processes.marked(processes.GANG_MARKER, f"{self._gang_id}.{self.index}")
        return found - {self._task_pid, *(task.pid for task in self._tasks.values())}

    def _run_gone(self) -> None:
        self.fail(Failure(self.index, "run", "the process of the run itself has ended", time.time()))

    def _watched(self) -> dict[int, str]:
        watched = {child.pid: child.title for launch in self._launches.values() for child in launch.children if child.alive}
        watched.update({task.pid: task.title for task in self._tasks.values() if task.alive})
        if self._task_alive and not self._bye:
            watched[self._task_pid] = "the node's task"
        return watched

    def _was_stopped(self, pid: int, title: str, seconds: float) -> None:
        text = f"{title} (process {pid}) has been stopped (SIGSTOP) for {seconds:.0f} s"
        self.fail(Failure(self.index, "stopped", text, time.time()))

    # -- the end -----------------------------------------------------------------------------------------------------

    def _maybe_finish(self) -> None:
        if self._uplink is not None and self._uplink.all_left and not any(t.alive for t in self._tasks.values()):
            self._answer_all("finish", {})

    def _maybe_tasks_gone(self) -> None:
        if all(task.settled for task in self._tasks.values()):
            logs = {str(task.node): task.logs for task in self._tasks.values()}
            self._answer_all("tasks-gone", {"logs": logs})

    def _maybe_exit(self) -> None:
        if self._task_alive:
            return
        busy = self._launches or any(not task.settled for task in self._tasks.values())
        if not busy and (self._bye or self._uplink is None or self._uplink.may_leave(self._story is not None)):
            self._exit()

    def _exit(self) -> None:
        """The last act: logs, private folder, leases, descendants; then the loop ends."""
        if self._finishing:
            return
        self._finishing = True
        processes.send(processes.descendants([os.getpid()]) | self._stray(), signal.SIGKILL)
        if self._saver is not None and self._tasks:
            self._save_logs(self._saver)
        for lease in self._leases:
            lease.release()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
            from .ports import remove_if_empty

            gangs = os.path.dirname(self.folder)
            remove_if_empty(gangs, os.path.dirname(gangs))
        if self._uplink is not None:
            self._uplink.close(self.loop.stop)
        else:
            self.loop.stop()

    def _save_logs(self, saver: Header) -> None:
        """The task is dead, so another process with Metaflow has to store the other nodes' logs."""
        import subprocess

        try:
            subprocess.run(
                saver["argv"], env=saver["env"], cwd=saver["cwd"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=self.err, timeout=10, check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            self.say(f"The logs of the other nodes could not be stored: {error}")

    def _send(self, header: Header, payload: bytes = b"") -> None:
        if self._uplink is not None:
            self._uplink.send(header, payload)


_ENDED_BY_STOP = frozenset({"join", "gather", "launch", "hold", "finish", "put", "get", "port", "done", "open", "start-nodes"})
"""Requests that have no meaning once the gang stops. A launch is answered when its processes are gone."""
