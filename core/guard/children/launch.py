"""The processes of one launch: started together, and ended together once one has failed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..failure_record import Failure
from ..host import file_clock
from ..loop.event_loop import Loop
from ..processes import process_table
from ..rank_reports.complaints import matches
from ..settings import Settings, settings
from .child import Child
from .output import Labelled, Raw

if TYPE_CHECKING:
    from .output import Sink
    from .paused import PausedRanks

SWEEP_MOST_S = 1.0
"""The same as :data:`SWEEP_S` where they have been looked at for long: a look reads the whole process table."""

SWEEP_S = 0.02
"""Between two looks at what is left while processes are being ended: the kernel reports only direct children."""

LATELY_S = 3.0
"""How far before the stop a traceback in an error file still counts as evidence."""

LEFT_S = 1.0
"""What processes that a launch has left behind may take to end by themselves, once all of it has ended well."""


def _grace(own: float | None) -> float:
    """Seconds between SIGTERM and SIGKILL for a plan that has ``own`` of them, or None: the setting ``kill_grace``.

    A launcher that gives less than is usual means it; one that gives more gives at least that.
    """
    usual = settings().kill_grace
    if own is None:
        return usual
    return own if own < Settings.kill_grace else max(own, usual)


class Launch:
    """The processes of one plan on this node.

    ``on_done(results)`` is called when all have ended and nothing of them is left; ``on_failure(child)`` before, when
    the first of a checked plan fails. Output goes to ``sinks(stream)`` of each stream where given, else to ``out`` and
    ``err``; ``stdin`` is a descriptor, or /dev/null.

    Attributes
    ----------
    restartable : bool
        Whether a failure of it ends it on all nodes, and not the gang.
    cancelled : bool
        Whether it was ended because of another node's failure.
    has_been_given_up : bool
        Whether it has failed, here or elsewhere.
    """

    def __init__(
        self,
        loop: Loop,
        name: str,
        plan: dict[str, Any],
        out: int,
        err: int,
        sinks: Callable[[str], list[Sink]] | None = None,
        stdin: int = subprocess.DEVNULL,
        node: int = 0,
        paused: PausedRanks | None = None,
    ) -> None:
        self.name = name
        self._marks = {name}
        self._node = node
        self.key: str = plan.get("key", "")
        self.check: bool = plan.get("check", True)
        self.lasting: bool = plan.get("lasting", False)
        self.grace = _grace(plan.get("grace"))
        self.port_taken: str | None = plan.get("port_taken")
        self.restartable: bool = plan.get("restartable", False)
        self._suspects: list[Child] = []
        self._noted: list[Failure] = []
        self._hints: list[Failure] = []
        self.failed: Child | None = None
        self.cancelled = False
        self.on_done: Callable[[Launch], None] = lambda launch: None
        self.on_failure: Callable[[Launch, Child], None] = lambda launch, child: None
        self.on_unkillable: Callable[[list[int]], None] = lambda pids: None
        self.on_output: Callable[[], None] = lambda: None  # each process calls it once
        self._loop = loop
        self._ending = False
        self._kill_at = 0.0
        self._given_up = False
        self._ended_from = 0.0
        self._done = False
        self._seen: set[int] = set()
        self.children: list[Child] = []
        for spec in plan["processes"]:
            more = {
                "env": {**spec["env"], process_table.LAUNCH_MARKER: name},
                "peer_lost": list(plan.get("peer_lost", ())),
            }
            label = spec.get("label", "")

            def console(stream: str, label: str = label) -> list[Sink]:
                fd = out if stream == "stdout" else err
                return [Labelled(fd, label) if label else Raw(fd)]

            spec = {**spec, **more}
            found = paused.take(spec) if paused is not None and self.restartable else None
            if found is not None:
                self._marks.add(found.mark)
            child = found or Child(loop, spec, sinks or console, (), stdin)
            child.on_end = self._ended
            child.on_overdue = self._overdue
            child.on_output = lambda: self.on_output()
            self.children.append(child)

    def find(self, pid: int) -> Child | None:
        return next((child for child in self.children if child.pid == pid and child.alive), None)

    def undrained(self) -> list[Child]:
        """Those that have failed, but which are not reported yet: something that they started holds their output, or
        the launch was given up for them.
        """
        if not self.check or self._ending:
            return [self.failed] if self.restartable and self.failed is not None else []
        return [child for child in self.children if child.exit_code and not child.settled]

    @property
    def has_been_given_up(self) -> bool:
        return self.restartable and (self.cancelled or self.failed is not None)

    def give_up(self, failure: Failure | None = None, grace: float = 0.0) -> None:
        """End it, as :meth:`end` does, once what its processes know of the cause has been noted.

        Parameters
        ----------
        failure : Failure, optional
            Why, where it is none that :meth:`evidence` finds by itself.
        """
        if self.restartable and not self._ending:
            self._noted = [failure] if failure is not None else []
            self._suspects = self.undrained()
            since = time.time() - LATELY_S
            self._hints = [hint for child in self.children if (hint := child.evidence_before_end(self._node, since))]
        self.end(grace)

    def evidence(self) -> tuple[list[Failure], list[Failure]]:
        """Once nothing of it is left: the failures of its processes, and hints of those that had raised, but not ended,
        when it was given up; the hints count where all that is known otherwise is that others miss a peer.
        """
        failed = [] if self.failed is None else [self.failed]
        suspects = [child for child in self._suspects if child.has_failed and child is not self.failed]
        return [*self._noted, *(child.failure(self._node) for child in failed + suspects)], self._hints

    def ended_well(self) -> dict[int, float] | None:
        """The ranks that ended with code 0 before the launch was stopped, and when; None where it has no ranks."""
        if not any(child.has_ranks for child in self.children):
            return None
        stopped_at = self._ended_from or time.time()
        return {rank: moment for child in self.children for rank, moment in child.ranks_ended_well(stopped_at)}

    def results(self) -> list[dict[str, Any]]:
        return [child.result() for child in self.children]

    def port_is_taken(self) -> bool:
        """Whether the output of the process that failed shows that a foreign program holds the plan's port."""
        return (
            self.failed is not None
            and bool(self.port_taken)
            and matches([str(self.port_taken)], self.failed.tail.text())
        )

    def end(self, grace: float = 0.0) -> None:
        """End what is left: SIGTERM, and SIGKILL after ``grace`` seconds, at least the plan's. ``on_done`` follows.

        Where it ends already, and SIGKILL has not been sent, ``grace`` may postpone it.
        """
        if self._ending:
            now = time.monotonic()
            if now < self._kill_at:  # from SIGKILL on, the time in which nothing may be left counts from there
                self._kill_at = max(self._kill_at, now + grace)
            return
        self._ending = True
        self._ended_from = time.time()
        asked_at = file_clock.now()
        for child in self.children:
            child.asked_at = asked_at
        self._kill_at = time.monotonic() + max(self.grace, grace)
        process_table.terminate(self._living())
        self._sweep()

    def _living(self) -> set[int]:
        """Everything that descends from this launch, whatever session it is in or whoever adopted it."""
        if not process_table.sees_all():
            return self._known_to_live()
        entries = process_table.table()
        mine = process_table.descendants([os.getpid()], entries)
        roots = {child.pid for child in self.children if child.alive and child.pid in mine}
        for mark in self._marks:
            roots |= process_table.marked(process_table.LAUNCH_MARKER, mark, mine)
        return roots | process_table.descendants(roots, entries)

    def _known_to_live(self) -> set[int]:
        """Where there is no /proc: its processes' groups, and what has been seen to descend from its processes."""
        entries = process_table.table()
        alive = {child.pid for child in self.children if child.alive and child.pid > 0}
        self._seen = {pid for pid in self._seen if pid in entries and entries[pid].state not in "ZX"}
        self._seen |= process_table.descendants(alive, entries)
        return self._seen | process_table.groups(child.pid for child in self.children if child.pid > 0)

    def _sweep(self) -> None:
        living = self._living()
        since = time.monotonic() - self._kill_at
        if not living:
            self._maybe_done()
            return
        if since >= 0.0:
            process_table.send(living, signal.SIGKILL)
        if since >= settings().unkillable_timeout:
            self._give_up(living)
        else:
            self._loop.call_later(min(max(SWEEP_S, since / 10), SWEEP_MOST_S), self._sweep)

    def _give_up(self, living: set[int]) -> None:
        """Nobody can end these: the launch ends without."""
        self._given_up = True
        self.on_unkillable(sorted(living))
        for child in self.children:
            child.give_up()
        self._maybe_done()

    def _ended(self, child: Child) -> None:
        if child.has_failed and self.check and not self._ending and self.failed is None:
            self.failed = child
            self.on_failure(self, child)
        elif all(not child.alive for child in self.children) and not self._ending:
            self._end_what_is_left(time.monotonic() + LEFT_S)
        elif self._ending:
            self._maybe_done()

    def _end_what_is_left(self, deadline: float) -> None:
        """All have ended well: what they have started may finish by itself, as a program that reads their pipe does."""
        if self._ending:
            return
        if time.monotonic() < deadline and self._living():
            self._loop.call_later(SWEEP_S, lambda: self._end_what_is_left(deadline))
        else:
            self.end()

    def _overdue(self, child: Child) -> None:
        """It has reported that a rank failed, and does not end."""
        if child.alive and self.check and not self._ending and self.failed is None:
            self.failed = child
            self.on_failure(self, child)

    def _maybe_done(self) -> None:
        gone = all(child.settled for child in self.children)
        if gone and not self._done and (self._given_up or not self._living()):
            self._done = True
            if self.check:
                self.failed = self._culprit()
            self.on_done(self)

    def _culprit(self) -> Child | None:
        """Of all that failed before anything was ended here, the one that explains the rest.

        It need not be the one that was reported first: a rank that lost its peer may be gone a moment before the peer,
        which has its exception to write down.
        """

        def before_the_end(child: Child) -> bool:
            return child.has_failed and (child.ended_at <= self._ended_from or 0.0 < child.failed_at() < child.asked_at)

        def rank_of_cause(child: Child) -> tuple[int, float]:
            failure = child.failure(0)
            return failure.order, failure.time

        return min(filter(before_the_end, self.children), key=rank_of_cause, default=self.failed)
