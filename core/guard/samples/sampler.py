"""Samples a node from time to time while its gang lives, and sends the newest to node 0 where that has asked for them.

What shows the gang reads them by the task's request ``samples`` (:mod:`.node.requests.sample_requests`): this node's
ring, and on node 0 the newest of each node besides. Nothing is sent between nodes until node 0 asks once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from . import ranks
from .container import Container
from .gpus import GpuReader, found_gpus
from .ring import Ring
from .user_metrics import UserMetrics

if TYPE_CHECKING:
    from ..loop.event_loop import Loop, Timer
    from ..loop.framing import Header


EVERY_S = 2.0
"""Seconds between two samples at first ..."""

SLOWER = 300.0
"""... and later the age of the gang divided by this: 12 s after an hour ..."""

MOST_S = 30.0
"""... and at most, after two and a half hours."""

WORK_S = 100.0
"""Samples of no rank that all nodes together may send to node 0 in a second; each :data:`RANKS_PER_WORK` ranks of one
cost as much again. benchmarks/samples.py measures node 0's time for them.
"""

RANKS_PER_WORK = 8

SENT_RANKS = 8192
"""Ranks that node 0 has of all nodes, so that its reply stays within one frame; and characters of each text of one."""

SENT_TEXT = 100


def every(age_s: float) -> float:
    """Seconds from one sample to the next in a gang that is ``age_s`` seconds old."""
    return min(max(EVERY_S, age_s / SLOWER), MOST_S)


def send_every(num_nodes: int, num_ranks: int) -> float:
    """Seconds between two samples that one of ``num_nodes`` nodes sends, each of ``num_ranks`` ranks."""
    return max(EVERY_S, num_nodes * (1 + num_ranks / RANKS_PER_WORK) / WORK_S)


class Sampler:
    """The samples of one node.

    Parameters
    ----------
    folder : str
        The node's private folder.
    running : callable
        The processes of this node's launches.
    send : callable
        Sends a message to the hub.

    Attributes
    ----------
    on_sample : callable or None
        Takes each sample, with ``ranks``, ``log`` (what these have logged) and ``totals`` besides.
    ring : Ring
        The samples by now. Each has ``at`` (epoch), what :meth:`.container.Container.sample` has, and ``gpus`` where
        there are some.
    """

    def __init__(
        self, loop: Loop, folder: str, running: Callable[[], Iterable[Any]], send: Callable[[Header], None]
    ) -> None:
        self._loop, self._running, self._send = loop, running, send
        self._user_metrics = UserMetrics(folder)
        self.ring = Ring()
        self._container: Container | None = None
        self._gpus: GpuReader | None = None
        self._begun = time.monotonic()
        self._timer: Timer | None = None
        self._num_nodes = 0  # who send; 0 until node 0 asks
        self._send_at = 0.0
        self.on_sample: Callable[[dict[str, Any]], None] | None = None

    def start(self) -> None:
        """Sample from now on; rates count from here, and the first sample follows :data:`EVERY_S` later."""
        if self._timer is None:
            self._take()

    def send_to_node_0(self, num_nodes: int) -> None:
        """Send samples to node 0 from now on, as often as it has the time for those of ``num_nodes`` nodes."""
        self._num_nodes = num_nodes

    def end(self) -> None:
        """Take no sample any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._gpus is not None:
            self._gpus.close()

    def _first(self) -> Container:
        self._gpus = found_gpus()
        return Container()

    def _take(self) -> None:
        try:
            self._sample(time.monotonic())
        except Exception:
            # A file of the kernel in a form that we do not know: no reason to end a gang. There are no more samples.
            return
        self._timer = self._loop.call_later(every(time.monotonic() - self._begun), self._take)

    def _sample(self, now: float) -> None:
        if self._container is None:
            self._container = self._first()  # rates count from here
            return
        sample: dict[str, Any] = {"at": round(time.time(), 2), **self._container.sample()}
        if self._gpus is not None:
            sample["gpus"] = self._gpus.latest()
        self.ring.add(sample)
        log = self._user_metrics.read()
        if self.on_sample is not None:
            self.on_sample({**sample, "ranks": self.ranks(), "log": log, "totals": self._container.totals()})
        if self._num_nodes and now >= self._send_at:
            found = self.ranks()[: max(1, SENT_RANKS // self._num_nodes)]
            for record in found:
                record.update(title=record["title"][:SENT_TEXT], line=record["line"][:SENT_TEXT])
            self._send_at = now + send_every(self._num_nodes, len(found)) - 0.1
            self._send({"op": "sample", "sample": {**sample, "ranks": found, "log": log}})

    def ranks(self) -> list[Header]:
        """What the ranks of this node do now."""
        return ranks.sample(self._running())
