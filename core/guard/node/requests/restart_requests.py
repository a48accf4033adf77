"""Requests about launches that failed without ending the gang: what is known of one, what is tidied up before the next
try, and the end of the gang where there is none.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...failure_record import Failure
from ...processes.stopped import STOPPED
from ...samples.user_metrics import FILE
from ...settings import settings
from ...stalls.dumps import remove_files_of_the_dead

if TYPE_CHECKING:
    from ...children.launch import Launch
    from ...children.supervisor import Work
    from ...hub_link.hub_access import HubAccess
    from ...loop.event_loop import Loop
    from ...loop.framing import Header
    from ...samples.freed_gpus import FreedGpus
    from ..cleanup import Cleanup
    from ..identity import NodeIdentity
    from ..local_tasks import LocalTasks
    from ..node_failures import NodeFailures
    from ..state import NodeState
    from .dispatch import Method
    from .pending_requests import PendingRequests

LEFT_BY_NCCL = "/dev/shm/nccl-*"
"""NCCL removes these files once both sides have mapped them, which one that was killed had not."""


class RestartRequests:
    """Each method does what the request of its name asks for. ``say`` takes a line for the user."""

    def __init__(
        self,
        loop: Loop,
        identity: NodeIdentity,
        state: NodeState,
        hub: HubAccess,
        pending: PendingRequests,
        work: Work,
        cleanup: Cleanup,
        failures: NodeFailures,
        local_tasks: LocalTasks,
        say: Callable[[str], None],
    ) -> None:
        self._loop, self._identity, self._state, self._hub = loop, identity, state, hub
        self._pending, self._work, self._cleanup = pending, work, cleanup
        self._failures, self._local_tasks, self._say = failures, local_tasks, say
        self._untidy: set[int] = set()
        self._has_failed_launch = False  # and no other one has begun since
        self._gpus: FreedGpus | None = None
        self._world: tuple[str, set[int]] = ("", set())  # the key of the latest launch, and the nodes that it needs
        self._lost: dict[int, Header | None] = {}  # by node, and why, once that is known

    def methods(self) -> dict[str, Method]:
        return {
            "leave-out": self.leave_out,
            "world": self.world,
            "restarted": self.restarted,
            "tidy-up": self.tidy_up,
            "fail-launch": self.fail_launch,
            "lost-nodes": self.lost_nodes,
        }

    # -- a launch that may fail --------------------------------------------------------------------------------------

    def begins(self, plan: Header) -> Callable[[Launch], Header]:
        """A launch of ``plan`` begins, which may be given up; the part of its reply that says why, once it was."""
        self._has_failed_launch = False
        if not plan.get("restartable"):
            return lambda launch: {}
        if self._gpus is None:
            from ...samples.freed_gpus import FreedGpus
            from ...samples.gpus import found_gpus

            self._gpus = FreedGpus(self._loop, found_gpus())
            self._cleanup.owned.add_pattern(LEFT_BY_NCCL)
        if plan.get("nodes") and self._identity.index == 0:
            self._world = (plan["key"], set(plan["nodes"]))
            if not self._world[1].isdisjoint(self._lost):
                self._hub.send({"op": "cancel", "key": plan["key"]})
        began, before = time.monotonic(), self._logged()

        def given_up(launch: Launch) -> Header:
            self._has_failed_launch = True
            logged, seconds = self._logged(), time.monotonic() - began
            failures, hints = launch.evidence()
            return {
                "failures": [self._on_clock_of_node_0(failure) for failure in failures],
                "hints": [self._on_clock_of_node_0(failure) for failure in hints],
                "port_taken": launch.port_is_taken(),
                "made_progress": (logged != before and logged[0] > 0) or seconds >= settings().progress_seconds,
            }

        return given_up

    def never_began(self) -> Header:
        """The same of a launch that was given up elsewhere before it began here."""
        return {"failures": [], "hints": [], "port_taken": False, "made_progress": False}

    def _logged(self) -> tuple[int, int]:
        """Changes with each line of ``gang_log``."""
        try:
            status = os.stat(os.path.join(self._identity.folder, FILE))
        except OSError:
            return (0, 0)
        return (status.st_size, status.st_mtime_ns)

    def _on_clock_of_node_0(self, failure: Failure) -> Header:
        return failure.corrected(*self._hub.link.clock()).to_json()

    def fail(self, failure: Failure, is_of_launch: bool = True) -> None:
        """Something that runs on this node has failed, without having ended."""
        if is_of_launch and self._work.ends_launch(failure):
            return
        if is_of_launch and failure.kind == STOPPED and self._has_failed_launch:
            return  # it was of that launch; what is stopped in the next one, too, is reported again
        if is_of_launch and self._identity.index and self._work.runs_ranks_of_others and not self._state.is_stopping:
            self._hub.send({"op": "ranks-failed", "failure": failure.to_json()})
        else:
            self._failures.fail(failure)

    # -- requests ----------------------------------------------------------------------------------------------------

    def restarted(self, number: int, header: Header, payload: bytes) -> None:
        """Control: what was given up is started again, or why it is not, for the report, the card and the metadata."""
        self._leave_out(header["left_out"])
        self._hub.send({"op": "restarted", "entry": header["entry"]})
        self._pending.reply(number, {})

    def leave_out(self, number: int, header: Header, payload: bytes) -> None:
        """Control: ranks begin without some nodes, for the metadata and the card."""
        self._leave_out(header["left_out"])
        self._pending.reply(number, {})

    def _leave_out(self, nodes: Header) -> None:
        for node, why in nodes.items():
            self._failures.roles.leave_out(int(node), why, time.time())

    def world(self, number: int, header: Header, payload: bytes) -> None:
        """Control: which nodes have ranks from now on, and which wait, for the card and the metadata."""
        self._failures.roles.world(header["nodes"], header["spares"], time.time())
        self._pending.reply(number, {})

    def lost_nodes(self, number: int, header: Header, payload: bytes) -> None:
        """Control of a gang that goes on without nodes that it loses: the reply has the failure of each, once all of
        them are explained.
        """
        if None not in self._lost.values():
            self._pending.reply_all("lost-nodes", {"failures": list(self._lost.values())})

    def _lose(self, node: int, save_s: float) -> None:
        """The gang goes on without ``node``, and a launch that needs it ends on all nodes: ranks have the time to save
        that those of the lost node have. The launch may have ended here already.
        """
        self._lost[node] = None
        self._local_tasks.lose(node, save_s)
        key, nodes = self._world
        if node in nodes:
            self._hub.send({"op": "cancel", "key": key, "grace": save_s})

    def _explained(self, failure: Failure, why: str) -> None:
        node = failure.reporting_node
        self._lost[node] = failure.to_json()
        self._failures.roles.leave_out(node, why, failure.time)
        self.lost_nodes(0, {}, b"")

    def tidy_up(self, number: int, header: Header, payload: bytes) -> None:
        """Remove what ended processes have left on this node; on all ``nodes``, where that is not 0, whose tasks make
        no request. The reply comes when the GPUs have their memory back, too.
        """
        if header["nodes"]:
            self._untidy = set(range(header["nodes"]))
            self._hub.send({"op": "tidy-up"})
        else:
            self._tidy_up(lambda: self._pending.reply(number, {}))

    def from_hub(self, header: Header) -> None:
        """This node is to tidy up, or, on control, another one has; or a process of this node keeps the gang from going
        on.
        """
        if header["op"] == "tidy-up":
            self._tidy_up(lambda: self._hub.send({"op": "tidied"}))
        elif header["op"] == "lost":
            self._lose(header["node"], header["save_s"])
        elif header["op"] == "told-of-lost":
            self._explained(Failure.from_json(header["failure"]), header["why"])
        elif header["op"] in ("stalled", "ranks-failed"):
            self.fail(Failure.from_json(header["failure"]).replaced(time=time.time()))
        else:
            self._untidy.discard(header["node"])
            if not self._untidy:
                self._pending.reply_all("tidy-up", {})

    def _tidy_up(self, then: Callable[[], None]) -> None:
        from ...remote_command.left_commands import LeftCommands

        LeftCommands(self._loop, self._work).end(lambda: self._nothing_runs(then))

    def _nothing_runs(self, then: Callable[[], None]) -> None:
        """No process of the last try is left on this node."""
        self._cleanup.owned.remove_left_behind()
        remove_files_of_the_dead(self._identity.folder)

        def free(text: str) -> None:
            if text:
                self._say(text)
            then()

        if self._gpus is None:
            free("")
        else:
            self._gpus.wait(settings().gpu_memory_timeout, free)

    def fail_launch(self, number: int, header: Header, payload: bytes) -> None:
        """What was given up is not started again: the gang ends by it. Control has the failures of all nodes; the
        others wait for the end, which is the reply.
        """
        failures = [Failure.from_json(record) for record in header["failures"]]
        if self._failures.is_tolerant and not self._identity.index:
            self._hub.send({"op": "tolerate", "end": True})
        if failures and not self._state.is_stopping:
            self._failures.fail(failures[0])
            for failure in failures[1:]:
                self._failures.report_to_hub(failure)
