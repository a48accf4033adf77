"""One node's guard: what its task asks for, what the hub says, and how the node stops.

When the gang stops, every request that waits is answered so at once (:mod:`.desk`), the task's body is interrupted by a
signal, and everything that runs (:mod:`.work`) is ended. The guard itself goes when its task has gone
(:mod:`.farewell`).
"""

from __future__ import annotations

import socket
import time

from ..children.launch import NodeTask
from ..children.supervisor import Work
from ..coordinator.failures import extra_s
from ..coordinator.root_cause import causes, failure_report
from ..failure_record import CUT, LOST, PEER, PREEMPTED, Failure
from ..host.owned_files import Owned
from ..loop.event_loop import Loop
from ..loop.stream import Stream
from ..processes.exit_status import Program, deserted, task_failure
from ..processes.stopped import Stopped
from ..processes.task_children import TaskChildren
from ..processes.watch import TaskWatch
from ..text import how_it_ended
from . import cleanup
from .pending_requests import Desk
from .preemption import Preemption
from .requests import Requests
from .task_end import TaskEnd
from .user_log import Voice

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself takes 3 ms to import
    from ..host.ports import PortLease
    from ..hub_link.hub_link import HubLink
    from ..loop.framing import Header
    from ..remote_command.local_server import Callers
    from ..remote_command.node_server import PeerServer
    from .meeting_notice import MeetingNotice

GONE_GRACE_S = 5.0
"""How long control's guard waits for the other guards once its own task is dead. The tasks that it has started itself
have longer: what they may do after their bodies is theirs (:mod:`.ending`).
"""

ABSENT_S = 3.5
"""How long a local node's task that has not joined may take to do so once the gang stops: it has no end to come to."""

WAITING_S = 4.0
"""Node 0's task waits for the others' ends before it raises: a line names them when that takes longer."""

STORY_DEADLINE_S = 3.0
"""How long the hub may take to tell the story; it tells it within a second, so then it is lost."""

ENDING_S = 2.0
"""How long a task that has closed its end of the pair may take to be gone."""

LATELY_S = 3.0
"""How far before the stop a traceback in an error file still counts as evidence."""

_AFTERTHOUGHTS = ("task", "task-signal", "task-exit", "task-output")
"""Kinds of records that may still come once the node is stopping: how a task died that is known to be dead."""


