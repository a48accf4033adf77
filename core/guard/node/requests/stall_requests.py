"""The watch for a stall on this node, and the request for the stacks of all nodes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from ...phases import DONE, FAILED, FORMED
from ...samples.user_metrics import FILE
from ...settings import settings
from ...stalls.limits import CARD_S

if TYPE_CHECKING:
    from ...children.supervisor import Work
    from ...hub_link.hub_access import HubAccess
    from ...loop.event_loop import Loop
    from ...loop.framing import Header
    from ...phases import NodePhases
    from ...rank_reports.tail import Tail
    from ...stalls.dumps import Dumps
    from ...stalls.watch import StallWatch
    from ..identity import NodeIdentity
    from .dispatch import Method
    from .pending_requests import PendingRequests

    class Samples(Protocol):
        """Where GPUs are read."""

        def gpu(self) -> tuple[float, float]: ...

        def watch(self, num_nodes: int) -> None: ...


WANTED = signal.SIGUSR1
"""Has a guard print the stacks of all nodes."""

_FOR_THE_LOG = 0
"""Number of a request for stacks that is no request of the task; those begin with 1."""


class StallRequests:
    """Nothing is loaded or looked at before the first need.

    Parameters
    ----------
    phases : NodePhases
        Tells when the body begins and ends.
    say : callable
        Takes a line for the user.
    """

    def __init__(
        self,
        loop: Loop,
        identity: NodeIdentity,
        hub: HubAccess,
        pending: PendingRequests,
        work: Work,
        phases: NodePhases,
        samples: Samples,
        say: Callable[[str], None],
    ) -> None:
        self._loop, self._identity, self._hub, self._pending, self._work = loop, identity, hub, pending, work
        self._samples, self._say = samples, say
        self._phases = phases
        self._made: Dumps | None = None
        self._watch: StallWatch | None = None
        self._is_shown = False  # on a card
        phases.on_note = self._phase
        loop.on_signal(WANTED, lambda: hub.send({"op": "want-stacks", "number": _FOR_THE_LOG}))

    def methods(self) -> dict[str, Method]:
        return {"stacks": self.stacks}

    def stacks(self, number: int, header: Header, payload: bytes) -> None:
        """The reply has the stacks of all nodes: ``groups`` of processes that stand at the same place, and ``text``."""
        if self._hub.link.connected:
            self._hub.send({"op": "want-stacks", "number": number})
        else:
            self._pending.reply(number, {"groups": [], "text": ""})

    def from_hub(self, header: Header) -> None:
        """A message about samples or stacks."""
        if header["op"] == "watch-samples":
            self._samples.watch(header["nodes"])
            self._is_shown = True  # node 0 has a card
            if FORMED in self._phases.times:
                self._start()
        elif header["op"] == "stacks":
            if self._watch is not None:
                self._watch.collecting()
            self._dumps().collect(lambda records, texts: self._send(header["number"], records, texts))
        elif header["number"] == _FOR_THE_LOG:
            self._say(f"Where all ranks stand:\n{header['text']}")
        else:
            self._pending.reply(header["number"], {"groups": header["groups"], "text": header["text"]})

    def _phase(self, name: str) -> None:
        if name == FORMED:
            self._start()
        elif name in (DONE, FAILED) and self._watch is not None:
            self._watch.end()

    def _start(self) -> None:
        timeout = settings().stall_timeout
        is_over = DONE in self._phases.times or FAILED in self._phases.times
        if self._watch is not None or is_over or not (timeout or self._is_shown):
            return
        from ...stalls.output import Output
        from ...stalls.watch import StallWatch

        identity = self._identity
        output = Output(self._tails, lambda: os.path.join(identity.folder, FILE))
        self._watch = StallWatch(
            self._loop,
            self._dumps(),
            self._roots,
            identity.task_pid,
            output,
            self,
            self._hub.send,
            lambda: self._hub.debug,
        )
        self._watch.start(timeout or CARD_S, may_ask=bool(timeout))

    def _dumps(self) -> Dumps:
        if self._made is None:
            from ...stalls.dumps import Dumps

            self._made = Dumps(self._loop, lambda: self._identity.folder, self._launched)
        return self._made

    def _send(self, number: int, records: list[dict[str, Any]], texts: dict[int, str]) -> None:
        if self._watch is not None:
            self._watch.collected(texts)
        self._hub.send({"op": "stacks", "number": number, "records": records})

    def _tails(self) -> dict[int, Tail]:
        return {child.pid: child.tail for child in self._work.children}

    def _launched(self) -> dict[int, str]:
        return {child.pid: child.title for child in self._work.children if child.alive and child.pid > 0}

    def _roots(self) -> dict[int, str]:
        return {self._identity.task_pid: "the body", **self._launched()}

    # -- what the watch asks -----------------------------------------------------------------------------------------

    def gpu(self) -> tuple[float, float]:
        """Percent of the time in which the busiest GPU computed, and in which it used its memory."""
        return self._samples.gpu()
