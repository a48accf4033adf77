"""Starts processes for one node, as long as the node takes any."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..failure_record import Failure
    from ..loop.event_loop import Loop
    from ..loop.framing import Header
    from .launch import Launch
    from .output import Sink
    from .supervisor import Work

    class Owner(Protocol):
        """The node whose processes are started."""

        index: int

        @property
        def name(self) -> str:
            """Begins the names of its launches."""


class Launcher:
    """Starts processes for one node, as long as it takes any.

    Parameters
    ----------
    owner : Owner
        The node.
    refusal : callable
        Why nothing is started any more, as a clause; empty as long as something is.
    fail : callable
        Takes a failure of a process that the gang needs.
    on_gone : callable
        Called when nothing of a launch is left, after its own ``done``.
    """

    def __init__(
        self,
        loop: Loop,
        owner: Owner,
        work: Work,
        refusal: Callable[[], str],
        fail: Callable[[Failure], None],
        on_gone: Callable[[], None],
    ) -> None:
        self.loop = loop
        self.refusal = refusal
        self.fail = fail
        self.stream = work.stream
        self._owner = owner
        self._work = work
        self._on_gone = on_gone

    @property
    def node(self) -> int:
        """The node's index."""
        return self._owner.index

    @property
    def name(self) -> str:
        """Marks the node's processes."""
        return self._owner.name

    def pause(self, plan: Header | None) -> None:
        """Have interpreters wait for a plan; see :meth:`Work.pause`."""
        if plan is None or not self.refusal():
            self._work.pause(self._owner.name, plan)

    def launch(
        self,
        plan: Header,
        done: Callable[[Launch], None],
        sinks: Callable[[str], list[Sink]] | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> Launch:
        """Start a plan's processes; see :meth:`Work.launch`."""

        def ended(launch: Launch) -> None:
            done(launch)
            self._on_gone()

        return self._work.launch(self.name, self.node, plan, ended, sinks, stdin)