class Node:
    """The guard of the task ``task_pid``, joined to it by ``sock``; ``out`` and ``err`` are the task's own streams."""

    def __init__(self, loop: Loop, sock: socket.socket, task_pid: int, out: int = 1, err: int = 2) -> None:
        self.loop = loop
        self.index = 0
        self.err = err
        self.voice = Voice(err)
        self.say = self.voice.say
        self.folder = ""
        self.gang_id = ""
        self.task_pid = task_pid
        self.saver: Header | None = None
        self.notice: MeetingNotice | None = None  # until all nodes have joined, on a cluster
        self.leases: list[PortLease] = []
        self.control_guard = 0  # in a local gang, on nodes other than 0: its process
        self.seen_by_control = False  # whether control's guard is the task's parent, and sees its end
        self.owned = Owned()
        self.task_children = TaskChildren(task_pid)
        self.uplink: HubLink | None = None
        self.peers: PeerServer | None = None
        self.callers: Callers | None = None
        self.work = Work(loop, out, err, self.fail, self._port_taken, self._node_task_ended)
        self.work.say = self.say
        stream = Stream(loop, sock)
        stream.on_close = lambda reason: self._link_closed()
        self._requests = Requests(self)
        self.desk = Desk(stream, self._requests.handle)
        self._watch = TaskWatch(loop, task_pid, self._task_gone)
        self._program = Program(task_pid)
        self.signals = (0, 0)
        self.preemption = Preemption(self)
        self.ending = TaskEnd(self)
        self._stopped = Stopped(self)
        self.work.on_ranks_ended = self._ranks_ended
        self._told_of_ranks = False
        self.told: Header | None = None
        self._failures: list[Failure] = []  # of this node, and of its way to the hub
        self.stopping = False
        self.task_alive = True
        self.body_over = False  # nothing of the body is left to interrupt
        self.body_done = False  # it ended well
        self.unwound = False  # it failed, and has said so
        self.bye = False  # Metaflow has stored the task's state
        self.stored = False  # the same, of a task that has failed
        self._awaits_story = False  # the task died while the gang stopped for something else, and cannot tell for what
        self._leaving = self._finishing = self._waited = False
        self._tolerant = False  # whether the gang goes on without nodes that it loses
        self._lost: set[int] = set()  # which those are, on control

    @property
    def name(self) -> str:
        """What marks this node's processes, and begins the names of its launches."""
        return f"{self.gang_id}.{self.index}"

    def work_gone(self) -> None:
        """Something that ran has ended, for which the node may have waited."""
        self.maybe_save()
        self.maybe_stopped()
        self.maybe_leave()
        self._maybe_exit()

    def maybe_leave(self) -> None:
        """Say goodbye to the hub once Metaflow has stored the task's state and nothing runs any more."""
        if self.bye and not self._leaving and not self.work.launches:
            self._leaving = True
            if self.uplink is None:
                self.desk.answer_all("bye", {})
            else:
                self.uplink.leave(self._may_go)

    def _may_go(self) -> None:
        self.desk.answer_all("bye", {})

    # -- what the hub says -------------------------------------------------------------------------------------------

    def from_hub(self, header: Header, payload: bytes) -> None:
        """One message of the hub."""
        op = header["op"]
        if op == "roster":
            self._requests.all_joined(header["nodes"])
        elif op == "gathered":
            self._requests.gathered(header, payload)
        elif op == "stop":
            self.send({"op": "alive"})
            self._stop(header["order"], header["preempted"])
        elif op == "failure-report":
            self._tell(header)
        elif op == "cancel":
            self.work.cancel(header["key"])
        elif op == "tolerate":
            self._tolerant = True
        elif op == "save-seconds":
            self.preemption.save_s = header["seconds"]
        elif op == "lost":
            self._lost.add(header["node"])
            self._kill_tasks_in(self._longest_s(0.0), [header["node"]])
        elif op == "control-done":
            self.desk.answer_all("hold", {})
        elif op == "ends-task":
            self.work.killed.add(header["node"])
        elif op == "all-left":
            self.maybe_finish()
        elif op == "all-gone":
            self._maybe_exit()

    def hub_lost(self, text: str, node: int) -> None:
        """The way to the hub is gone, for good: this node tells its own story."""
        if not self.bye:
            self._fail_alone(Failure(node, "lost", text, time.time(), order=LOST))

    def _hub_silent(self) -> None:
        if self.told is None:
            self.hub_lost(f"has not answered node {self.index} for {STORY_DEADLINE_S:g} s: {CUT}", 0)

    def send(self, header: Header, payload: bytes = b"") -> None:
        """One message to the hub, where there is one."""
        if self.uplink is not None:
            self.uplink.send(header, payload)

    # -- failing and stopping ----------------------------------------------------------------------------------------

    def fail(self, failure: Failure) -> None:
        """Something failed here first: tell the hub, which tells all, us included."""
        if self.stopping and failure.kind not in _AFTERTHOUGHTS:
            return
        if self.uplink is None or not self.uplink.connected:
            self._fail_alone(failure)  # there is no gang yet, and so no hub that would tell
        elif failure.peer is not None or (self._tolerant and failure.reporting_node != self.index):
            # Which may end another node and not this one, or none: the hub knows whether the peer has only left.
            self.send({"op": "fail", "failure": failure.to_json()})
        else:
            self._tell_hub(failure)
            self._stop(failure.order, failure.kind == PREEMPTED)

    def _tell_hub(self, failure: Failure) -> None:
        self._failures.append(failure)
        self.send({"op": "fail", "failure": failure.to_json()})

    def _fail_alone(self, failure: Failure) -> None:
        self._failures.append(failure)
        self._stop(failure.order, failure.kind == PREEMPTED)
        if self.told is None:
            told = causes(self._failures)
            self._tell(
                {"report": failure_report(told, {}), "causes": [{"node": cause.reporting_node} for cause in told]}
            )

    def has_fault(self, text: str, trace: str) -> None:
        """A callback of this guard has raised: the gang ends, as far as this guard can still see to that."""
        self.say(f"{text}\n{trace}")
        self.fail(Failure(self.index, "guard", text, time.time(), trace))

    def tidy(self) -> None:
        """The guard ends by force."""
        cleanup.tidy(self)

    def _stop(self, order: int, preempted: bool) -> None:
        """From here on no death on this node is a cause."""
        if self.stopping:
            return
        self.stopping = True
        self.preemption.stops = preempted
        save_s = self.preemption.save_s if preempted else 0.0
        self.loop.call_later(STORY_DEADLINE_S + extra_s(save_s), self._hub_silent)
        for failure in self.work.untold_deaths(self.index):
            self._tell_hub(failure)
        if order == PEER:
            # Who says that a peer is gone may have waited for less time than a process may be stopped.
            for failure in self._stopped.failures():
                self._tell_hub(failure)
            # The cause may be a process here that has raised but not yet ended; what it wrote tells.
            for evidence in self.work.evidence_before_end(self.index, time.time() - LATELY_S):
                self._tell_hub(evidence)
        for launch in self.work.launches.values():
            self._ranks_ended(launch.ended_well())  # now: what is left of it may take longer than the story waits
        grace = max(self.work.longest_grace(), save_s) + save_s
        # Before a launch is answered: an interrupt that comes after that would hide the body's own exception.
        if self.task_alive and self.body_over:
            self.ending.body_over()
        elif self.task_alive:
            self.ending.interrupt(grace, grace if preempted else 0.0)
        self.work.end_launches(lasting=False, grace=save_s)
        self.desk.stop()
        self._stopped.gang_stops()
        if self.work.tasks:
            # Each of the other nodes has a guard that sees to its end: this is for those whose guard is dead.
            longest_s = self._longest_s(save_s)
            self.loop.call_later(longest_s, lambda: self._kill_overdue(longest_s))
            # What has stored its state is only to exit.
            self._kill_tasks_in(self.ending.exit_s, [node for node in self.work.tasks if self._has_left(node)])
            self.loop.call_later(ABSENT_S + extra_s(save_s), self._kill_the_absent)
        self.maybe_stopped()

    def _kill_the_absent(self) -> None:
        uplink = self.uplink
        self.work.kill_tasks([node for node in self.work.tasks if uplink is None or not uplink.has_joined(node)])

    def _longest_s(self, save_s: float) -> float:
        """Seconds from the stop in which the tasks of a local gang are gone, where their guards are alive."""
        return self.ending.longest_s(max(self.work.longest_grace(), save_s) + extra_s(save_s))

    def _kill_tasks_in(self, seconds: float, nodes: list[int]) -> None:
        if nodes:
            self.loop.call_later(seconds, lambda: self.work.kill_tasks(nodes))

    def _kill_overdue(self, seconds: float) -> None:
        for task in self.work.tasks.values():
            if task.alive:
                self.say(
                    f"node {task.node}'s task did not end within {seconds:.3g} s of the gang's stop (end_timeout is "
                    f"{self.ending.hooks_s:g} s of that), and its guard did not end it: it is killed."
                )
        self.work.kill_tasks(list(self.work.tasks))

    def _has_left(self, node: int) -> bool:
        return self.uplink is not None and self.uplink.has_left(node)

    def task_unwound(self) -> None:
        """The task's body has failed, or is over as an interrupted one, and what it has to tell is told."""
        self.body_over = self.unwound = True
        self.ending.body_over()
        self.maybe_stopped()

    def task_stored(self) -> None:
        """Metaflow has stored the state of the task, which has failed."""
        self.stored = True
        self.task_children.look()
        self.ending.stored()

    def maybe_save(self) -> None:
        """A body that has ended badly saves where that is for a preemption, once what it ran has ended."""
        if not self.preemption.stops or all(launch.lasting for launch in self.work.launches.values()):
            self.desk.answer_all("unwinding", {"preempted": self.preemption.stops})

    def maybe_stopped(self) -> None:
        """What served the body ends after it, and when all that this node ran has ended, the node has stopped."""
        if self.stopping and (self.body_over or not self.task_alive):
            self.work.end_launches()
            if not self.work.launches:
                self.send({"op": "stopped"})
                self._maybe_exit()

    def _tell(self, header: Header) -> None:
        self.told = {name: header[name] for name in ("report", "causes", "left") if name in header}
        self.desk.answer_all("failure-report", self.told)
        if not self.task_alive:
            self.say(f"Node {self.index}'s task is dead. {header['report']}")
        self._maybe_exit()

    def _ranks_ended(self, ranks: dict[int, float] | None) -> None:
        """Of the latest launch, those that ended with code 0. The hub names them where other ranks miss them."""
        if ranks or (self._told_of_ranks and ranks is not None):  # what the hub knows is of an earlier launch
            self._told_of_ranks = bool(ranks)
            self.send({"op": "ranks-ended", "ranks": list(ranks.items())})

    def _port_taken(self, key: str) -> None:
        self.send({"op": "cancel", "key": key})

    # -- deaths ------------------------------------------------------------------------------------------------------

    def _node_task_ended(self, task: NodeTask) -> None:
        died = task.exit_code or 0
        left = self._has_left(task.node)
        failure = task.failure(task.node)
        if self.uplink is not None and not self.uplink.has_joined(task.node):
            failure = failure.replaced(text=f"{failure.text} before it joined")
        if not self.stopping and task.node not in self._lost:
            if died or not left:
                self.fail(failure)
        elif died and task.node not in self.work.killed:
            # No cause by itself any more, but it may tell how and why a task died that is known to be dead.
            self.fail(failure if died < 0 else failure.replaced(kind="task-output"))
        self.maybe_finish()
        self.maybe_tasks_gone()
        self._maybe_exit()

    def _link_closed(self) -> None:
        """The task's end of the pair closed: in order, when it has said all it had to; else its death, or as bad."""
        self._watch.expect(ENDING_S)
        if not self.bye and not self.unwound:
            # It may just be ending, and how it does says more than a signal of ours would.
            closed_at = time.time()
            self.loop.call_later(ENDING_S, lambda: self._link_overdue(closed_at))

    def _link_overdue(self, closed_at: float) -> None:
        if self.task_alive:
            self.body_over = True  # there is no way to interrupt it
            self.fail(deserted(self.index, self.task_pid, self._program, closed_at))
            self.ending.end_now()

    def _task_gone(self) -> None:
        """The task is dead."""
        if not self.task_alive:
            return
        self.task_alive = False
        self._watch.close()
        self.desk.close()
        self.ending.over()
        if self.told is not None and not self.body_over and not self.unwound:
            self.say(self.told["report"])  # it has not heard it: something else was faster, as JAX's own abort is
        self._awaits_story = self.stopping and not self.bye
        if not self.bye and not self.unwound and self._is_to_tell_of_its_task():
            if self.notice is not None and not self.stopping and not self._is_heard_by_all:
                code = self._watch.exit_code
                how = "died" if code is None else how_it_ended(code)
                self.notice.leave(f"the node's task {how} before it joined")
            self.fail(task_failure(self.index, self._watch.exit_code, self.body_done))
        if not self.bye:
            self.loop.call_later(GONE_GRACE_S, self._gone_long_enough)
        self.maybe_stopped()
        self._maybe_exit()

    def _is_to_tell_of_its_task(self) -> bool:
        """Control's guard knows more of a task that it has started: how it ended, and whether for another one. The end
        by our own interrupt, which the task did not handle, is ours.
        """
        if self.stopping and self.signals[0] and self._watch.exit_code == -self.signals[0]:
            return False
        return not self.seen_by_control or (self.uplink is not None and self.uplink.connected)

    @property
    def _is_heard_by_all(self) -> bool:
        """Whether the hub tells all nodes of a failure. Node 0's own cannot tell those that have not come yet."""
        return self.index > 0 and self.uplink is not None and self.uplink.connected

    def run_gone(self) -> None:
        """The process of the run has ended, which nobody outlives."""
        self.fail(Failure(self.index, "run", "the process of the run itself has ended", time.time()))

    # -- the end -----------------------------------------------------------------------------------------------------

    def maybe_finish(self) -> None:
        """Control may go on once all others have left."""
        if self.uplink is not None and self.uplink.all_left and self.work.tasks_settled:
            self.desk.answer_all("finish", {"lost": sorted(self._lost)})

    def maybe_tasks_gone(self) -> None:
        """Control gets the other nodes' logs once their tasks are gone."""
        if self.work.tasks_settled and self.desk.answer_all("tasks-gone", {"logs": self.work.logs()}):
            self.task_goes_on()

    def task_waits(self) -> None:
        """Node 0's task, whose body is over, waits for the other nodes' tasks: that is not its own time."""
        self.ending.over()
        self.loop.call_later(WAITING_S, self._say_who_is_waited_for)

    def task_goes_on(self) -> None:
        if self.stopping:
            self.ending.body_over()

    def _say_who_is_waited_for(self) -> None:
        """Node 0's task waits until the other nodes' tasks are gone: name those that take their time."""
        late = [str(task.node) for task in self.work.tasks.values() if task.alive]
        if late and self.task_alive:
            one = len(late) == 1
            self.say(
                f"{'Node' if one else 'Nodes'} {', '.join(late)} {'is' if one else 'are'} still busy with the end of "
                f"the step, which may take {self.ending.hooks_s:g} s (end_timeout)."
            )

    def _maybe_exit(self) -> None:
        if self._waited and self.work.tasks_settled:
            self._exit()
        if self.task_alive or self.work.launches or not self.work.tasks_settled:
            return
        if self._awaits_story and self.told is None:
            return
        if self.bye or self.uplink is None or self.uplink.may_leave(self.told is not None):
            self._exit()

    def _gone_long_enough(self) -> None:
        """The task is dead, and nobody waits for the other guards any more, but for the tasks that run here."""
        self._waited = True
        if self.work.tasks_settled:
            self._exit()

    def _exit(self) -> None:
        if not self._finishing:
            self._finishing = True
            cleanup.tidy(self)
            if self.uplink is None:
                self.loop.stop()
            else:
                self.uplink.close(self.loop.stop)
